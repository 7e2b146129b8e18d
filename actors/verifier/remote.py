"""The verifier service and the target builder as components: both are replaced when they die, and asked again."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ray.actor import ActorProxy

from actors.learner.target_builder import TargetBuilder
from actors.runtime.remote_calls import call_each
from actors.runtime.supervised import RestartableActor
from actors.verifier.service import VerifierService
from lpo_ray.common.restart_budget import RestartRule
from lpo_ray.interfaces import Events
from lpo_ray.records import Anchor, BusyWorker, Key, PromptGroup, ScoredGroup, TargetGroup

BUILD_SECONDS = 120.0


class RemoteVerifier:
    """Verifier over the service actor."""

    def __init__(
        self,
        make: Callable[[int], ActorProxy[VerifierService]],
        num_processes: int,
        deadline_of: Callable[[int], float],
        rule: RestartRule,
        events: Events,
    ) -> None:
        """``make``: the actor, with so many processes. ``deadline_of``: for one group, with so many processes, when all
        groups of a step come at once; in seconds.
        """
        self.num_processes, self._deadline_of = num_processes, deadline_of
        self.groups: dict[Key, float] = {}
        """being scored, and since when in unix seconds"""
        self.service = RestartableActor(
            "verifier service", lambda: make(self.num_processes), lambda actor: actor.start.remote(), rule, events
        )

    async def score(self, group: PromptGroup) -> ScoredGroup:
        """See interfaces.Verifier. Rewards and details come back. A service that is gone is replaced, and scores the
        group again: nothing of it is lost.
        """
        what, seconds = f"score {group.prompt.prompt_id}", self._deadline_of(self.num_processes)
        self.groups[group.key] = time.time()
        try:
            scores = await self.service.call(lambda actor: actor.score.remote(group), what, seconds)
            return ScoredGroup(group, *scores)
        finally:
            self.groups.pop(group.key, None)

    async def scale(self, num_processes: int) -> str:
        """Give the pool another number of processes."""
        self.num_processes = num_processes
        await self.service.call(lambda actor: actor.resize.remote(num_processes), "resize its pool", BUILD_SECONDS)
        return f"{num_processes} verifier processes"

    def busy(self) -> list[BusyWorker]:
        """The service, when it has groups to score."""
        return [BusyWorker.of_groups(self.service.name, self.groups, self.service.process)] if self.groups else []

    async def close(self) -> None:
        """End the service's pool, then the service. Never raises."""
        await call_each([self.service.handle.close.remote()], who=[self.service.name], what="close", seconds=10)
        await self.service.close()


@dataclass(slots=True)
class RemoteTargetBuilder:
    """TargetBuilder over its actor."""

    builder: RestartableActor[TargetBuilder]

    async def build(self, groups: Sequence[ScoredGroup], anchor: Anchor, step: int) -> list[TargetGroup]:
        """See interfaces.TargetBuilder."""
        return await self.builder.call(lambda actor: actor.build.remote(groups, anchor, step), "build", BUILD_SECONDS)

    def holder(self) -> BusyWorker:
        """The builder, as the one that is at work."""
        return BusyWorker(self.builder.name, "builds targets", None, self.builder.process)
