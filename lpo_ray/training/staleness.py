"""Staleness: how far sampling may run ahead of learning. Admission before sampling, the hard bound at consumption."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from lpo_ray.records import ScoredGroup


@dataclass(slots=True, eq=False)
class GateSlot:
    """Memory that one group in flight may take. Given out by ``StalenessGate.acquire``."""

    num_bytes: int


class StalenessGate:
    """Gate that admits groups to sampling while both their number and their bytes are within capacity.

    The number is groups_per_step x (max_staleness + 1): with max_staleness = 0 the next step's groups are sampled from
    exactly the weights that follow from this step's. A group counts as ``largest_group`` bytes, the most it can have,
    until it has arrived (``resize``); so what is held never exceeds ``max_bytes``.
    """

    def __init__(self, capacity: int, max_bytes: int, largest_group: int) -> None:
        """Raises ValueError for a capacity that never admits anything."""
        if capacity < 1 or not 0 <= largest_group <= max_bytes:
            raise ValueError(
                f"capacity={capacity} groups and {max_bytes} bytes, for groups of up to {largest_group} bytes; "
                "expected room for at least one group"
            )
        self.capacity, self.max_bytes, self.largest_group = capacity, max_bytes, largest_group
        self.num_bytes = 0
        self._held: set[GateSlot] = set()
        self._room = asyncio.Event()

    @property
    def in_flight(self) -> int:
        """Number of groups that have a slot."""
        return len(self._held)

    async def acquire(self) -> GateSlot:
        """Take one slot. Waits for room, which ``release`` (after each publish) and ``resize`` make."""
        while len(self._held) >= self.capacity or self.num_bytes + self.largest_group > self.max_bytes:
            self._room.clear()
            await self._room.wait()
        self._held.add(slot := GateSlot(self.largest_group))
        self.num_bytes += slot.num_bytes
        return slot

    def resize(self, slot: GateSlot, num_bytes: int) -> None:
        """Correct the size of a slot: its group has arrived and takes ``num_bytes``."""
        self.num_bytes += num_bytes - slot.num_bytes
        slot.num_bytes = num_bytes
        self._room.set()

    def release(self, slot: GateSlot) -> None:
        """Free a slot. Raises ValueError for one that is not taken, a bug of the caller."""
        if slot not in self._held:
            raise ValueError(f"released a slot of {slot.num_bytes} bytes that is not taken")
        self._held.remove(slot)
        self.num_bytes -= slot.num_bytes
        self._room.set()


class ReadyGroups:
    """Queue of scored groups that wait to be trained, the oldest first, so that they do not grow too old meanwhile."""

    def __init__(self) -> None:
        self._queue: asyncio.PriorityQueue[tuple[int, str, int, ScoredGroup]] = asyncio.PriorityQueue()

    def put(self, scored: ScoredGroup) -> None:
        """Add a group."""
        group = scored.group
        self._queue.put_nowait((group.oldest_version, group.prompt.prompt_id, group.attempt, scored))

    def __len__(self) -> int:
        return self._queue.qsize()

    async def take_fresh(self, step: int, max_staleness: int, on_stale: Callable[[ScoredGroup], None]) -> ScoredGroup:
        """Wait for the oldest group whose oldest token is at most ``max_staleness`` steps behind ``step``.

        Groups finish out of order, so admission alone cannot keep the bound: older ones go to ``on_stale`` (which must
        issue their prompts again, or this waits for ever) and are never trained.
        """
        while True:
            *_, scored = await self._queue.get()
            if step - scored.group.oldest_version <= max_staleness:
                return scored
            on_stale(scored)
