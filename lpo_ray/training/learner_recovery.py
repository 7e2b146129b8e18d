"""Work on the learner that is done again when the learner is lost in it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from lpo_ray.errors import ComponentDied, LearnerLost
from lpo_ray.interfaces import Observer

T = TypeVar("T")
Recover = Callable[[LearnerLost], Awaitable[None]]


async def no_recovery(lost: LearnerLost) -> None:
    """Raise ComponentDied: a learner that is lost stays lost."""
    raise ComponentDied(lost.who, lost.cause)


class LearnerRecovery:
    """Restores a lost learner to the last commit, inside the await of the work that lost it."""

    def __init__(self, observer: Observer) -> None:
        self._observer = observer
        self._lock = asyncio.Lock()
        self._count = 0
        self.recover: Recover = no_recovery
        """starts the learner again, with the weights of the last commit"""

    async def run(self, work: Callable[[], Awaitable[T]]) -> T:
        """Return the result of ``work``. When the learner is lost in it, restore the learner and run ``work`` again.
        When several lose it together, the first restores it and the others wait.
        """
        while True:
            before = self._count
            try:
                return await work()
            except LearnerLost as error:
                lost = error
            async with self._lock:
                while self._count == before:
                    try:
                        with self._observer.stage("project"):
                            await self.recover(lost)
                        self._count += 1
                    except LearnerLost as again:
                        lost = again
