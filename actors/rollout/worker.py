"""One vLLM engine as an actor: samples groups, takes new weights, answers probes."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import numpy as np
import ray

from actors.control.log_shipping import log, ship_log
from actors.rollout.adapter import ServedAdapter
from actors.rollout.engine_args import engine_arguments
from actors.rollout.inflight import RULES, TAKEN_BACK, Kind
from actors.runtime.cpu_tuning import KEEP_BLOCKS, give_way
from actors.runtime.inspection import current_process
from actors.runtime.start_watch import Startable
from lpo_ray.common.held import Held
from lpo_ray.common.silence import Progress
from lpo_ray.errors import GroupLost
from lpo_ray.policy.base_files import base_digest
from lpo_ray.policy.weights import Plain
from lpo_ray.records import (
    ConversationId,
    FloatArray,
    IntArray,
    Key,
    Process,
    Prompt,
    PromptGroup,
    Sampling,
    Turn,
    TurnRequest,
)
from lpo_ray.rollout.engine_settings import EngineSettings

if TYPE_CHECKING:
    from vllm import RequestOutput, SamplingParams
    from vllm.logprobs import FlatLogprobs


@dataclass(frozen=True, slots=True)
class Delivery:
    """An engine's account of the weights that it serves."""

    digests: list[dict[str, str]]
    """tensor -> digest of what arrived, from each of the engine's processes"""
    logprobs: list[FloatArray]
    """log-probs of the probe"""
    cached_tokens: int
    """tokens of the probe that came out of the KV cache, so were not computed with these weights"""
    unfilled: Sequence[str] = ()
    """weights of an engine that was built without any, which were not among those that arrived"""
    bare: list[FloatArray] | None = None
    """log-probs of the probe, but for its last sequence, by the model without its adapter; None where it has none"""


