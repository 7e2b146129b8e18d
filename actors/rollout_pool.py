"""The rollout workers as one RolloutEngine: each group goes to the worker with the fewest groups in flight.

A worker that fails is taken out, looked at, ended and replaced in the background; the run goes on with the others. Its
groups are lost and issued again. The replacement gives out nothing before it has proved the current weights.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

import ray
from ray.actor import ActorProxy

from actors.calls import call, call_all, call_each
from actors.inspection import end, inspect
from actors.rollout_worker import RolloutWorker
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


@dataclass(slots=True, eq=False)
class Member:
    """A worker whose engine is up."""

    index: int
    name: str
    handle: ActorProxy[RolloutWorker]
    process: Process
    version: WeightsVersion | None = None
    groups: dict[Key, float] = field(default_factory=dict)
    """in flight there, and since when in unix seconds"""


@dataclass(slots=True)
class _Place:
    """What is known of a worker across its replacements."""

    name: str
    state: WorkerState = "starting"
    restarts: int = 0
    detail: str = ""


class RolloutPool:
    """RolloutEngine over Ray. Make it inside a running event loop."""

    def __init__(
        self,
        spawn: Callable[[int, str], ActorProxy[RolloutWorker]],
        num_workers: int,
        *,
        deadline_seconds: float,
        max_restarts: int,
        events: Events,
    ) -> None:
        """``spawn``: make the actor of a worker by number and name."""
        self.members: list[Member] = []
        self.admit: Callable[[Member], Awaitable[None]]
        """brings a replacement to the current weights; set by who publishes them"""
        self._spawn, self._deadline, self._max_restarts = spawn, deadline_seconds, max_restarts
        self._events = events
        self._places = [_Place(f"rollout worker {index}") for index in range(num_workers)]
        self._handles: dict[int, ActorProxy[RolloutWorker]] = {}
        self._replacing: set[asyncio.Task[None]] = set()
        self._changed = asyncio.Condition()
        self._failure: LpoRayError | None = None

    async def start(self) -> None:
        """Build all engines at once; the first error is raised."""
        for index in range(len(self._places)):
            self._handles[index] = self._spawn(index, self._places[index].name)
        handles, names = list(self._handles.values()), [place.name for place in self._places]
        starting = [handle.start.remote() for handle in handles]
        processes = await call_all(starting, who=names, what="start its engine", seconds=self._deadline)
        everything = zip(names, handles, processes, strict=True)
        self.members = [Member(index, *parts) for index, parts in enumerate(everything)]

    async def sample(self, prompt: Prompt, sampling: Sampling, attempt: int) -> PromptGroup:
        """See interfaces.RolloutEngine. Waits at most the rollout deadline."""
        serving = await self._wait_for(lambda: [member for member in self.members if member.version is not None])
        member = min(serving, key=lambda member: len(member.groups))
        key = (prompt.prompt_id, attempt)
        member.groups[key] = time.time()
        what = f"sample {prompt.prompt_id}"
        try:
            reference = member.handle.sample.remote(prompt, sampling, attempt)
            return await call(reference, who=member.name, what=what, seconds=self._deadline)
        except (ComponentDied, ComponentFailed, DeadlineExceeded) as error:
            self.take_out(member, error)
            raise GroupLost(prompt.prompt_id, attempt, str(error)) from error
        finally:
            member.groups.pop(key, None)

    async def started(self) -> list[Member]:
        """The members whose engines are up, at least one; waits for a replacement at most the rollout deadline."""
        return await self._wait_for(lambda: list(self.members))

    def serve(self, members: Sequence[Member], version: WeightsVersion) -> None:
        """The members have proved ``version``."""
        for member in members:
            member.version = version
            self._places[member.index].state = "serving"
        self._report()

    def take_out(self, member: Member, error: LpoRayError) -> None:
        """Stop using a member that failed with ``error``, and replace it. Only the first call for a member counts."""
        if member not in self.members:
            return
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
        names, closing = [m.name for m in self.members], [m.handle.close.remote() for m in self.members]
        await call_each(closing, who=names, what="close", seconds=10)
        for handle in self._handles.values():
            ray.kill(handle)  # pyright: ignore[reportArgumentType] - an ActorProxy is an ActorHandle at run time

    async def _replace(self, member: Member, error: LpoRayError) -> None:
        evidence = await inspect(member.process)
        self._events.note(f"{member.name} is taken out of the pool: {error}\n{evidence}")
        end(member.process)
        index, place = member.index, self._places[member.index]
        while True:
            ray.kill(self._handles[index])  # pyright: ignore[reportArgumentType]
            if place.restarts >= self._max_restarts:
                return await self._give_up(place, error)
            place.restarts += 1
            place.state = "starting"
            self._report()
            handle = self._handles[index] = self._spawn(index, place.name)
            try:
                what = "start its engine"
                process = await call(handle.start.remote(), who=place.name, what=what, seconds=self._deadline)
                break
            except LpoRayError as failed:
                error = failed
                self._events.note(f"{place.name} did not come back: {failed}")
        fresh = Member(index, place.name, handle, process)
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

    async def _give_up(self, place: _Place, error: LpoRayError) -> None:
        text = f"{error}; it was replaced {place.restarts} times (rollout.max_restarts) and is given up"
        self._events.note(f"{place.name}: {text}")
        async with self._changed:
            if not self.members and not self._replacing - {asyncio.current_task()}:
                self._failure = ComponentDied(place.name, f"{text}; no rollout worker is left")
            self._changed.notify_all()

    async def _wait_for(self, find: Callable[[], list[Member]]) -> list[Member]:
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
