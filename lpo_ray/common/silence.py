"""Limits on silence: work may take as long as it likes while something is heard of it.

How long work takes is decided by the configuration: the length of responses, the size of a model. Silence is a fault.
A worker is asked eight times within its limit how far it is. One that gets on with something in every half of the limit
is never given up; one that stops is given up within the limit of its last sign of life.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")
LOOKS = 8
"""times that a worker is asked within its limit"""
ASSURED = 0.5
"""share of its limit within which a worker must get on with something, to be sure that it is never given up"""
ROUNDING = 1e-6
"""seconds that are no time"""


class Silent(TimeoutError):
    """Nothing was heard of a worker for as long as it may be silent."""


@dataclass(frozen=True, slots=True)
class Progress:
    """A worker's account of what it has got done."""

    done: Hashable
    """differs once it has got something done, such as a count of tokens"""
    is_idle: bool = False
    """nothing is up to it: it has no work, or waits for others"""
    holds: frozenset[Hashable] | None = None
    """names of the calls that it works on; None: all that it was given"""


@dataclass(slots=True, eq=False)
class _Call(Generic[T]):
    """A call that is not answered yet."""

    name: Hashable
    future: asyncio.Future[T]
    heard_at: float


class Watch:
    """Watch over one worker, or several that work together, while they have calls to answer."""

    def __init__(self, ask: Callable[[], Awaitable[Progress | None]], seconds: float, setting: str) -> None:
        """``ask``: how far it is, or None when it does not say; must not raise. ``seconds``: how long it may be silent,
        by the setting of that name.
        """
        self._ask, self.seconds, self.setting = ask, seconds, setting
        self._calls: set[_Call] = set()
        self._heard_at = 0.0

    async def result(self, work: Awaitable[T], name: Hashable = None) -> T:
        """Return the result of a call. Raises Silent, with ``work`` cancelled, when the worker gets on with nothing."""
        now = asyncio.get_running_loop().time
        if not self._calls:
            self._heard_at = now()
            self._listener = asyncio.ensure_future(self._listen())
        call = _Call(name, asyncio.ensure_future(work), now())
        self._calls.add(call)
        try:
            while not call.future.done():
                left = self._heard_at + self.seconds - now()
                if left <= ROUNDING:
                    raise Silent
                await asyncio.wait({call.future}, timeout=left)
            self._heard_at = now()
            return call.future.result()
        finally:
            self._calls.discard(call)
            call.future.cancel()
            call.future.add_done_callback(retrieve_exception)
            if not self._calls:
                self._listener.cancel()

    def silence_of(self, name: Hashable) -> float:
        """Seconds since the worker, holding the call ``name``, gave a sign of life; infinite: it has no such call."""
        heard_at = max((call.heard_at for call in self._calls if call.name == name), default=-math.inf)
        return asyncio.get_running_loop().time() - heard_at

    async def _listen(self) -> None:
        """Ask again and again. What has changed since the last answer was done after it."""
        now = asyncio.get_running_loop().time
        last: Progress | None = None
        answered_at = 0.0
        while True:
            await asyncio.sleep(self.seconds / LOOKS)
            progress = await self._ask()
            if progress is None:
                continue
            if last is not None and (progress.is_idle or progress.done != last.done):
                self._heard_at = max(self._heard_at, answered_at)
                for call in self._calls:
                    if progress.holds is None or call.name in progress.holds:
                        call.heard_at = max(call.heard_at, answered_at)
            last, answered_at = progress, now()


def retrieve_exception(work: asyncio.Future[T]) -> None:
    """Done-callback: retrieve the exception, so that asyncio does not report it as unhandled."""
    if not work.cancelled():
        work.exception()
