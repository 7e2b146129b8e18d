"""An event loop in virtual time: when nothing can run now, its clock jumps to the next timer.

Hours of waiting take the time that the code between them takes. When nothing can run and no timer is set, every task
waits for another, which real time would hide as a hang: here it is a Deadlock.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor
from typing import ParamSpec, TypeVar

T = TypeVar("T")
P = ParamSpec("P")


class Deadlock(RuntimeError):
    """Error of a loop in which every task waits for another, and no timer will end it."""


class _Selector(selectors.DefaultSelector):
    """Selector that never waits, and adds up how long it was asked to."""

    def __init__(self) -> None:
        super().__init__()
        self.waited = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        found = super().select(0)
        if not found and timeout is None:
            raise Deadlock("nothing can run and no timer is set: every task waits for another")
        if not found and timeout is not None and timeout > 0:
            self.waited += timeout
        return found


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """Event loop in virtual time. Work for threads is done at once, in its own thread, so a run is deterministic."""

    def __init__(self) -> None:
        self._virtual = _Selector()
        super().__init__(self._virtual)

    def time(self) -> float:
        """Return the virtual seconds since the loop was made."""
        return self._virtual.waited

    def run_in_executor(  # pyright: ignore[reportIncompatibleMethodOverride] - typeshed's TypeVarTuple, older style here
        self, executor: Executor | None, func: Callable[..., T], *args: object
    ) -> asyncio.Future[T]:
        """Compute ``func`` now, and return its result."""
        future: asyncio.Future[T] = self.create_future()
        try:
            future.set_result(func(*args))
        except Exception as error:  # noqa: BLE001 - handed to the task that awaits it, whatever it is
            future.set_exception(error)
        return future


def run(work: Coroutine[object, object, T]) -> T:
    """Run ``work`` as asyncio.run does, in virtual time. Raises Deadlock besides what ``work`` raises."""
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        return runner.run(work)
