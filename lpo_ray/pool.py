"""Rollout workers as one RolloutEngine: each group goes to the worker with the fewest groups in flight.

A worker that fails is taken out, looked at, ended and replaced in the background; the run goes on with the others. Its
groups are lost and issued again. The replacement gives out nothing before it has proved the current weights.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from lpo_ray.errors import ComponentDied, ComponentFailed, DeadlineExceeded, GroupLost, LpoRayError
from lpo_ray.interfaces import Events
from lpo_ray.records import (
    Holder,
    Key,
    Process,
    Prompt,
    PromptGroup,
    Sampling,
    WeightsVersion,
    WorkerState,
    WorkerStatus,
)


class Worker(Protocol):
    """One engine: an actor, or a simulated one. Calls raise ComponentDied, ComponentFailed or DeadlineExceeded with the
    worker's name, or GroupLost.
    """

    async def start(self, seconds: float) -> Process:
        """Build the engine, within ``seconds``."""
        ...

    async def sample(self, prompt: Prompt, sampling: Sampling, attempt: int, seconds: float) -> PromptGroup:
        """All K responses, within ``seconds``. Cancelling the await ends them."""
        ...

    async def inspect(self) -> str:
        """What its process does, seen from outside; never raises."""
        ...

    async def close(self, seconds: float) -> None:
        """End the engine and what it started. Never raises."""
        ...

    def kill(self) -> None:
        """End it at once, also when it is stopped."""
        ...


W = TypeVar("W", bound=Worker)


@dataclass(slots=True, eq=False)
class Member(Generic[W]):
    """A worker whose engine is up."""

    index: int
    name: str
    worker: W
    process: Process
    version: WeightsVersion | None = None
    groups: dict[Key, float] = field(default_factory=dict)
    """in flight -> since when (unix seconds)"""
    up: bool = True
    """not taken out"""


@dataclass(slots=True)
class _Place(Generic[W]):
    """What is known of a worker across its replacements."""

    name: str
    worker: W | None = None
    """null before the start"""
    state: WorkerState = "starting"
    restarts: int = 0
    detail: str = ""


class RolloutPool(Generic[W]):
    """RolloutEngine over workers. Make it inside a running event loop."""

    def __init__(
        self,
        spawn: Callable[[int, str], W],
        num_workers: int,
        *,
        deadline_seconds: float,
        max_restarts: int,
        events: Events,
    ) -> None:
        """``spawn``: make a worker by number and name."""
        self.members: list[Member[W]] = []
        self.admit: Callable[[Member[W]], Awaitable[None]]
        """brings a replacement to the current weights; set by who publishes them"""
        self._spawn, self._deadline, self._max_restarts = spawn, deadline_seconds, max_restarts
        self._events = events
        self._places: list[_Place[W]] = [_Place(f"rollout worker {index}") for index in range(num_workers)]
        self._by_load: list[tuple[int, int, int, Member[W]]] = []
        """heap of (groups in flight, worker, number of the entry, member); what is out of date is skipped"""
        self._entries = itertools.count()
        self._replacing: set[asyncio.Task[None]] = set()
        self._changed = asyncio.Condition()
        self._failure: LpoRayError | None = None

    async def start(self) -> None:
        """Build all engines at once, in place of those there were; the first error is raised."""
        for member in self.members:
            member.up = False
        workers = [self._make(index) for index in range(len(self._places))]
        async with asyncio.TaskGroup() as starting:
            tasks = [starting.create_task(worker.start(self._deadline)) for worker in workers]
        processes = (task.result() for task in tasks)
        self.members = [
            Member(index, self._places[index].name, worker, process)
            for index, (worker, process) in enumerate(zip(workers, processes, strict=True))
        ]

    async def sample(self, prompt: Prompt, sampling: Sampling, attempt: int) -> PromptGroup:
        """See interfaces.RolloutEngine. Waits at most the rollout deadline."""
        member, key = await self._idlest(), (prompt.prompt_id, attempt)
        member.groups[key] = time.time()
        self._offer(member)
        try:
            return await member.worker.sample(prompt, sampling, attempt, self._deadline)
        except (ComponentDied, ComponentFailed, DeadlineExceeded) as error:
            self.take_out(member, error)
            raise GroupLost(prompt.prompt_id, attempt, str(error)) from error
        finally:
            member.groups.pop(key, None)
            self._offer(member)

    async def started(self) -> list[Member[W]]:
        """The members whose engines are up, at least one; waits for a replacement at most the rollout deadline."""
        return await self._wait_for(lambda: list(self.members))

    def serve(self, members: Sequence[Member[W]], version: WeightsVersion) -> None:
        """The members have proved ``version``."""
        for member in members:
            member.version = version
            self._places[member.index].state = "serving"
            self._offer(member)
        self._report()

    def take_out(self, member: Member[W], error: LpoRayError) -> None:
        """Stop using a member that failed with ``error``, and replace it. Only the first call for a member counts."""
        if not member.up:
            return
        member.up = False
        self.members.remove(member)
        place = self._places[member.index]
        place.state, place.detail = "out", str(error)
        self._report()
        self._replacing.add(task := asyncio.get_running_loop().create_task(self._replace(member, error)))
        task.add_done_callback(self._replacing.discard)

    def statuses(self) -> tuple[WorkerStatus, ...]:
        """All workers, by number."""
        versions = {member.index: member.version for member in self.members}
        return tuple(
            WorkerStatus(place.name, place.state, versions.get(index), place.restarts, place.detail)
            for index, place in enumerate(self._places)
        )

    def holders(self) -> list[Holder]:
        """The members that hold groups; when none does, the workers that are being started, for which groups wait."""
        holding = [Holder.of_groups(m.name, m.groups, m.process) for m in self.members if m.groups]
        starting = [Holder(place.name, place.state, None, None) for place in self._places if place.state != "serving"]
        return holding or starting

    def receivers(self) -> list[Holder]:
        """The members, as those that take new weights."""
        return [Holder(m.name, f"takes new weights, has {m.version or 'none'}", None, m.process) for m in self.members]

    async def close(self) -> None:
        """End the engines and their actors; gives each ten seconds to end what it started. Never raises."""
        for task in self._replacing:
            task.cancel()
        await asyncio.gather(*(member.worker.close(10) for member in self.members))
        for place in self._places:
            if place.worker is not None:
                place.worker.kill()

    async def _replace(self, member: Member[W], error: LpoRayError) -> None:
        evidence = await member.worker.inspect()
        self._events.note(f"{member.name} is taken out of the pool: {error}\n{evidence}")
        worker, index, place = member.worker, member.index, self._places[member.index]
        while True:
            worker.kill()
            if place.restarts >= self._max_restarts:
                return await self._give_up(place, error)
            place.restarts += 1
            place.state = "starting"
            self._report()
            worker = self._make(index)
            try:
                process = await worker.start(self._deadline)
                break
            except LpoRayError as failed:
                error = failed
                self._events.note(f"{place.name} did not come back: {failed}")
        fresh = Member(index, place.name, worker, process)
        async with self._changed:
            self.members.append(fresh)
            self._changed.notify_all()
        try:
            await self.admit(fresh)
        except LpoRayError as failed:
            return self.take_out(fresh, failed)
        self._events.note(f"{place.name} is back (restart {place.restarts} of {self._max_restarts})")
        async with self._changed:
            self._changed.notify_all()

    async def _give_up(self, place: _Place[W], error: LpoRayError) -> None:
        text = f"{error}; it was replaced {place.restarts} times (rollout.max_restarts) and is given up"
        self._events.note(f"{place.name}: {text}")
        async with self._changed:
            if not self.members and not self._replacing - {asyncio.current_task()}:
                self._failure = ComponentDied(place.name, f"{text}; no rollout worker is left")
            self._changed.notify_all()

    def _make(self, index: int) -> W:
        place = self._places[index]
        place.worker = worker = self._spawn(index, place.name)
        return worker

    def _offer(self, member: Member[W]) -> None:
        """Its load has changed. The heap holds a few entries a member at most, whatever the number of groups."""
        if len(self._by_load) > 8 * len(self._places):
            self._by_load = [(len(m.groups), m.index, next(self._entries), m) for m in self._serving()]
            heapq.heapify(self._by_load)
        heapq.heappush(self._by_load, (len(member.groups), member.index, next(self._entries), member))

    async def _idlest(self) -> Member[W]:
        """The serving member with the fewest groups; O(log workers)."""
        while True:
            while self._by_load:
                load, *_, member = heapq.heappop(self._by_load)
                if load == len(member.groups) and member.up and member.version is not None:
                    return member
            for member in await self._wait_for(self._serving):
                self._offer(member)

    def _serving(self) -> list[Member[W]]:
        return [member for member in self.members if member.version is not None]

    async def _wait_for(self, find: Callable[[], list[Member[W]]]) -> list[Member[W]]:
        try:
            async with asyncio.timeout(self._deadline), self._changed:
                await self._changed.wait_for(lambda: bool(find()) or self._failure is not None)
        except TimeoutError:
            who = ", ".join(place.name for place in self._places)
            raise DeadlineExceeded(who, "serve", self._deadline) from None
        if found := find():
            return found
        assert self._failure is not None
        raise self._failure

    def _report(self) -> None:
        self._events.workers(self.statuses())
