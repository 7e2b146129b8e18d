"""The verifier service as a component: it is replaced when it dies, and then asked again."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable

import ray
from ray.actor import ActorProxy
from typing_extensions import override

from actors.runtime.remote_calls import call, call_each
from actors.runtime.start_watch import StartWatch
from actors.runtime.supervised import RestartableActor
from actors.verifier.service import VerifierService
from lpo_ray.common.restart_budget import RestartRule
from lpo_ray.common.silence import Progress, Watch
from lpo_ray.errors import LpoRayError
from lpo_ray.interfaces import Events, Verifier
from lpo_ray.records import BusyWorker, Key, PromptGroup, ScoredGroup

STORED = 100 * 1024
"""bytes of an argument from which on Ray puts it into its store"""
RESIZE_SECONDS = 120.0
"""for the service to make a pool of another size"""


class RemoteVerifier(Verifier):
    """Verifier over the service's actor."""

    def __init__(
        self,
        make: Callable[[int], ActorProxy[VerifierService]],
        num_processes: int,
        silence_seconds: float,
        starts: StartWatch,
        start_seconds: float,
        rule: RestartRule,
        events: Events,
    ) -> None:
        """``make``: makes the actor, with so many processes. ``silence_seconds``: time in which a service that has
        groups gives a verdict.
        """
        self.num_processes = num_processes
        self._watch = Watch(self._progress, silence_seconds, "by verifier.deadline_seconds")
        self.groups: dict[Key, float] = {}
        """groups that are being scored -> since when, in unix seconds"""
        self.service = RestartableActor(
            "verifier service", lambda: make(self.num_processes), lambda actor: actor.start.remote(), rule, events,
            starts, start_seconds,
        )  # fmt: skip

    @override
    async def score(self, group: PromptGroup) -> ScoredGroup:
        # Only rewards and details come back, so a service that was replaced can score the group again.
        what = f"score {group.prompt.prompt_id}"
        self.groups[group.key] = time.time()
        try:
            # What Ray would copy into its store anyway, a thread does: the loop goes on meanwhile.
            sent = group if group.num_bytes < STORED else await asyncio.to_thread(ray.put, group)
            scores = await self.service.call(
                lambda actor: actor.score.remote(sent), what, watch=self._watch, name=group.key
            )
            return ScoredGroup(group, *scores)
        finally:
            self.groups.pop(group.key, None)

    def silence_of(self, key: Key) -> float:
        """Seconds since the service, scoring a group, gave a sign of life; infinite when it does not have it. None pass
        while the service is being replaced: that has limits of its own.
        """
        silence = self._watch.silence_of(key)
        return 0.0 if key in self.groups and math.isinf(silence) else silence

    async def _progress(self) -> Progress | None:
        try:
            return await call(self.service.handle.progress.remote(), who=self.service.name, what="say how far it is")
        except LpoRayError:
            return None

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
