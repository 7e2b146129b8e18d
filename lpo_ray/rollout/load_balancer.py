"""Load balancer: the next group goes to the worker with the fewest responses in flight that has room; FIFO.

A worker is given as many responses as keep it busy. Further groups wait here, so that a joiner finds work at once and a
leaver has little to hand back. O(log members) for each group.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections import deque
from collections.abc import Callable, Sequence
from typing import Generic

from lpo_ray.errors import LpoRayError
from lpo_ray.rollout.member import Member, W


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
        self._waiting: deque[tuple[int, asyncio.Future[Member[W]]]] = deque()
        """groups that wait, by their responses"""

    @property
    def num_waiting(self) -> int:
        """Number of groups that wait for room."""
        return sum(not ticket.done() for _, ticket in self._waiting)

    async def take(self, size: int, patience: Callable[[], float], preferred: Member[W] | None = None) -> Member[W]:
        """Wait for a member with room for ``size`` responses, which count as its own until ``give_back``: the one that
        is ``preferred`` if it has room now.

        ``patience``: seconds that the group may still wait, asked again when they are over. Raises TimeoutError once
        there are none, or what ``fail`` is given meanwhile.
        """
        if not self._waiting and (member := self._with_room(size, preferred)) is not None:
            self._charge(member, size)
            return member
        ticket: asyncio.Future[Member[W]] = asyncio.get_running_loop().create_future()
        self._waiting.append((size, ticket))
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
            size, ticket = self._waiting[0]
            if not ticket.done():
                found = self._with_room(size)
                if found is None:
                    return
                self._charge(found, size)
                ticket.set_result(found)
            self._waiting.popleft()

    def fail(self, failure: LpoRayError) -> None:
        """Raise ``failure`` in every ``take`` that waits: no member will ever have room."""
        for _, ticket in self._waiting:
            if not ticket.done():
                ticket.set_exception(failure)
        self._waiting.clear()

    def _with_room(self, size: int, preferred: Member[W] | None = None) -> Member[W] | None:
        if preferred is not None and preferred.serves and preferred.responses + size <= self._slots:
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
