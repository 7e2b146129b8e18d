"""The driver's side of the control actor: it reports the run's status, carries out orders and answers them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping

import ray
from ray.actor import ActorProxy

from actors.control.run_control import CALL_SECONDS, Order, RunControl, claim, control_name
from actors.runtime.remote_calls import call
from lpo_ray.errors import ComponentDied, ComponentFailed, DeadlineExceeded, LpoRayError, RunBusy
from lpo_ray.telemetry.log import LogLine

Scale = Callable[[str, int], Awaitable[str]]


class RunDriver:
    """Driver of one run, towards its control actor: the ``Steerable`` that ``lpo_ray.run.train`` is given."""

    def __init__(self, run: str, note: Callable[[str], None], log: Callable[[LogLine], None]) -> None:
        """``note``: writes a line for the user. ``log``: takes what workers logged."""
        self._run, self._note, self._log = run, note, log
        self._driver = f"{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex[:8]}"
        self._answers: dict[int, str | LpoRayError] = {}

    @contextlib.asynccontextmanager
    async def attend(self, status: Callable[[], Mapping[str, object]], scale: Scale) -> AsyncIterator[None]:
        """Let others ask and scale the run until the context ends. Raises RunBusy when another driver has it."""
        handle = await claim(self._run, self._driver, status())
        task = asyncio.get_running_loop().create_task(self._serve(handle, status, scale))
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait({task})
            with contextlib.suppress(LpoRayError):
                await self._exchange(handle, status())
            ray.kill(handle)  # pyright: ignore[reportArgumentType] - an ActorProxy is an ActorHandle at run time

    async def _serve(
        self, handle: ActorProxy[RunControl], status: Callable[[], Mapping[str, object]], scale: Scale
    ) -> None:
        silent = False
        while True:
            try:
                orders = await self._exchange(handle, status())
                silent = False
            except RunBusy as busy:
                self._note(f"{busy}; this driver cannot be asked any more")
                return
            except (ComponentDied, ComponentFailed, DeadlineExceeded) as error:
                if not silent:
                    self._note(f"the run cannot be asked or scaled from outside: {error}")
                silent = True
                await asyncio.sleep(5)
                if isinstance(error, ComponentDied):  # its node is gone
                    with contextlib.suppress(LpoRayError):
                        handle = await claim(self._run, self._driver, status())
                continue
            for order in orders:
                self._answers[order.number] = await self._carried_out(order, scale)

    async def _exchange(self, handle: ActorProxy[RunControl], status: Mapping[str, object]) -> list[Order]:
        answers = dict(self._answers)
        said = handle.exchange.remote(self._driver, status, answers)
        orders, lines = await call(said, who=control_name(self._run), what="exchange", seconds=CALL_SECONDS)
        for number in answers:
            del self._answers[number]
        for line in lines:
            self._log(line)
        return orders

    async def _carried_out(self, order: Order, scale: Scale) -> str | LpoRayError:
        try:
            answer = await scale(order.role, order.count)
        except LpoRayError as error:
            return error
        self._note(f"scaled: {answer}")
        return answer
