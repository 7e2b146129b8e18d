"""vLLM's LLMEngine on a thread of its own, which owns it.

Requests, aborts and weight updates are handed to that thread and run between two engine steps, so an update is atomic.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar, cast

from typing_extensions import override
from vllm import EngineArgs, RequestOutput, SamplingParams
from vllm.inputs import TokensPrompt
from vllm.lora.request import LoRARequest
from vllm.outputs import WeightVersionSpan
from vllm.v1.engine.llm_engine import LLMEngine

from actors.rollout.adapter import ServedAdapter
from actors.rollout.engine import Engine, SampledCount, joined, of_version, refusals, streamed
from actors.rollout.inflight import SAMPLE, TAKEN_BACK, Admission, Kind, Rule
from lpo_ray.policy.weights import Plain

T = TypeVar("T")
REPORT_EVERY = 8
"""tokens between reports of a response that the engine may take back: those since the last are lost then. A report for
each token would cost a tenth of the throughput of a small policy."""


@dataclass(slots=True, eq=False)
class _Request:
    """A request that the engine has and that has not ended. Only the engine's thread changes it."""

    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[RequestOutput | None]
    so_far: RequestOutput | None = None
    """what vLLM has reported of its output"""

    def settle(self, result: RequestOutput | None, error: BaseException | None = None) -> None:
        self.loop.call_soon_threadsafe(partial(_settle, self.future, result, error))


