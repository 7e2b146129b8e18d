"""Load balancer: the next group goes to the worker with the fewest responses in flight that has room; FIFO.

A worker is given as many responses as keep it busy. Further groups wait here, so that a joiner finds work at once and a
leaver has little to hand back. O(log members) for each group.

A turn prefers the worker that has its conversation's prefix. Room that a worker has is never kept free for one that
waits: it is given at once, but to the first of the NEAR oldest that prefer this worker, before the oldest of all. So a
turn gets its own worker when that frees up at about the same time, and any other when nobody else wants it, or when
NEAR have gone before it.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic

from lpo_ray.errors import LpoRayError
from lpo_ray.rollout.member import Member, W

NEAR = 16
"""of those who wait the longest; one of them lets as many go before it, to workers that they prefer"""


@dataclass(slots=True, eq=False)
class _Waiting(Generic[W]):
    """A group, or a turn, that waits for a member."""

    size: int
    """its responses"""
    preferred: Member[W] | None
    ticket: asyncio.Future[Member[W]]
    passed: int = 0
    """how many went before it while it was the oldest"""


class LoadBalancer(Generic[W]):
    """Load balancer over members, with a queue of the groups that wait."""

    def __init__(self, slots: int) -> None:
        """``slots``: responses that a member is given at once; a group that is larger goes to one that has none."""
        self._slots = slots
        self._by_load: list[tuple[int, int, int, Member[W]]] = []
        """heap of (responses in flight, worker, number of the entry, member); what is out of date is skipped"""
        self._entries = itertools.count()
        self._limit = 0
        """entries of the heap from which on those that are out of date are dropped"""
        self._waiting: deque[_Waiting[W]] = deque()
        """the oldest first"""

    @property
    def num_waiting(self) -> int:
        """Number of groups that wait for room."""
        return sum(not waiting.ticket.done() for waiting in self._waiting)

    async def take(self, size: int, patience: Callable[[], float], preferred: Member[W] | None = None) -> Member[W]:
        """Wait for a member with room for ``size`` responses, which count as its own until ``give_back``: the one that
        is ``preferred`` if it has room now, or soon.

        ``patience``: seconds that the group may still wait, asked again when they are over. Raises TimeoutError once
        there are none, or what ``fail`` is given meanwhile.
        """
        if not self._waiting and (member := self._with_room(size, preferred)) is not None:
            self._charge(member, size)
            return member
        ticket: asyncio.Future[Member[W]] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Waiting(size, preferred, ticket))
        try:
            while not (await asyncio.wait({ticket}, timeout=patience()))[0]:
                if patience() <= 0:
                    raise TimeoutError
            return ticket.result()
        except asyncio.CancelledError:
            if ticket.done() and not ticket.cancelled() and ticket.exception() is None:
                self.give_back(ticket.result(), size)
            raise
        finally:
            if ticket.cancel():  # the groups behind it may have room
                self.offer([])

    def give_back(self, member: Member[W], size: int) -> None:
        """Free the room of ``size`` responses that were taken and have ended, well or not."""
        member.responses -= size
        self.offer([member])

    def offer(self, members: Sequence[Member[W]]) -> None:
        """Give waiting groups, the oldest first, to members whose load has changed or that have begun to serve."""
        for member in members:
            self._enter(member)
        while self._waiting:
            oldest = self._waiting[0]
            if oldest.ticket.done():
                self._waiting.popleft()
                continue
            found = self._with_room(oldest.size, oldest.preferred)
            if found is None:
                return
            chosen = self._next_for(found)
            oldest.passed += chosen is not oldest
            self._waiting.remove(chosen)
            self._charge(found, chosen.size)
            chosen.ticket.set_result(found)

    def fail(self, failure: LpoRayError) -> None:
        """Raise ``failure`` in every ``take`` that waits: no member will ever have room."""
        for waiting in self._waiting:
            if not waiting.ticket.done():
                waiting.ticket.set_exception(failure)
        self._waiting.clear()

    def _next_for(self, member: Member[W]) -> _Waiting[W]:
        """Choose who gets the room of ``member``, which has enough for the oldest."""
        oldest = self._waiting[0]
        if oldest.preferred is member or oldest.passed >= NEAR:
            return oldest
        near = (one for one in itertools.islice(self._waiting, NEAR) if one.preferred is member)
        fitting = (one for one in near if not one.ticket.done() and self._fits(member, one.size))
        return next(fitting, oldest)

    def _fits(self, member: Member[W], size: int) -> bool:
        return member.serves and member.responses + size <= self._slots

    def _with_room(self, size: int, preferred: Member[W] | None = None) -> Member[W] | None:
        if preferred is not None and self._fits(preferred, size):
            return preferred
        while self._by_load:
            load, *_, member = self._by_load[0]
            if load == member.responses and member.serves:
                return member if not load or load + size <= self._slots else None
            heapq.heappop(self._by_load)
        return None

    def _charge(self, member: Member[W], size: int) -> None:
        member.responses += size
        self._enter(member)

    def _enter(self, member: Member[W]) -> None:
        if len(self._by_load) > self._limit:
            current = {entry[1]: entry for entry in self._by_load if entry[0] == entry[3].responses and entry[3].serves}
            self._by_load = list(current.values())
            heapq.heapify(self._by_load)
            self._limit = 8 * (len(self._by_load) + 1)
        heapq.heappush(self._by_load, (member.responses, member.index, next(self._entries), member))
