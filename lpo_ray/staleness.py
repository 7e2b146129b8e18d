"""How far sampling may run ahead of learning: admission before sampling, the hard bound at consumption."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from lpo_ray.records import ScoredGroup


class StalenessGate:
    """Admits groups to sampling. Capacity = groups_per_step x (max_staleness + 1).

    ``acquire`` waits for a free place; ``release`` frees places once the weights that follow from the groups are
    published. With max_staleness = 0 the next step's groups are therefore sampled from exactly those weights.
    """

    def __init__(self, groups_per_step: int, max_staleness: int) -> None:
        """Raises ValueError for sizes that admit nothing."""
        if groups_per_step < 1 or max_staleness < 0:
            raise ValueError(
                f"groups_per_step={groups_per_step}, max_staleness={max_staleness}; expected >= 1 and >= 0"
            )
        self.capacity = groups_per_step * (max_staleness + 1)
        self._places = asyncio.Semaphore(self.capacity)
        self.in_flight = 0

    async def acquire(self) -> None:
        """Take one place. Waits for ``release``; the loop calls it after each publish."""
        await self._places.acquire()
        self.in_flight += 1

    def release(self, groups: int) -> None:
        """Free ``groups`` places. More than are taken is a bug of the caller: ValueError."""
        if groups > self.in_flight:
            raise ValueError(f"released {groups} places of {self.in_flight} taken")
        self.in_flight -= groups
        for _ in range(groups):
            self._places.release()


async def take_fresh(
    queue: asyncio.Queue[ScoredGroup],
    count: int,
    *,
    step: int,
    max_staleness: int,
    on_stale: Callable[[ScoredGroup], None],
) -> list[ScoredGroup]:
    """The next ``count`` groups whose oldest token is at most ``max_staleness`` steps behind ``step``.

    Groups finish out of order, so admission alone cannot hold the bound: older ones go to ``on_stale`` (which must
    reissue them, or this waits for ever) and are never trained. Returned in prompt order, so that a step's batch does
    not depend on which response finished first.
    """
    fresh: list[ScoredGroup] = []
    while len(fresh) < count:
        scored = await queue.get()
        if step - scored.group.oldest_version > max_staleness:
            on_stale(scored)
        else:
            fresh.append(scored)
    return sorted(fresh, key=lambda scored: scored.group.prompt.prompt_id)
