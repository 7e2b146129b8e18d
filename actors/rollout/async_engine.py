"""vLLM's AsyncLLM: the engine core in a process of its own, which runs weight updates between two of its steps."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from typing import cast

from typing_extensions import override
from vllm import RequestOutput, SamplingParams
from vllm.distributed.weight_transfer.base import WeightTransferInitRequest, WeightTransferUpdateRequest
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.inputs import TokensPrompt
from vllm.lora.request import LoRARequest
from vllm.v1.engine.async_llm import AsyncLLM

from actors.rollout.adapter import ServedAdapter
from actors.rollout.engine import Engine, SampledCount, joined, of_version, refusals, streamed
from actors.rollout.inflight import SAMPLE, Admission, Kind, Rule
from lpo_ray.policy.weights import Plain


class AsyncEngine(Engine):
    """AsyncLLM: the engine core in a process of its own."""

    def __init__(self, arguments: AsyncEngineArgs, rule: Rule, adapter: ServedAdapter) -> None:
        self._rule, self.adapter = rule, adapter
        self._admission = Admission()
        self._engine = AsyncLLM.from_engine_args(arguments)
        self._sampled = SampledCount(self._engine.output_processor)
        self._unstarted: set[asyncio.Task[RequestOutput]] = set()

    @override
    async def generate(
        self, request_id: str, token_ids: Sequence[int], params: SamplingParams, kind: Kind = SAMPLE
    ) -> RequestOutput | None:
        prompt = await self._admission.prompt(token_ids, shared=kind.shared)
        async with self.adapter.used(bare=kind.bare, newest=kind.newest) as (adapter, version):
            output = await self._settled(self._decode(prompt, params, request_id, kind.priority, adapter))
        return of_version(output, version) if self._rule.keeps_versions else output

    async def _settled(self, decoding: Coroutine[None, None, RequestOutput]) -> RequestOutput | None:
        """Wait for a request to end. None: it was taken back before it had a token."""
        request = asyncio.create_task(decoding)
        self._unstarted.add(request)
        request.add_done_callback(self._unstarted.discard)
        try:
            await asyncio.wait([request])
        finally:
            request.cancel()
        output = None if request.cancelled() else request.result()
        return output if output is not None and output.outputs[0].token_ids else None

    async def _decode(
        self, prompt: TokensPrompt, params: SamplingParams, request_id: str, priority: int, adapter: LoRARequest | None
    ) -> RequestOutput:
        so_far: RequestOutput | None = None
        # Which requests have no token yet is known from the report of the first.
        reported = streamed(params, every=params.max_tokens) if self._rule.restarts_unstarted else params
        with refusals():
            answers = self._engine.generate(prompt, reported, request_id, lora_request=adapter, priority=priority)
            async for output in answers:
                self._unstarted.discard(cast("asyncio.Task[RequestOutput]", asyncio.current_task()))
                so_far = joined(so_far, output)
        if so_far is None:
            raise RuntimeError(f"vLLM ended request {request_id} without an output")
        return so_far

    @override
    async def name_weights(self, version: str) -> None:
        await self._engine.update_weight_version(version)

    @override
    async def call_processes(self, method: str, **arguments: object) -> None:
        await self._engine.collective_rpc(method, kwargs=arguments)

    @override
    async def join_senders(self, senders: Plain) -> None:
        await self._engine.init_weight_transfer_engine(WeightTransferInitRequest(init_info=senders))

    @override
    async def begin_update(self) -> None:
        if self._rule.keeps_versions:
            await self.adapter.until_a_place_is_free()
            await self.call_processes("restart_weight_update")
            return
        self._admission.close()
        # The scheduler is paused first: while layers are reloaded no step may run.
        await self._engine.pause_generation(mode=self._rule.pause, clear_cache=self._rule.drops_caches)
        if self._rule.restarts_unstarted and (unstarted := list(self._unstarted)):
            for request in unstarted:
                request.cancel()
            await asyncio.wait(unstarted)
        await self._engine.collective_rpc("restart_weight_update")

    @override
    async def update_weights(self, arrival: Plain) -> None:
        await self._engine.update_weights(WeightTransferUpdateRequest(update_info=arrival))

    @override
    async def finish_update(self, version: str) -> list[dict[str, str]]:
        await self.call_processes("end_weight_update")
        await self._engine.update_weight_version(version)
        if (config := self.adapter.config) is not None:
            number, dropped = self.adapter.next_place()
            await self.call_processes("serve_received_adapter", config=config, number=number, dropped=dropped)
            self.adapter.put(number, dropped, version)
        if self._rule.drops_caches:
            await self._engine.reset_prefix_cache(reset_running_requests=True)
        await self._engine.reset_encoder_cache()
        digests = await self._engine.collective_rpc("received_digests")
        await self._engine.resume_generation()
        self._admission.reopen()
        return digests

    @override
    async def unfilled(self) -> list[str]:
        return [name for names in await self._engine.collective_rpc("unfilled_weights") for name in names]

    @property
    @override
    def sampled(self) -> int:
        return self._sampled.total

    @override
    def check(self) -> None:
        if self._engine.errored:
            raise self._engine.dead_error

    @override
    def close(self) -> None:
        self._engine.shutdown()