def engine_environment(settings: EngineSettings, threads: int) -> dict[str, str]:
    """Environment of the process that builds the engine: vLLM reads it at import, torch when it starts."""
    environment = {
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_LEVEL": "WARNING",
        # Whatever the user's environment says, nothing that arrives at the engine core is unpickled. No transport needs
        # it: see cuda_ipc.to_plain.
        "VLLM_ALLOW_INSECURE_SERIALIZATION": "0",
    }
    if not settings.asynchronous:
        environment["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    if settings.on_cpu:
        environment |= {
            "OMP_NUM_THREADS": str(threads),
            # Compiling the first log-prob batch costs seconds, and there is no Triton for CPUs.
            "TORCHDYNAMO_DISABLE": "1",
            # vLLM would bind each process to a NUMA node of its own, and take all its cores.
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            **KEEP_BLOCKS,
        }
    return environment


class RolloutWorker(Startable):
    """One engine: a plain class that ``roles.py`` makes an actor. All methods but ``start`` may run concurrently."""

    def __init__(self, name: str, settings: EngineSettings, receiver: str) -> None:
        """``receiver``: name of the weight-transfer engine; see table.Transport."""
        self._name, self._settings, self._receiver = name, settings, receiver
        self._rule = RULES[settings.inflight]
        self._groups = Held[Key]()
        """groups that it has"""

    async def start(self) -> Process:
        """Load the model (seconds to minutes)."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        from actors.rollout.async_engine import AsyncEngine
        from actors.rollout.sync_engine import SyncEngine

        give_way()
        ship_log("rollout", self._name)
        self._params, self._kind = SamplingParams, RequestOutputKind
        arguments = engine_arguments(self._settings, self._receiver)
        adapter = ServedAdapter(self._settings.adapter, self._settings.versions_alive)
        if self._settings.asynchronous:
            self._engine = AsyncEngine(arguments, self._rule, adapter)
        else:
            self._engine = await asyncio.to_thread(SyncEngine, arguments, self._rule, adapter)
        if adapter.folder is not None:
            await self._engine.load_adapter()
        has_base = self._settings.adapter is not None
        self._base = await asyncio.to_thread(base_digest, self._settings.model_path) if has_base else ""
        self._released = asyncio.Event()
        process = current_process()
        self._is_blank = self._settings.blank
        how = ", without weights until the learner sends them" if self._is_blank else ""
        log.info(
            "its engine is up on %s: %s in %s%s", process.host, self._settings.model_path, self._settings.dtype, how
        )
        return process

    async def sample(self, prompt: Prompt, sampling: Sampling, attempt: int) -> PromptGroup:
        """Draw all K responses, each with a seed of its own, once the weights are proved or named. Raises GroupLost
        when vLLM refuses or aborts one.
        """
        names = [ConversationId(prompt.prompt_id, attempt, k) for k in range(sampling.group_size)]
        requests = [TurnRequest(name, 0, prompt.token_ids, sampling, sampling.max_tokens) for name in names]
        turns = await self._drawn(requests)
        return PromptGroup(prompt, attempt, tuple(turn.as_response() for turn in turns))

    async def turn(self, request: TurnRequest) -> Turn:
        """Draw one turn of a conversation, as ``sample`` draws a response."""
        return (await self._drawn([request]))[0]

    async def _drawn(self, requests: Sequence[TurnRequest]) -> list[Turn]:
        """Draw turns of one group. What is given out was drawn with weights that are proved or named by then."""
        key = requests[0].conversation.key
        tasks: list[asyncio.Future[Turn]] = []
        with self._groups.during(key):
            try:
                await self._released.wait()
                tasks += (asyncio.ensure_future(self._one(request)) for request in requests)
                turns = await asyncio.gather(*tasks)
                await self._released.wait()
                return turns
            except (ValueError, RuntimeError) as error:
                self._engine.check()
                raise GroupLost(*key, f"{self._name}: {error}") from error
            finally:
                for task in tasks:
                    task.cancel()

    async def progress(self) -> Progress:
        """Say how far it is. Answered while the engine decodes; nothing is up to it while it takes new weights."""
        is_idle = not self._groups or not self._released.is_set()
        return Progress(self._engine.sampled, is_idle, frozenset(self._groups))

    async def serve_loaded(self, version: str) -> None:
        """Give out groups with the weights of the model's folder, as ``version``: no others are published."""
        assert not self._is_blank
        await self._engine.name_weights(version)
        self._released.set()

    async def join_senders(self, senders: Plain) -> None:
        """Reach the ranks that send weights; see receiver.Senders."""
        await self._engine.join_senders(senders)

    async def base_digest(self) -> str:
        """Return the digest of the model beside the adapter, as its files had it when the engine loaded them."""
        return self._base

    async def begin_update(self) -> None:
        """Stop decoding until ``finish_update``, and give out no group until ``release``. Where versions are kept there
        is nothing to stop: until ``release`` all that begins, and is given out, is of versions that are proved.
        """
        if not self._rule.keeps_versions:
            self._released.clear()
        await self._engine.begin_update()

    async def receive(self, bucket: int, tickets: Sequence[object], seconds: float) -> None:
        """Receive and load one bucket. Gives up after ``seconds``."""
        found = [await ticket if isinstance(ticket, ray.ObjectRef) else ticket for ticket in tickets]
        if self._settings.asynchronous:  # the engine is another process, behind a serialiser that has no arrays
            found = [item.tobytes() if isinstance(item, np.ndarray) else item for item in found]
        await self._engine.update_weights({"bucket": bucket, "tickets": found, "seconds": seconds})

    async def finish_update(self, version: str, probe: Sequence[IntArray]) -> Delivery:
        """Decode again, with the new weights, and give account of them."""
        digests = await self._engine.finish_update(version)
        unfilled = await self._engine.unfilled() if self._is_blank else ()
        self._is_blank = bool(unfilled)
        answers, cached = await self._answer(probe)
        bare = None if self._settings.adapter is None else await self.logprobs(probe[:-1], bare=True)
        return Delivery(digests, answers, cached, unfilled, bare)

    async def answer(self, probe: Sequence[IntArray]) -> list[FloatArray]:
        """Compute the log-probs of the probe with the weights of now, as ``finish_update`` does."""
        assert not self._is_blank
        return (await self._answer(probe))[0]

    async def release(self) -> None:
        """Give out groups again: the weights are proved."""
        assert not self._is_blank
        self._engine.adapter.release()
        self._released.set()

    async def logprobs(self, sequences: Sequence[IntArray], *, bare: bool = False) -> list[FloatArray]:
        """Compute the log-probs of tokens 1..T-1 of each sequence with the weights of now, [T-1] each. ``bare``: by the
        model without its adapter.
        """
        params = self._params(
            max_tokens=1, temperature=0.0, prompt_logprobs=0, detokenize=False, output_kind=self._kind.FINAL_ONLY
        )
        outputs = await asyncio.gather(*(self._probe(sequence, params, bare=bare) for sequence in sequences))
        return [_prompt_logprobs(output, sequence) for output, sequence in zip(outputs, sequences, strict=True)]

    async def _answer(self, probe: Sequence[IntArray]) -> tuple[list[FloatArray], int]:
        """Compute the log-probs of the probe, and count its tokens that came out of the KV cache.

        vLLM computes prompt log-probs without its KV cache, so a stale one would not show in them. The last token of
        the last sequence is asked for as one that is sampled, which does read the cache; its prompt is there from the
        publish before, unless the cache was dropped as it must be.
        """
        *scored, last = probe
        token = int(last[-1])
        params = self._params(
            max_tokens=1, temperature=1.0, seed=0, logprob_token_ids=[token], detokenize=False,
            output_kind=self._kind.FINAL_ONLY,
        )  # fmt: skip
        # One after the other: rounding depends on what else is in a batch, and equal weights must give equal answers.
        found, sampled = await self.logprobs(scored), await self._probe(last[:-1], params)
        rows = sampled.outputs[0].logprobs
        assert rows is not None
        found.append(np.asarray([rows[0][token].logprob], dtype=np.float32))
        return found, sampled.num_cached_tokens or 0

    async def _probe(self, sequence: IntArray, params: SamplingParams, *, bare: bool = False) -> RequestOutput:
        """Answer one sequence of the probe, before all requests that wait: no group is given out until then.

        Where the KV cache is dropped, the probe shares it with every probe before, so that one that was not dropped
        shows. Where it is kept, the probe must not find it, as no other request may.
        """
        kind = Kind(shared=self._rule.drops_caches, priority=-1, bare=bare, newest=True)
        output = await self._engine.generate(f"probe-{os.urandom(8).hex()}", sequence.tolist(), params, kind)
        if output is None or output.outputs[0].finish_reason == TAKEN_BACK:
            raise RuntimeError(f"{self._name} began to take new weights before it had answered a probe")
        return output

    async def close(self) -> None:
        """End the engine and its processes."""
        self._engine.close()

    async def _one(self, request: TurnRequest) -> Turn:
        """Draw one turn, in parts when the engine takes it back for new weights. A part that was taken back is never
        complete: vLLM ends a request in the step that samples its last token.
        """
        token_ids: list[int] = []
        logprobs: list[float] = []
        versions: list[int] = []
        context, part = request.context_ids.tolist(), 0
        while True:
            params = self._sampling_params(request, request.max_tokens - len(token_ids), request.seed(part))
            request_id = f"{'/'.join(map(str, request.conversation))}/{request.turn}-{os.urandom(4).hex()}"
            output = await self._engine.generate(request_id, [*context, *token_ids], params)
            if output is None:
                continue  # it had no token yet: send it again
            sampled = output.outputs[0]
            token_ids += sampled.token_ids
            logprobs += cast("FlatLogprobs", sampled.logprobs).logprobs
            for span in sampled.weight_versions or ():
                versions += [int(span.version)] * (span.end - span.start)
            if sampled.finish_reason == TAKEN_BACK:
                part += 1
            elif sampled.finish_reason in ("stop", "length"):
                return Turn(
                    np.asarray(token_ids, dtype=np.int64),
                    np.asarray(logprobs, dtype=np.float32),
                    np.asarray(versions, dtype=np.int64),
                    sampled.finish_reason,
                )
            else:
                response = request.conversation.response
                raise RuntimeError(f"vLLM ended response {response} with finish_reason={sampled.finish_reason!r}")

    def _sampling_params(self, request: TurnRequest, max_tokens: int, seed: int) -> SamplingParams:
        sampling = request.sampling
        return self._params(
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            min_p=sampling.min_p,
            stop_token_ids=list(sampling.stop_token_ids),
            stop=list(request.stop),
            max_tokens=max_tokens,
            seed=seed,
            logprobs=0,
            flat_logprobs=True,
            detokenize=bool(request.stop),  # stop strings are found in text
            output_kind=self._kind.FINAL_ONLY,
        )


def _prompt_logprobs(output: RequestOutput, sequence: IntArray) -> FloatArray:
    """Read the log-probs of the tokens after the first, [T-1]."""
    if output.prompt_logprobs is None:
        raise RuntimeError("vLLM returned no prompt log-probs for the probe")
    rows = zip(output.prompt_logprobs[1:], sequence[1:], strict=True)
    return np.asarray([row[int(token)].logprob for row, token in rows if row is not None], dtype=np.float32)
