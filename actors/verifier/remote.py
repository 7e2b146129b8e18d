"""The verifier service as a component: it is replaced when it dies, and then asked again."""

from __future__ import annotations

import asyncio

import ray
from typing_extensions import override

from actors.runtime.watched_service import WatchedPool
from actors.verifier.service import VerifierService
from lpo_ray.interfaces import Verifier
from lpo_ray.records import PromptGroup, ScoredGroup

STORED = 100 * 1024
"""bytes of an argument from which on Ray puts it into its store"""


class RemoteVerifier(WatchedPool[VerifierService], Verifier):
    """Verifier over the service's actor."""

    KIND = "verifier"
    SILENCE_SETTING = "by verifier.deadline_seconds"

    @override
    async def score(self, group: PromptGroup) -> ScoredGroup:
        # Only rewards and details come back, so a service that was replaced can score the group again.
        what = f"score {group.prompt.prompt_id}"
        with self.groups.during(group.key):
            # What Ray would copy into its store anyway, a thread does: the loop goes on meanwhile.
            sent = group if group.num_bytes < STORED else await asyncio.to_thread(ray.put, group)
            scores = await self._asked(lambda actor: actor.score.remote(sent), what, group.key)
            return ScoredGroup(group, *scores)
