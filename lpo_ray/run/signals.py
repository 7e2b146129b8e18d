"""Signal handling, and picking the root cause out of an exception group."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Coroutine
from typing import Protocol, TypeVar

from lpo_ray.errors import Interrupted, LpoRayError

T = TypeVar("T")


class Stoppable(Protocol):
    """Work that is asked to stop at the first signal: the training loop."""

    def stop(self, signal_number: int) -> None:
        """End soon, with everything written."""
        ...


class Signals:
    """Handler of SIGINT and SIGTERM: asks the loop to stop. Without a loop, or at the second signal, it cancels the
    work.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self.loop: Stoppable | None = None
        self.step = 0
        self._task: asyncio.Task[object] | None = None

    def install(self, task: asyncio.Task[T]) -> None:
        """Handle signals for ``task`` from now on."""
        self._task = task
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, self._on_signal, number)

    def _on_signal(self, number: int) -> None:
        again, self.received = self.received is not None, number
        if self.loop is None or again:
            assert self._task is not None
            self._task.cancel()
        else:
            self.loop.stop(number)


def interrupt_on_signal() -> None:
    """Let SIGINT and SIGTERM raise Interrupted wherever the program is, until an event loop takes over."""

    def interrupt(number: int, _: object) -> None:
        call_off_ray_alarm()
        raise Interrupted(number, 0)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, interrupt)


def call_off_ray_alarm() -> None:
    """Cancel the alarm of Ray's failure handler (abseil's). A signal between Ray's start and interrupt_on_signal passes
    through that handler, which sets an alarm that aborts the process 3 s later.
    """
    signal.alarm(0)


def run_until_signal(work: Callable[[Signals], Coroutine[object, object, T]]) -> T:
    """Run ``work`` in an event loop. Raises Interrupted after a signal, else the first error of a task group."""

    async def main() -> T:
        signals = Signals()
        task = asyncio.ensure_future(work(signals))
        signals.install(task)
        try:
            return await task
        except asyncio.CancelledError:
            if signals.received is None:
                raise
            raise Interrupted(signals.received, signals.step) from None
        except BaseExceptionGroup as group:
            raise first_cause(group) from group

    return asyncio.run(main())


def first_cause(group: BaseExceptionGroup) -> BaseException:
    """Find the error that ended a task group: one of ours if there is one, else the first."""
    errors: list[BaseException] = []
    for error in group.exceptions:
        errors.append(first_cause(error) if isinstance(error, BaseExceptionGroup) else error)
    return next((error for error in errors if isinstance(error, LpoRayError)), errors[0])
