"""Rollout workers as one RolloutEngine: each group goes to the worker with the fewest responses on their way.

```
 scale ──▶ starting ──▶ serving ──▶ leaving ──▶ gone       no new groups; what it has it ends, or hands back
              ▲            │
              └── pause ◀──┴── out                          its groups are lost and issued again
                           ▲
 lend ─────────────────────┴──▶ lent                        keeps its weights; then takes the current ones, as a joiner
```
A worker that fails is taken out, looked at, ended and replaced in the background; the run goes on with the others. Who
is new, a joiner or a replacement, gives out nothing before it has proved the current weights. With no workers wanted,
groups wait for as long as it stays so.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Generic

from lpo_ray.common.restart_budget import RestartBudget, RestartRule
from lpo_ray.errors import ComponentDied, ComponentFailed, DeadlineExceeded, GroupLost, LpoRayError
from lpo_ray.interfaces import Events, RolloutEngine
from lpo_ray.records import (
    BusyWorker,
    Process,
    Prompt,
    PromptGroup,
    Sampling,
    WeightsVersion,
    WorkerState,
    WorkerStatus,
)
from lpo_ray.rollout.load_balancer import LoadBalancer
from lpo_ray.rollout.member import Member, W


@dataclass(frozen=True, slots=True)
class PoolSettings:
    """How long workers may take, and what they are given."""

    deadline_seconds: float
    """for one group, and for an engine's start"""
    drain_seconds: float
    """that a leaver has to end its groups"""
    slots: int
    """responses that one worker is given at once; a group that is larger goes to a worker that has none"""
    restarts: RestartRule
    """of each worker"""


@dataclass(slots=True, eq=False)
class _Place(Generic[W]):
    """What is known of a worker across its replacements."""

    index: int
    name: str
    budget: RestartBudget
    worker: W | None = None
    """null before the start"""
    member: Member[W] | None = None
    state: WorkerState = "starting"
    detail: str = ""
    task: asyncio.Task[None] | None = None
    """that brings it up, or ends it"""

    @property
    def stays(self) -> bool:
        """Whether it counts as one of the workers that are wanted."""
        return self.state != "leaving"


