"""vLLM behind one surface, inside a rollout worker: ``sync_engine`` on CPU, ``async_engine`` on GPU."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Protocol

from vllm import RequestOutput, SamplingParams
from vllm.exceptions import VLLMValidationError
from vllm.outputs import WeightVersionSpan
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine import EngineCoreOutput
from vllm.v1.engine.output_processor import OutputProcessor, OutputProcessorOutput
from vllm.v1.metrics.stats import IterationStats

from actors.rollout.adapter import ServedAdapter
from actors.rollout.inflight import SAMPLE, Kind
from lpo_ray.policy.weights import Plain


class Engine(Protocol):
    """Operations of vLLM that a rollout worker needs."""

    adapter: ServedAdapter

    async def generate(
        self, request_id: str, token_ids: Sequence[int], params: SamplingParams, kind: Kind = SAMPLE
    ) -> RequestOutput | None:
        """Decode a request to its end. Waits while an update is running. Cancelling the await aborts the request.

        When an update takes the request back, returns what it had so far, with finish_reason TAKEN_BACK; None if it had
        no token. Raises ValueError when vLLM refuses it.
        """
        ...

    async def name_weights(self, version: str) -> None:
        """Say that the weights it was built with are ``version``."""
        ...

    async def load_adapter(self) -> None:
        """Serve the adapter to begin with, from its folder."""
        number, dropped = self.adapter.next_place()
        config, folder = self.adapter.config, self.adapter.folder
        await self.call_processes("serve_adapter_of", folder=folder, config=config, number=number)
        self.adapter.put(number, dropped, None)

    async def call_processes(self, method: str, **arguments: object) -> None:
        """Call a method of all the engine's processes, between two of its steps: vLLM's ``collective_rpc``."""
        ...

    async def join_senders(self, senders: Plain) -> None:
        """Reach the ranks that send weights: vLLM's ``init_weight_transfer_engine``, see receiver.Senders."""
        ...

    async def begin_update(self) -> None:
        """Treat the running requests as the rule says, then call vLLM's ``start_weight_update``. No token is decoded
        until ``finish_update``, unless the rule keeps versions. An update that was given up is started again.
        """
        ...

    async def update_weights(self, arrival: Plain) -> None:
        """Receive and load one bucket: vLLM's ``update_weights``, see receiver.Arrival."""
        ...

    async def finish_update(self, version: str) -> list[dict[str, str]]:
        """Call vLLM's ``finish_weight_update``, drop the KV cache as the rule says, and decode again. Returns the
        digest of each tensor as it arrived, from each of the engine's processes.
        """
        ...

    async def unfilled(self) -> list[str]:
        """Name the weights that no publish has brought, of an engine that was built without any."""
        ...

    @property
    def sampled(self) -> int:
        """Tokens that it has sampled so far, roughly: a number that grows with each step that gives one."""
        ...

    def check(self) -> None:
        """Raise the error that ended the engine, if any."""
        ...

    def close(self) -> None:
        """End the engine."""
        ...


@contextlib.contextmanager
def refusals() -> Iterator[None]:
    """Turn vLLM's validation errors into ValueError: the request is at fault, not the engine."""
    try:
        yield
    except VLLMValidationError as error:
        raise ValueError(str(error)) from error


class SampledCount:
    """Count of what an engine core has handed out, also of requests that report at their end only.

    Everything passes through ``process_outputs``, once for each step of the engine core.
    """

    def __init__(self, processor: OutputProcessor) -> None:
        self.total = 0
        process = processor.process_outputs

        def counted(
            outputs: list[EngineCoreOutput],
            engine_core_timestamp: float | None = None,
            iteration_stats: IterationStats | None = None,
            weight_version: str | None = None,
        ) -> OutputProcessorOutput:
            self.total += len(outputs)
            return process(outputs, engine_core_timestamp, iteration_stats, weight_version)

        processor.process_outputs = counted  # pyright: ignore[reportAttributeAccessIssue] - of this one processor


def streamed(params: SamplingParams, every: int | None) -> SamplingParams:
    """Have a request report at its first token, then after every ``every`` tokens, and at its end; only what is new."""
    params = params.clone()
    params.output_kind, params.stream_interval = RequestOutputKind.DELTA, every
    return params


def of_version(output: RequestOutput | None, version: str | None) -> RequestOutput | None:
    """Say that all tokens of an output are of one version, whatever has become the engine's meanwhile."""
    if output is not None and version is not None:
        sampled = output.outputs[0]
        sampled.weight_versions = [WeightVersionSpan(version, 0, len(sampled.token_ids))]
    return output


def joined(so_far: RequestOutput | None, new: RequestOutput) -> RequestOutput:
    """Append a report of a streamed request to those before it."""
    if so_far is None:
        return new
    so_far.add(new, aggregate=True)
    return so_far
