"""The rollout workers as one RolloutEngine: each group goes to the worker with the fewest groups in flight."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ray.actor import ActorProxy

from actors.calls import call
from actors.rollout_worker import RolloutWorker
from lpo_ray.records import Prompt, PromptGroup, Sampling


@dataclass(slots=True)
class Member:
    """A worker of the pool."""

    name: str
    handle: ActorProxy[RolloutWorker]
    in_flight: int = 0


class RolloutPool:
    """RolloutEngine over Ray. A worker that dies ends the run with its cause."""

    def __init__(self, members: Sequence[Member], deadline_seconds: float) -> None:
        self.members = list(members)
        self._deadline = deadline_seconds

    async def sample(self, prompt: Prompt, sampling: Sampling, attempt: int) -> PromptGroup:
        """See interfaces.RolloutEngine. Waits at most the rollout deadline."""
        member = min(self.members, key=lambda member: member.in_flight)
        member.in_flight += 1
        try:
            return await call(
                member.handle.sample.remote(prompt, sampling, attempt),
                who=member.name,
                what=f"sample {prompt.prompt_id}",
                seconds=self._deadline,
            )
        finally:
            member.in_flight -= 1
