"""Rollout workers as one RolloutEngine: each group goes to the worker with the fewest responses in flight.

A pool is a roster of workers (``roster.py``) that come and go (``lifecycle.py``) and sample (here). While it is scaled
to zero, groups wait.
"""

from __future__ import annotations

import math
import time
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Generic

from typing_extensions import override

from lpo_ray.common.silence import Silent
from lpo_ray.errors import ComponentDied, ComponentFailed, DeadlineExceeded, GroupLost, NoProgress
from lpo_ray.interfaces import RolloutEngine
from lpo_ray.records import Key, Prompt, PromptGroup, Sampling
from lpo_ray.rollout.lifecycle import Lifecycle
from lpo_ray.rollout.member import Member, W
from lpo_ray.rollout.roster import PoolSettings

__all__ = ["PoolSettings", "RolloutPool"]


class RolloutPool(Lifecycle[W], RolloutEngine):
    """RolloutEngine over workers. Make it inside a running event loop."""

    @override
    async def sample(self, prompt: Prompt, sampling: Sampling, attempt: int) -> PromptGroup:
        """Wait for a worker with room, then sample with it, for as long as it gets on with its groups."""
        if self._failure is not None:
            raise self._failure
        self._queued.add(key := (prompt.prompt_id, attempt))
        try:
            member = await self._balance.take(sampling.group_size, self._patience)
        except TimeoutError:
            raise self._nobody_serves() from None
        finally:
            self._queued.discard(key)
        try:
            return await self.sample_with(member, prompt, sampling, attempt)
        finally:
            self._balance.give_back(member, sampling.group_size)

    async def sample_with(self, member: Member[W], prompt: Prompt, sampling: Sampling, attempt: int) -> PromptGroup:
        """Sample with ``member``. It is taken out when it fails; the group is lost then."""
        key = (prompt.prompt_id, attempt)
        member.groups[key] = time.time()
        try:
            return await self._watched(member, prompt, sampling, attempt)
        except (ComponentDied, ComponentFailed, DeadlineExceeded) as error:
            if member.leaving:
                raise GroupLost(prompt.prompt_id, attempt, f"{member.name} left before it had sampled it") from error
            self.take_out(member, error)
            raise GroupLost(prompt.prompt_id, attempt, str(error)) from error
        finally:
            member.groups.pop(key, None)
            if not member.groups:
                member.done.set()

    async def _watched(self, member: Member[W], prompt: Prompt, sampling: Sampling, attempt: int) -> PromptGroup:
        sampled = member.worker.sample(prompt, sampling, attempt)
        try:
            return await member.watch.result(sampled, (prompt.prompt_id, attempt))
        except Silent:
            watch, what = member.watch, f"sample {prompt.prompt_id}"
            raise NoProgress(member.name, what, watch.seconds, watch.setting) from None

    def silence_of(self, key: Key) -> float:
        """Seconds since the worker that holds a group gave a sign of life: none while the group waits for its turn,
        infinite when nobody holds it.
        """
        if key in self._queued:
            return 0.0
        return min((member.watch.silence_of(key) for member in self._holding(key)), default=math.inf)

    def lend(self) -> AbstractAsyncContextManager[RolloutEngine] | None:
        """Lend one of the workers, apart from the pool from now until the context ends: it keeps its weights, ends the
        groups that it has, and gets only those that the borrower asks for. None when fewer than two serve.

        Its ``sample`` raises ComponentDied once the worker has failed or left: there is no other with these weights.
        """
        serving = [member for member in self.members if member.serves]
        if len(serving) < 2:
            return None
        member = min(serving, key=lambda member: (member.responses, member.index))
        self._set_aside(member)
        return self._until_returned(member)

    @asynccontextmanager
    async def _until_returned(self, member: Member[W]) -> AsyncIterator[RolloutEngine]:
        try:
            yield _LentEngine(self, member)
        finally:
            self._take_back(member)


class _LentEngine(RolloutEngine, Generic[W]):
    """RolloutEngine of one worker that is lent."""

    def __init__(self, pool: RolloutPool[W], member: Member[W]) -> None:
        self._pool, self._member = pool, member

    @override
    async def sample(self, prompt: Prompt, sampling: Sampling, attempt: int) -> PromptGroup:
        member = self._member
        if not member.up:
            raise ComponentDied(member.name, "it has left or was replaced while it was lent")
        try:
            return await self._pool.sample_with(member, prompt, sampling, attempt)
        except GroupLost as lost:
            if member.up:
                raise
            raise ComponentDied(member.name, lost.reason) from lost
