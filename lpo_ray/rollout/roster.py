"""Roster of the rollout workers: who is there, in what state, and since when nobody serves."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic

from lpo_ray.common.held import Held
from lpo_ray.common.restart_budget import RestartBudget, RestartRule
from lpo_ray.common.silence import Watch
from lpo_ray.errors import DeadlineExceeded, LpoRayError
from lpo_ray.interfaces import Events
from lpo_ray.records import BusyWorker, Key, Process, WeightsVersion, WorkerStatus
from lpo_ray.rollout.load_balancer import LoadBalancer
from lpo_ray.rollout.member import Member, W, WorkerSlot


@dataclass(frozen=True, slots=True)
class PoolSettings:
    """How long workers may take, and what they are given."""

    silence_seconds: float
    """time in which a worker that has groups must get on with them"""
    start_seconds: float
    """limit for an engine's start, once it has a place"""
    place_seconds: float
    """time that it has to find one"""
    drain_seconds: float
    """time that a leaver has to end its groups"""
    slots: int
    """responses that one worker is given at once; a group that is larger goes to a worker that has none"""
    restarts: RestartRule
    """restart budget of each worker"""


class Roster(Generic[W]):
    """The workers of a pool and their states. It starts and ends none; see Lifecycle."""

    def __init__(self, num_workers: int, settings: PoolSettings, events: Events) -> None:
        self.members: list[Member[W]] = []
        """workers that are up and not lent"""
        self.wanted = num_workers
        self._settings, self._events = settings, events
        self._slots: dict[int, WorkerSlot[W]] = {}
        self._indices = itertools.count()
        self._balance = LoadBalancer[W](settings.slots)
        self._queued = Held[Key]()
        """groups of which something waits for a worker with room"""
        self._changed = asyncio.Event()
        """set, and a new one put in its place, when members, failure or what is wanted change"""
        self._failure: LpoRayError | None = None
        self._unserved_since: float | None = asyncio.get_running_loop().time()
        """time since when workers are wanted and none is up; None: one is, or none is wanted"""
        for _ in range(num_workers):
            self._add()

    async def started(self) -> list[Member[W]]:
        """Return the members. Where workers are wanted, wait for the first of them, as long as starts may take."""
        while self.wanted and not self.members and self._failure is None:
            if (left := self._patience()) <= 0:
                raise self._nobody_serves()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), left)
        if self._failure is not None and not self.members:
            raise self._failure
        return list(self.members)

    def serve(self, members: Sequence[Member[W]], version: WeightsVersion) -> None:
        """Give groups to ``members`` from now on: they have proved ``version``."""
        for member in members:
            member.version = version
            if member.up:
                self._slots[member.index].state = "serving"
        self._update_unserved()
        self._report()
        self._balance.offer(members)

    def statuses(self) -> tuple[WorkerStatus, ...]:
        """Status of each worker, by number."""
        return tuple(
            WorkerStatus(
                name=slot.name,
                state=slot.state,
                version=None if slot.member is None else slot.member.version,
                restarts=slot.budget.spent,
                detail=slot.detail,
            )
            for slot in self._slots.values()
        )

    def busy(self) -> list[BusyWorker]:
        """The members that hold groups; when none does, the workers that are being started, for which groups wait."""
        members = [slot.member for slot in self._slots.values() if slot.member is not None]
        holding = [BusyWorker.of_groups(m.name, m.groups, m.process) for m in members if m.groups]
        starting = [BusyWorker(s.name, s.state, None, None) for s in self._slots.values() if s.state != "serving"]
        if not self.wanted and (waiting := self._balance.num_waiting):
            starting = [BusyWorker("nobody", f"no rollout workers are wanted, {waiting} groups wait", None, None)]
        return holding or starting

    @property
    def has_work(self) -> bool:
        """Whether something is asked of the members, or waits for one."""
        members = [slot.member for slot in self._slots.values() if slot.member is not None]
        return bool(self._queued) or any(member.groups for member in members)

    def up(self) -> list[Member[W]]:
        """The members and those that are lent."""
        return [slot.member for slot in self._slots.values() if slot.member is not None and slot.member.up]

    def receivers(self) -> list[BusyWorker]:
        """The members, as workers that take new weights."""
        return [
            BusyWorker(m.name, f"takes new weights, has {m.version or 'none'}", None, m.process) for m in self.members
        ]

    def _add(self) -> WorkerSlot[W]:
        index = next(self._indices)
        slot = WorkerSlot[W](index, f"rollout worker {index}", RestartBudget(self._settings.restarts))
        self._slots[index] = slot
        return slot

    def _join(self, slot: WorkerSlot[W], worker: W, process: Process) -> Member[W]:
        watch = Watch(worker.progress, self._settings.silence_seconds, "rollout.silence_seconds")
        slot.member = Member(slot.index, slot.name, worker, process, watch)
        return slot.member

    def _numbered(self, index: int) -> Member[W] | None:
        """Find the member with that number, unless it has gone."""
        slot = self._slots.get(index)
        return None if slot is None else slot.member

    def _holding(self, key: Key) -> list[Member[W]]:
        members = [slot.member for slot in self._slots.values() if slot.member is not None]
        return [member for member in members if key in member.groups]

    def _retire(self, member: Member[W]) -> None:
        member.up = False
        if member in self.members:
            self.members.remove(member)
        self._update_unserved()

    def _forget(self, slot: WorkerSlot[W]) -> None:
        self._slots.pop(slot.index, None)

    def _update_unserved(self, *, starts: bool = False) -> None:
        """Count anew how long nobody has been up. ``starts``: a start begins now, which has all its time."""
        if not self.wanted or self.members:
            self._unserved_since = None
        elif self._unserved_since is None or starts:
            self._unserved_since = asyncio.get_running_loop().time()

    @property
    def _most_unserved(self) -> float:
        """Seconds in which one start ends, well or not."""
        return self._settings.place_seconds + self._settings.start_seconds

    def _patience(self) -> float:
        """Seconds that a group may still wait: time for a start while no worker is up, else without end. One that is up
        and does not serve waits for weights, and there are limits on those.
        """
        if self._unserved_since is None:
            return self._most_unserved
        return self._most_unserved - (asyncio.get_running_loop().time() - self._unserved_since)

    def _notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    def _fail(self, failure: LpoRayError) -> None:
        self._failure = failure
        self._notify()
        self._balance.fail(failure)

    def _nobody_serves(self) -> DeadlineExceeded:
        who = ", ".join(slot.name for slot in self._slots.values() if slot.stays)
        return DeadlineExceeded(who, "serve", self._most_unserved)

    def _report(self) -> None:
        self._events.workers(self.statuses())