class SyncEngine(Engine):
    """LLMEngine on a thread of its own."""

    def __init__(self, arguments: EngineArgs, rule: Rule, adapter: ServedAdapter) -> None:
        """Block until the engine has loaded the model. Raises what vLLM raises."""
        self._rule, self.adapter = rule, adapter
        self._admission = Admission()
        self._work: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._requests: dict[str, _Request] = {}
        self._failure: BaseException | None = None
        self._updating = False
        ready: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, args=(arguments, ready), name="vllm-engine", daemon=True)
        self._thread.start()
        failure = ready.get()
        if failure is not None:
            raise failure

    @override
    async def generate(
        self, request_id: str, token_ids: Sequence[int], params: SamplingParams, kind: Kind = SAMPLE
    ) -> RequestOutput | None:
        prompt = await self._admission.prompt(token_ids, shared=kind.shared)
        async with self.adapter.used(bare=kind.bare, newest=kind.newest) as (adapter, version):
            output = await self._decode(request_id, prompt, params, adapter, kind.priority)
        return of_version(output, version) if self._rule.keeps_versions else output

    async def _decode(
        self,
        request_id: str,
        prompt: TokensPrompt,
        params: SamplingParams,
        adapter: LoRARequest | None,
        priority: int,
    ) -> RequestOutput | None:
        loop = asyncio.get_running_loop()
        request = _Request(loop, loop.create_future())
        reported = self._reported(params)

        def add() -> None:
            self._engine.add_request(request_id, prompt, reported, lora_request=adapter, priority=priority)
            self._requests[request_id] = request

        def abort() -> None:
            if self._requests.pop(request_id, None):
                self._engine.abort_request([request_id])

        try:
            with refusals():
                await self._on_thread(add)
            return await request.future
        except asyncio.CancelledError:
            self._work.put(abort)
            raise

    def _reported(self, params: SamplingParams) -> SamplingParams:
        """Have a request report on the way what may be taken back: LLMEngine says nothing of a request that it aborts.
        Which ones have no token yet is known from the report of the first.
        """
        if self._rule.pause == "abort":
            return streamed(params, every=REPORT_EVERY)
        return streamed(params, every=params.max_tokens) if self._rule.restarts_unstarted else params

    @override
    async def name_weights(self, version: str) -> None:
        await self._on_thread(lambda: self._engine.set_weight_version(version))

    @override
    async def join_senders(self, senders: Plain) -> None:
        await self.call_processes("init_weight_transfer_engine", init_info=senders)

    @override
    async def begin_update(self) -> None:
        if self._rule.keeps_versions:
            await self.adapter.until_a_place_is_free()
            await self.call_processes("restart_weight_update")
            return
        self._admission.close()
        if running := await self._on_thread(self._pause):
            await asyncio.wait(running)
        await self._on_thread(self._restart_update)

    def _pause(self) -> list[asyncio.Future[RequestOutput | None]]:
        """Take back the requests that the rule says; returns those that must be decoded to their end first."""
        everything = self._rule.pause == "abort"
        unstarted = self._rule.restarts_unstarted
        taken = {i: r for i, r in self._requests.items() if everything or (unstarted and r.so_far is None)}
        self._engine.abort_request(list(taken))
        version = self._engine.get_weight_version()
        for request_id, request in taken.items():
            del self._requests[request_id]
            if request.so_far is not None:
                sampled = request.so_far.outputs[0]
                sampled.finish_reason = TAKEN_BACK
                # It was added after the last update, when all were taken back.
                sampled.weight_versions = [WeightVersionSpan(version, 0, len(sampled.token_ids))]
            request.settle(request.so_far)
        if self._rule.pause == "wait":
            return [request.future for request in self._requests.values()]
        self._updating = True
        return []

    def _restart_update(self) -> None:
        self._updating = True
        self._engine.collective_rpc("restart_weight_update")

    @override
    async def update_weights(self, arrival: Plain) -> None:
        await self.call_processes("update_weights", update_info=arrival)

    @override
    async def finish_update(self, version: str) -> list[dict[str, str]]:
        config = self.adapter.config
        number, dropped = self.adapter.next_place()
        placed = {"config": config, "number": number, "dropped": dropped}

        def finish() -> list[dict[str, str]]:
            self._engine.collective_rpc("end_weight_update")
            if config is not None:
                self._engine.collective_rpc("serve_received_adapter", kwargs=placed)
            if self._rule.drops_caches and not self._engine.reset_prefix_cache(reset_running_requests=True):
                raise RuntimeError("vLLM did not reset its prefix cache; cached prompts would serve the old weights")
            self._engine.reset_encoder_cache()
            self._engine.set_weight_version(version)
            self._updating = False
            return self._engine.collective_rpc("received_digests")

        digests = await self._on_thread(finish)
        if config is not None:
            self.adapter.put(number, dropped, version)
        self._admission.reopen()
        return digests

    @override
    async def unfilled(self) -> list[str]:
        found = await self._on_thread(lambda: self._engine.collective_rpc("unfilled_weights"))
        return [name for names in found for name in names]

    @override
    async def call_processes(self, method: str, **arguments: object) -> None:
        await self._on_thread(lambda: self._engine.collective_rpc(method, kwargs=arguments))

    @property
    @override
    def sampled(self) -> int:
        return self._sampled.total

    @override
    def check(self) -> None:
        if self._failure is not None:
            raise self._failure

    @override
    def close(self) -> None:
        self._work.put(None)
        self._thread.join(timeout=30)

    async def _on_thread(self, work: Callable[[], T]) -> T:
        self.check()
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()

        def run() -> None:
            try:
                result = work()
            except Exception as error:  # noqa: BLE001 - handed to the caller, whatever it is
                loop.call_soon_threadsafe(partial(_settle, future, None, error))
            else:
                loop.call_soon_threadsafe(partial(_settle, future, result, None))

        self._work.put(run)
        return await future

    def _run(self, arguments: EngineArgs, ready: queue.SimpleQueue[BaseException | None]) -> None:
        try:
            self._engine = LLMEngine.from_engine_args(arguments)
            self._sampled = SampledCount(self._engine.output_processor)
        except BaseException as error:  # noqa: BLE001 - handed to the constructor's caller
            ready.put(error)
            return
        ready.put(None)
        try:
            while self._serve():
                for output in self._engine.step():
                    request = self._requests[output.request_id]
                    request.so_far = joined(request.so_far, cast(RequestOutput, output))
                    if output.finished:
                        del self._requests[output.request_id]
                        request.settle(request.so_far)
        except BaseException as error:  # noqa: BLE001 - the engine is gone; every caller is told why
            self._failure = error
            for request in self._requests.values():
                request.settle(None, error)

    def _serve(self) -> bool:
        """Run the work that was handed over; wait for it while nothing can be decoded. False: close."""
        while True:
            try:
                work = self._work.get(block=self._updating or not self._engine.has_unfinished_requests())
            except queue.Empty:
                return True
            if work is None:
                return False
            work()


def _settle(future: asyncio.Future[T], result: T | None, error: BaseException | None) -> None:
    if future.done():
        return
    if error is None:
        future.set_result(cast("T", result))
    else:
        future.set_exception(error)
