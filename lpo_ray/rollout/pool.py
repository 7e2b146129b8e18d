"""Rollout workers as one TurnEngine: each group, and each turn of a conversation, goes to a worker with room.

A group goes to the worker with the fewest responses in flight. A turn goes to the one that drew the turn before, which
has the conversation in its KV cache, and the first turns of a group go to one worker, while it has room. A context is
tokens, so any other worker can go on: a turn whose worker is lost is drawn again elsewhere. What was said before it
stands, no environment has seen it, and nothing of it was trained.

A pool is a roster of workers (``roster.py``) that come and go (``lifecycle.py``) and sample (here). While it is scaled
to zero, groups wait.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from typing import Generic, TypeVar

from typing_extensions import override

from lpo_ray.common.held import Held
from lpo_ray.common.silence import Silent
from lpo_ray.errors import ComponentDied, ComponentFailed, DeadlineExceeded, GroupLost, NoProgress
from lpo_ray.interfaces import Events, TurnEngine
from lpo_ray.records import Key, Prompt, PromptGroup, Sampling, Turn, TurnRequest
from lpo_ray.rollout.lifecycle import Lifecycle
from lpo_ray.rollout.member import Member, W
from lpo_ray.rollout.roster import PoolSettings

__all__ = ["PoolSettings", "RolloutPool"]

T = TypeVar("T")
DRAWS = 2
"""times that a turn is drawn, on as many workers, before its group is lost: a context that kills its worker would kill
every other, and each has a restart budget"""


class WorkerLost(GroupLost):
    """A group, or a turn, whose worker was lost before it had sampled it."""


class _Homes(Generic[W]):
    """Workers that have the prompts of groups whose first turns are being drawn."""

    def __init__(self) -> None:
        self._members: dict[Key, Member[W]] = {}
        self._turns = Held[Key]()

    @contextlib.contextmanager
    def turn_of(self, key: Key) -> Iterator[None]:
        """Remember the group's worker until the last of the turns that overlap has ended."""
        try:
            with self._turns.during(key):
                yield
        finally:
            if key not in self._turns:
                self._members.pop(key, None)

    def of(self, key: Key) -> Member[W] | None:
        return self._members.get(key)

    def set(self, key: Key, member: Member[W]) -> None:
        self._members[key] = member