class RolloutPool(Generic[W]):
    """RolloutEngine over workers. Make it inside a running event loop."""

    def __init__(
        self, spawn: Callable[[int, str], W], num_workers: int, *, settings: PoolSettings, events: Events
    ) -> None:
        """``spawn``: make a worker by number and name."""
        self.members: list[Member[W]] = []
        """those that are up"""
        self.admit: Callable[[Member[W]], Awaitable[None]]
        """brings a new member to the current weights; set by who publishes them"""
        self.wanted = num_workers
        self._spawn, self._settings, self._events = spawn, settings, events
        self._places: dict[int, _Place[W]] = {}
        self._indices = itertools.count()
        self._balance = LoadBalancer[W](settings.slots)
        self._changed = asyncio.Event()
        """set, and a new one put in its place, when members, failure or what is wanted change"""
        self._failure: LpoRayError | None = None
        self._unserved_since: float | None = asyncio.get_running_loop().time()
        """since when somebody is wanted and nobody serves; None: it is as it should be"""
        for _ in range(num_workers):
            self._add()

    async def start(self) -> None:
        """Build all engines at once, in place of those there were; the first error is raised."""
        for member in self.members:
            member.up = False
        places = list(self._places.values())
        async with asyncio.TaskGroup() as starting:
            tasks = [starting.create_task(self._start(place)) for place in places]
        self.members = [self._joined(place, task.result()) for place, task in zip(places, tasks, strict=True)]

    async def _start(self, place: _Place[W]) -> Process:
        seconds = self._settings.deadline_seconds
        with self._events.starting(place.name, seconds):
            return await self._make(place).start(seconds)

    async def admit_all(self) -> None:
        """Admit the members, where nobody publishes to them; one that fails at it is taken out and replaced."""
        await asyncio.gather(*(self._admit(member) for member in self.members))

    async def sample(self, prompt: Prompt, sampling: Sampling, attempt: int) -> PromptGroup:
        """See interfaces.RolloutEngine. Waits for a worker with room, then at most the rollout deadline."""
        if self._failure is not None:
            raise self._failure
        try:
            member = await self._balance.take(sampling.group_size, self._patience)
        except TimeoutError:
            raise self._nobody() from None
        try:
            return await self._sampled_by(member, prompt, sampling, attempt)
        finally:
            self._balance.give_back(member, sampling.group_size)

    def lend(self) -> AbstractAsyncContextManager[RolloutEngine] | None:
        """One of the workers, apart from the pool from now until the context ends: it keeps its weights, and has no
        groups but those that it is asked for and those that it has. None when fewer than two serve.

        Its ``sample`` raises ComponentDied once the worker has failed or left: there is no other with these weights.
        """
        serving = [member for member in self.members if member.serves]
        if len(serving) < 2:
            return None
        member = min(serving, key=lambda member: (member.responses, member.index))
        member.lent = True
        self.members.remove(member)
        self._places[member.index].state = "lent"
        self._report()
        return self._until_returned(member)

    async def started(self) -> list[Member[W]]:
        """The members whose engines are up; where workers are wanted at least one, for which it waits at most the
        rollout deadline.
        """
        if not self.wanted:
            return []
        try:
            async with asyncio.timeout(self._settings.deadline_seconds):
                while self.wanted and not self.members and self._failure is None:
                    await self._changed.wait()
        except TimeoutError:
            raise self._nobody() from None
        if self._failure is not None and not self.members:
            raise self._failure
        return list(self.members)

    def serve(self, members: Sequence[Member[W]], version: WeightsVersion) -> None:
        """The members have proved ``version``."""
        for member in members:
            member.version = version
            if member.up:
                self._places[member.index].state = "serving"
        self._look_who_serves()
        self._report()
        self._balance.offer(members)

    def scale(self, count: int) -> str:
        """Aim at ``count`` workers, from now on and in the background; returns what will happen. Those that do not
        serve leave first, then those that came last.
        """
        for place in [place for place in self._places.values() if place.state == "out" and place.task is None]:
            self._forget(place)  # given up: it is not what is wanted
        staying = [place for place in self._places.values() if place.stays]
        order = sorted(staying, key=lambda place: (place.state != "serving", place.index), reverse=True)
        leavers = order[: max(len(staying) - count, 0)]
        joiners = [self._add() for _ in range(count - len(staying))]
        self.wanted = count
        self._look_who_serves()
        self._notify()
        for place in leavers:
            self._leave(place)
        for place in joiners:
            self._begin(place, self._bring_up(place, None))
        self._report()
        going = [
            f"{', '.join(place.name for place in places)} {verb}"
            for places, verb in ((leavers, "leaving"), (joiners, "joining"))
            if places
        ]
        return f"{count} rollout workers: {'; '.join(going) if going else 'as it was'}"

    def vacate(self, node_ids: Sequence[str], why: str) -> None:
        """The nodes are about to go: their workers leave, and as many others are started elsewhere."""
        for place in list(self._places.values()):
            if place.member is None or place.member.process.node_id not in node_ids or not place.stays:
                continue
            self._events.note(f"{place.name} leaves: {why}")
            self._leave(place)
            fresh = self._add()
            self._begin(fresh, self._bring_up(fresh, None))
        self._report()

    def take_out(self, member: Member[W], error: LpoRayError) -> None:
        """Stop using a member that failed with ``error``, and replace it. Only the first call for a member counts."""
        if not member.up:
            return
        place = self._places[member.index]
        self._retire(member)
        place.state, place.detail = "out", str(error)
        self._report()
        self._begin(place, self._replace(place, member, error))

    def statuses(self) -> tuple[WorkerStatus, ...]:
        """All workers, by number."""
        return tuple(
            WorkerStatus(
                place.name,
                place.state,
                None if place.member is None else place.member.version,
                place.budget.spent,
                place.detail,
            )
            for place in self._places.values()
        )

    def busy(self) -> list[BusyWorker]:
        """The members that hold groups; when none does, the workers that are being started, for which groups wait."""
        members = [place.member for place in self._places.values() if place.member is not None]
        holding = [BusyWorker.of_groups(m.name, m.groups, m.process) for m in members if m.groups]
        starting = [BusyWorker(p.name, p.state, None, None) for p in self._places.values() if p.state != "serving"]
        if not self.wanted and (waiting := self._balance.num_waiting):
            starting = [BusyWorker("nobody", f"no rollout workers are wanted, {waiting} groups wait", None, None)]
        return holding or starting

    def up(self) -> list[Member[W]]:
        """The members and those that are lent."""
        return [place.member for place in self._places.values() if place.member is not None and place.member.up]

    def receivers(self) -> list[BusyWorker]:
        """The members, as those that take new weights."""
        return [
            BusyWorker(m.name, f"takes new weights, has {m.version or 'none'}", None, m.process) for m in self.members
        ]

    async def close(self) -> None:
        """End the engines and their actors; gives each ten seconds to end what it started. Never raises."""
        places = list(self._places.values())
        for place in places:
            if place.task is not None:
                place.task.cancel()
        await asyncio.gather(*(place.member.worker.close(10) for place in places if place.member is not None))
        for place in places:
            if place.worker is not None:
                place.worker.kill()

    async def _sampled_by(self, member: Member[W], prompt: Prompt, sampling: Sampling, attempt: int) -> PromptGroup:
        key = (prompt.prompt_id, attempt)
        member.groups[key] = time.time()
        try:
            return await member.worker.sample(prompt, sampling, attempt, self._settings.deadline_seconds)
        except (ComponentDied, ComponentFailed, DeadlineExceeded) as error:
            if member.leaving:
                raise GroupLost(prompt.prompt_id, attempt, f"{member.name} left before it had sampled it") from error
            self.take_out(member, error)
            raise GroupLost(prompt.prompt_id, attempt, str(error)) from error
        finally:
            member.groups.pop(key, None)
            if not member.groups:
                member.done.set()

    # How workers come and go.

    @asynccontextmanager
    async def _until_returned(self, member: Member[W]) -> AsyncIterator[RolloutEngine]:
        try:
            yield _Lent(self, member)
        finally:
            member.lent = False
            if member.up:
                place = self._places[member.index]
                place.state, member.version = "starting", None
                self.members.append(member)
                self._notify()
                self._report()
                self._begin(place, self._admit(member))

    async def _admit(self, member: Member[W]) -> bool:
        """Whether it is still up."""
        try:
            await self.admit(member)
        except LpoRayError as failed:
            self.take_out(member, failed)
            return False
        return True

    def _add(self) -> _Place[W]:
        index = next(self._indices)
        place = _Place[W](index, f"rollout worker {index}", RestartBudget(self._settings.restarts))
        self._places[index] = place
        return place

    def _begin(self, place: _Place[W], work: Awaitable[object]) -> None:
        async def run() -> None:
            try:
                await work
            finally:
                if place.task is task:
                    place.task = None

        place.task = task = asyncio.get_running_loop().create_task(run())

    def _make(self, place: _Place[W]) -> W:
        place.worker = worker = self._spawn(place.index, place.name)
        return worker

    def _joined(self, place: _Place[W], process: Process) -> Member[W]:
        assert place.worker is not None
        place.member = Member(place.index, place.name, place.worker, process)
        return place.member

    def _retire(self, member: Member[W]) -> None:
        member.up = False
        if member in self.members:
            self.members.remove(member)
        self._look_who_serves()

    async def _replace(self, place: _Place[W], member: Member[W], error: LpoRayError) -> None:
        evidence = await member.worker.inspect()
        self._events.note(f"{member.name} is taken out of the pool: {error}\n{evidence}")
        member.worker.kill()
        place.member = None
        await self._bring_up(place, error)

    async def _bring_up(self, place: _Place[W], error: LpoRayError | None) -> None:
        """Start the worker until it is up; ``error``: why it has to be started again, None for a joiner."""
        started = time.monotonic()
        while True:
            if error is not None and not await self._may_start_again(place, error):
                return
            place.state = "starting"
            self._report()
            worker = self._make(place)
            try:
                process = await worker.start(self._settings.deadline_seconds)
                break
            except LpoRayError as failed:
                worker.kill()
                error, place.state, place.detail = failed, "out", str(failed)
                self._events.note(f"{place.name} did not start: {failed}")
        fresh = self._joined(place, process)
        self.members.append(fresh)
        self._notify()
        if not await self._admit(fresh):
            return
        again = f" ({place.budget})" if place.budget.spent else ""
        serves = f"serves {fresh.version}" if fresh.version else "is up, and takes the next weights"
        self._events.note(f"{place.name} {serves} after {time.monotonic() - started:.1f} s{again}")

    async def _may_start_again(self, place: _Place[W], error: LpoRayError) -> bool:
        pause = place.budget.spend()
        if pause is not None:
            await asyncio.sleep(pause)
            return True
        text = f"{error}; its {place.budget} are spent (supervision) and it is given up"
        self._events.note(f"{place.name}: {text}")
        place.detail, place.task = text, None
        if not self.members and all(p.task is None for p in self._places.values() if p.stays):
            self._fail(ComponentDied(place.name, f"{text}; no rollout worker is left"))
        self._report()
        return False

    def _leave(self, place: _Place[W]) -> None:
        if place.task is not None:
            place.task.cancel()
        place.state = "leaving"
        if place.member is None:
            if place.worker is not None:
                place.worker.kill()
            self._forget(place)
            return
        self._retire(place.member)
        place.member.leaving = True
        self._begin(place, self._drain(place, place.member))

    async def _drain(self, place: _Place[W], member: Member[W]) -> None:
        """What it has it may end; then its process ends, and what is left of its groups is lost and issued again."""
        if left := len(member.groups):
            member.done.clear()
            try:
                await asyncio.wait_for(member.done.wait(), self._settings.drain_seconds)
            except TimeoutError:
                text = f"{len(member.groups)} of its {left} groups go back after {self._settings.drain_seconds:g} s"
                self._events.note(f"{member.name} leaves: {text}")
        await member.worker.close(10)
        member.worker.kill()
        self._forget(place)
        self._events.note(f"{member.name} has left")
        self._report()

    def _forget(self, place: _Place[W]) -> None:
        self._places.pop(place.index, None)

    def _look_who_serves(self) -> None:
        if not self.wanted or any(member.serves for member in self.members):
            self._unserved_since = None
        elif self._unserved_since is None:
            self._unserved_since = asyncio.get_running_loop().time()

    def _patience(self) -> float:
        """Seconds until a group that waits has waited for too long: never, while anybody serves."""
        deadline = self._settings.deadline_seconds
        if self._unserved_since is None:
            return deadline
        return deadline - (asyncio.get_running_loop().time() - self._unserved_since)

    def _notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    def _fail(self, failure: LpoRayError) -> None:
        self._failure = failure
        self._notify()
        self._balance.fail(failure)

    def _nobody(self) -> DeadlineExceeded:
        who = ", ".join(place.name for place in self._places.values() if place.stays)
        return DeadlineExceeded(who, "serve", self._settings.deadline_seconds)

    def _report(self) -> None:
        self._events.workers(self.statuses())


class _Lent(Generic[W]):
    """RolloutEngine of one worker."""

    def __init__(self, pool: RolloutPool[W], member: Member[W]) -> None:
        self._pool, self._member = pool, member

    async def sample(self, prompt: Prompt, sampling: Sampling, attempt: int) -> PromptGroup:
        """See RolloutPool.lend."""
        member = self._member
        if not member.up:
            raise ComponentDied(member.name, "it has left or was replaced while it was lent")
        try:
            return await self._pool._sampled_by(member, prompt, sampling, attempt)
        except GroupLost as lost:
            if member.up:
                raise
            raise ComponentDied(member.name, lost.reason) from lost
