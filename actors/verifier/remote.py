"""The verifier service as a component: it is replaced when it dies, and then asked again."""

from __future__ import annotations

import time
from collections.abc import Callable

from ray.actor import ActorProxy
from typing_extensions import override

from actors.runtime.remote_calls import call_each
from actors.runtime.supervised import RestartableActor
from actors.verifier.service import VerifierService
from lpo_ray.common.restart_budget import RestartRule
from lpo_ray.interfaces import Events, Verifier
from lpo_ray.records import BusyWorker, Key, PromptGroup, ScoredGroup

RESIZE_SECONDS = 120.0
"""for the service to make a pool of another size"""


class RemoteVerifier(Verifier):
    """Verifier over the service's actor."""

    def __init__(
        self,
        make: Callable[[int], ActorProxy[VerifierService]],
        num_processes: int,
        deadline_of: Callable[[int], float],
        rule: RestartRule,
        events: Events,
    ) -> None:
        """``make``: makes the actor, with so many processes. ``deadline_of``: seconds for one group, with so many
        processes, when all groups of a step come at once.
        """
        self.num_processes, self._deadline_of = num_processes, deadline_of
        self.groups: dict[Key, float] = {}
        """groups that are being scored -> since when, in unix seconds"""
        self.service = RestartableActor(
            "verifier service", lambda: make(self.num_processes), lambda actor: actor.start.remote(), rule, events
        )

    @override
    async def score(self, group: PromptGroup) -> ScoredGroup:
        # Only rewards and details come back, so a service that was replaced can score the group again.
        what, seconds = f"score {group.prompt.prompt_id}", self._deadline_of(self.num_processes)
        self.groups[group.key] = time.time()
        try:
            scores = await self.service.call(lambda actor: actor.score.remote(group), what, seconds)
            return ScoredGroup(group, *scores)
        finally:
            self.groups.pop(group.key, None)

    async def scale(self, num_processes: int) -> str:
        """Give the service's pool another number of processes, and say so."""
        self.num_processes = num_processes
        await self.service.call(lambda actor: actor.resize.remote(num_processes), "resize its pool", RESIZE_SECONDS)
        return f"{num_processes} verifier processes"

    def busy(self) -> list[BusyWorker]:
        """Return the service while it has groups to score."""
        return [BusyWorker.of_groups(self.service.name, self.groups, self.service.process)] if self.groups else []

    async def close(self) -> None:
        """End the service's pool, then the service. Never raises."""
        await call_each([self.service.handle.close.remote()], who=[self.service.name], what="close", seconds=10)
        await self.service.close()