class RolloutPool(Lifecycle[W], TurnEngine):
    """TurnEngine over workers. Make it inside a running event loop."""

    def __init__(
        self, spawn: Callable[[int, str], W], num_workers: int, *, settings: PoolSettings, events: Events
    ) -> None:
        super().__init__(spawn, num_workers, settings=settings, events=events)
        self._homes = _Homes[W]()

    @override
    async def sample(self, prompt: Prompt, sampling: Sampling, attempt: int) -> PromptGroup:
        """Wait for a worker with room, then sample with it, for as long as it gets on with its groups."""
        member = await self._taken(sampling.group_size, (prompt.prompt_id, attempt))
        try:
            return await self.sample_with(member, prompt, sampling, attempt)
        finally:
            self._balance.give_back(member, sampling.group_size)

    @override
    async def turn(self, request: TurnRequest) -> Turn:
        """Draw a turn with a worker that has room. Raises GroupLost when as many were lost at it as may be."""
        key, reason = request.conversation.key, ""
        with self._homes.turn_of(key):
            for draw in range(DRAWS):
                known = None if request.engine is None else self._numbered(request.engine)
                member = await self._taken(1, key, known or self._homes.of(key))
                self._homes.set(key, member)
                try:
                    turn = await self.turn_with(member, replace(request, draw=request.draw + draw))
                    return replace(turn, redrawn=draw)
                except WorkerLost as lost:
                    reason = lost.reason
                finally:
                    self._balance.give_back(member, 1)
        raise GroupLost(*key, f"turn {request.turn} was drawn {DRAWS} times, the last time so: {reason}")

    async def sample_with(self, member: Member[W], prompt: Prompt, sampling: Sampling, attempt: int) -> PromptGroup:
        """Sample with ``member``. It is taken out when it fails; the group is lost then."""
        key = (prompt.prompt_id, attempt)
        return await self._drawn(member, key, member.worker.sample(prompt, sampling, attempt))

    async def turn_with(self, member: Member[W], request: TurnRequest) -> Turn:
        """Draw a turn with ``member``. It is taken out when it fails; WorkerLost then."""
        turn = await self._drawn(member, request.conversation.key, member.worker.turn(request))
        return replace(turn, engine=member.index)

    async def _taken(self, size: int, key: Key, preferred: Member[W] | None = None) -> Member[W]:
        """Wait for a member with room for ``size`` responses, until ``give_back``."""
        if self._failure is not None:
            raise self._failure
        try:
            with self._queued.during(key):
                return await self._balance.take(size, self._patience, preferred)
        except TimeoutError:
            raise self._nobody_serves() from None

    async def _drawn(self, member: Member[W], key: Key, work: Awaitable[T]) -> T:
        """Await what ``member`` samples of a group. It is taken out when it fails; WorkerLost then."""
        with member.holding(key):
            try:
                return await self._watched(member, key, work)
            except (ComponentDied, ComponentFailed, DeadlineExceeded) as error:
                if member.leaving:
                    raise WorkerLost(*key, f"{member.name} left before it had sampled it") from error
                self.take_out(member, error)
                raise WorkerLost(*key, str(error)) from error

    async def _watched(self, member: Member[W], key: Key, work: Awaitable[T]) -> T:
        try:
            return await member.watch.result(work, key)
        except Silent:
            watch, what = member.watch, f"sample {key[0]}"
            raise NoProgress(member.name, what, watch.seconds, watch.setting) from None

    def silence_of(self, key: Key) -> float:
        """Seconds since a worker that holds a group gave a sign of life: none while something of it waits for its turn,
        infinite when nobody holds it.
        """
        if key in self._queued:
            return 0.0
        return min((member.watch.silence_of(key) for member in self._holding(key)), default=math.inf)

    def lend(self) -> AbstractAsyncContextManager[TurnEngine] | None:
        """Lend one of the workers, apart from the pool from now until the context ends: it keeps its weights, ends the
        groups that it has, and gets only those that the borrower asks for. None when fewer than two serve.

        What it is asked raises ComponentDied once the worker has failed or left: there is no other with these weights.
        """
        serving = [member for member in self.members if member.serves]
        if len(serving) < 2:
            return None
        member = min(serving, key=lambda member: (member.responses, member.index))
        self._set_aside(member)
        return self._until_returned(member)

    @asynccontextmanager
    async def _until_returned(self, member: Member[W]) -> AsyncIterator[TurnEngine]:
        try:
            yield _LentEngine(self, member)
        finally:
            self._take_back(member)


class _LentEngine(TurnEngine, Generic[W]):
    """TurnEngine of one worker that is lent."""

    def __init__(self, pool: RolloutPool[W], member: Member[W]) -> None:
        self._pool, self._member = pool, member

    @override
    async def sample(self, prompt: Prompt, sampling: Sampling, attempt: int) -> PromptGroup:
        with self._alive():
            return await self._pool.sample_with(self._member, prompt, sampling, attempt)

    @override
    async def turn(self, request: TurnRequest) -> Turn:
        with self._alive():
            return await self._pool.turn_with(self._member, request)

    @contextlib.contextmanager
    def _alive(self) -> Iterator[None]:
        """Raise ComponentDied when the worker is gone, or goes."""
        member = self._member
        if not member.up:
            raise ComponentDied(member.name, "it has left or was replaced while it was lent")
        try:
            yield
        except GroupLost as lost:
            if member.up:
                raise
            raise ComponentDied(member.name, lost.reason) from lost
