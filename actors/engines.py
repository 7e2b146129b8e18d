"""vLLM behind one surface: in-process LLMEngine (CPU) or AsyncLLM (GPU). Runs inside a rollout worker.

The in-process engine is owned by one thread: requests, aborts and weight updates are handed to it and run between two
engine steps, so an update is atomic. AsyncLLM gives the same by ``collective_rpc``, which its core runs between steps.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Protocol, TypeVar, cast

from vllm import EngineArgs, RequestOutput, SamplingParams
from vllm.distributed.weight_transfer.base import WeightTransferInitRequest, WeightTransferUpdateRequest
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.exceptions import VLLMValidationError
from vllm.inputs import TokensPrompt
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.llm_engine import LLMEngine

from lpo_ray.weights import Plain

T = TypeVar("T")


class Engine(Protocol):
    """What a rollout worker asks of vLLM."""

    async def generate(self, request_id: str, token_ids: Sequence[int], params: SamplingParams) -> RequestOutput:
        """The finished output. Cancelling the await aborts the request; ValueError when vLLM refuses it."""
        ...

    async def join_senders(self, senders: Plain) -> None:
        """VLLM's ``init_weight_transfer_engine``; see transports.receivers."""
        ...

    async def begin_update(self) -> None:
        """``start_weight_update``: no token is decoded until ``finish_update``. An update given up is begun again."""
        ...

    async def update_weights(self, arrival: Plain) -> None:
        """``update_weights``: receive and load one bucket."""
        ...

    async def finish_update(self, version: str) -> list[dict[str, str]]:
        """``finish_weight_update``, drop every cached key and value, decode again; returns the digest of each tensor as
        it arrived, from each of the engine's processes.
        """
        ...

    def check(self) -> None:
        """Raise the error that ended the engine, if any."""
        ...

    def close(self) -> None:
        """End the engine."""
        ...


class InprocessEngine:
    """LLMEngine on a thread of its own."""

    def __init__(self, arguments: EngineArgs) -> None:
        """Blocks until the engine has loaded the model; raises what vLLM raises."""
        self._work: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._waiting: dict[str, tuple[asyncio.AbstractEventLoop, asyncio.Future[RequestOutput]]] = {}
        self._failure: BaseException | None = None
        self._updating = False
        ready: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, args=(arguments, ready), name="vllm-engine", daemon=True)
        self._thread.start()
        failure = ready.get()
        if failure is not None:
            raise failure

    async def generate(self, request_id: str, token_ids: Sequence[int], params: SamplingParams) -> RequestOutput:
        """See Engine."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[RequestOutput] = loop.create_future()
        self._waiting[request_id] = (loop, future)
        prompt = TokensPrompt(prompt_token_ids=list(token_ids))
        try:
            with _refusals():
                await self._on_thread(lambda: self._engine.add_request(request_id, prompt, params))
            return await future
        except asyncio.CancelledError:
            self._work.put(lambda: self._engine.abort_request([request_id]))
            raise
        finally:
            self._waiting.pop(request_id, None)

    async def join_senders(self, senders: Plain) -> None:
        """See Engine."""
        await self._rpc("init_weight_transfer_engine", init_info=senders)

    async def begin_update(self) -> None:
        """See Engine."""
        self._updating = True
        await self._rpc("restart_weight_update")

    async def update_weights(self, arrival: Plain) -> None:
        """See Engine."""
        await self._rpc("update_weights", update_info=arrival)

    async def finish_update(self, version: str) -> list[dict[str, str]]:
        """See Engine."""

        def finish() -> list[dict[str, str]]:
            self._engine.collective_rpc("finish_weight_update")
            self._reset_caches()
            self._engine.set_weight_version(version)
            self._updating = False
            return self._engine.collective_rpc("received_digests")

        return await self._on_thread(finish)

    def _reset_caches(self) -> None:
        if not self._engine.reset_prefix_cache(reset_running_requests=True):
            raise RuntimeError("vLLM did not reset its prefix cache; cached prompts would serve the old weights")
        self._engine.reset_encoder_cache()

    async def _rpc(self, method: str, **arguments: Plain) -> None:
        await self._on_thread(lambda: self._engine.collective_rpc(method, kwargs=arguments))

    def check(self) -> None:
        """See Engine."""
        if self._failure is not None:
            raise self._failure

    def close(self) -> None:
        """See Engine."""
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
        except BaseException as error:  # noqa: BLE001 - handed to the constructor's caller
            ready.put(error)
            return
        ready.put(None)
        try:
            while self._serve():
                for output in self._engine.step():
                    if output.finished:
                        loop, future = self._waiting[output.request_id]
                        loop.call_soon_threadsafe(partial(_settle, future, cast(RequestOutput, output), None))
        except BaseException as error:  # noqa: BLE001 - the engine is gone; every waiter must hear why
            self._failure = error
            for loop, future in list(self._waiting.values()):
                loop.call_soon_threadsafe(partial(_settle, future, None, error))

    def _serve(self) -> bool:
        """Run what was handed over; wait for it while there is nothing to decode, or nothing may be. False: close."""
        while True:
            try:
                work = self._work.get(block=self._updating or not self._engine.has_unfinished_requests())
            except queue.Empty:
                return True
            if work is None:
                return False
            work()


class AsynchronousEngine:
    """AsyncLLM: the engine core in a process of its own."""

    def __init__(self, arguments: AsyncEngineArgs) -> None:
        self._engine = AsyncLLM.from_engine_args(arguments)

    async def generate(self, request_id: str, token_ids: Sequence[int], params: SamplingParams) -> RequestOutput:
        """See Engine."""
        finished: RequestOutput | None = None
        prompt = TokensPrompt(prompt_token_ids=list(token_ids))
        with _refusals():
            async for output in self._engine.generate(prompt, params, request_id):
                finished = output
        if finished is None:
            raise RuntimeError(f"vLLM ended request {request_id} without an output")
        return finished

    async def join_senders(self, senders: Plain) -> None:
        """See Engine."""
        await self._engine.init_weight_transfer_engine(WeightTransferInitRequest(init_info=senders))

    async def begin_update(self) -> None:
        """See Engine. The scheduler is paused first: while layers are reloaded no step may run."""
        await self._engine.pause_generation(mode="keep", clear_cache=True)
        await self._engine.collective_rpc("restart_weight_update")

    async def update_weights(self, arrival: Plain) -> None:
        """See Engine."""
        await self._engine.update_weights(WeightTransferUpdateRequest(update_info=arrival))

    async def finish_update(self, version: str) -> list[dict[str, str]]:
        """See Engine."""
        await self._engine.finish_weight_update(weight_version=version)
        await self._engine.reset_prefix_cache(reset_running_requests=True)
        await self._engine.reset_encoder_cache()
        digests = await self._engine.collective_rpc("received_digests")
        await self._engine.resume_generation()
        return digests

    def check(self) -> None:
        """See Engine."""
        if self._engine.errored:
            raise self._engine.dead_error

    def close(self) -> None:
        """See Engine."""
        self._engine.shutdown()


@contextlib.contextmanager
def _refusals() -> Iterator[None]:
    """Validation errors of vLLM as ValueError: the request is at fault, not the engine."""
    try:
        yield
    except VLLMValidationError as error:
        raise ValueError(str(error)) from error


def _settle(future: asyncio.Future[T], result: T | None, error: BaseException | None) -> None:
    if future.done():
        return
    if error is None:
        future.set_result(cast("T", result))
    else:
        future.set_exception(error)
