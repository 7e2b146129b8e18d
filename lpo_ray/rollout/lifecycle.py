"""Lifecycle of the rollout workers: they start, join, fail and are replaced, are lent and returned, leave.

```
 scale ──▶ starting ──▶ serving ──▶ leaving ──▶ gone       no new groups; it ends those that it has, or hands them back
              ▲            │
              └── pause ◀──┴── out                          its groups are lost and issued again
                           ▲
 lend ─────────────────────┴──▶ lent                        keeps its weights; then takes the current ones, as a joiner
```
A worker that fails is taken out, inspected, ended and replaced in the background; the run continues with the others. A
new worker, joiner or replacement, serves nothing until it has proved the current weights.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence

from lpo_ray.errors import ComponentDied, LpoRayError
from lpo_ray.interfaces import Events
from lpo_ray.records import Process
from lpo_ray.rollout.member import Member, W, WorkerSlot
from lpo_ray.rollout.roster import PoolSettings, Roster

CLOSE_SECONDS = 10
"""time that an engine has to end what it started"""


async def wait_for_publish(member: Member[W]) -> None:
    """Admit nobody: a new member serves when the next weights are published to it."""


class Lifecycle(Roster[W]):
    """Workers that come and go. What takes time happens in the background, one task a worker."""

    def __init__(
        self, spawn: Callable[[int, str], W], num_workers: int, *, settings: PoolSettings, events: Events
    ) -> None:
        """``spawn``: make a worker by number and name."""
        super().__init__(num_workers, settings, events)
        self._spawn = spawn
        self.admit: Callable[[Member[W]], Awaitable[None]] = wait_for_publish
        """brings a new member to the current weights; composition sets what publishes them"""

    async def start(self) -> None:
        """Build all engines at once, in place of those there were. Raises the first error."""
        for member in self.members:
            member.up = False
        slots = list(self._slots.values())
        workers = [self._make(slot) for slot in slots]
        async with asyncio.TaskGroup() as starting:
            tasks = [
                starting.create_task(self._started(slot, worker)) for slot, worker in zip(slots, workers, strict=True)
            ]
        self.members = [
            self._join(slot, worker, task.result()) for slot, worker, task in zip(slots, workers, tasks, strict=True)
        ]
        self._update_unserved()

    async def _started(self, slot: WorkerSlot[W], worker: W) -> Process:
        """Start the worker, shown as starting for as long."""
        seconds = self._settings.start_seconds
        self._update_unserved(starts=True)
        with self._events.starting(slot.name, seconds):
            return await worker.start(seconds)

    async def admit_all(self) -> None:
        """Admit the members where nothing is published. A member that fails at it is taken out and replaced."""
        await asyncio.gather(*(self._admit(member) for member in self.members))

    def scale(self, count: int) -> str:
        """Aim at ``count`` workers, from now on and in the background; returns what will happen. Those that do not
        serve leave first, then those that came last.
        """
        for slot in [slot for slot in self._slots.values() if slot.state == "out" and slot.task is None]:
            self._forget(slot)  # given up: it is not what is wanted
        staying = [slot for slot in self._slots.values() if slot.stays]
        order = sorted(staying, key=lambda slot: (slot.state != "serving", slot.index), reverse=True)
        leavers = order[: max(len(staying) - count, 0)]
        joiners = [self._add() for _ in range(count - len(staying))]
        self.wanted = count
        self._update_unserved()
        self._notify()
        for slot in leavers:
            self._leave(slot)
        for slot in joiners:
            self._begin(slot, self._bring_up(slot, None))
        self._report()
        changes = [
            f"{', '.join(slot.name for slot in slots)} {verb}"
            for slots, verb in ((leavers, "leaving"), (joiners, "joining"))
            if slots
        ]
        return f"{count} rollout workers: {'; '.join(changes) if changes else 'as it was'}"

    def vacate(self, node_ids: Sequence[str], why: str) -> None:
        """Let the workers of nodes that are about to go leave, and start as many others elsewhere."""
        for slot in list(self._slots.values()):
            if slot.member is None or slot.member.process.node_id not in node_ids or not slot.stays:
                continue
            self._events.note(f"{slot.name} leaves: {why}")
            self._leave(slot)
            fresh = self._add()
            self._begin(fresh, self._bring_up(fresh, None))
        self._report()

    def take_out(self, member: Member[W], error: LpoRayError) -> None:
        """Stop using a member that failed with ``error``, and replace it. Only the first call for a member counts."""
        if not member.up:
            return
        slot = self._slots[member.index]
        self._retire(member)
        slot.state, slot.detail = "out", str(error)
        self._report()
        self._begin(slot, self._replace(slot, member, error))

    async def close(self) -> None:
        """End the engines and their actors. Never raises."""
        slots = list(self._slots.values())
        for slot in slots:
            if slot.task is not None:
                slot.task.cancel()
        await asyncio.gather(*(slot.member.worker.close(CLOSE_SECONDS) for slot in slots if slot.member is not None))
        for slot in slots:
            if slot.worker is not None:
                slot.worker.kill()

    def _set_aside(self, member: Member[W]) -> None:
        """Lend a member: it gets no groups and no weights from the pool."""
        member.lent = True
        self.members.remove(member)
        self._slots[member.index].state = "lent"
        self._report()

    def _take_back(self, member: Member[W]) -> None:
        """End the loan: unless the worker is gone, it takes the current weights, as a joiner does."""
        member.lent = False
        if not member.up:
            return
        slot = self._slots[member.index]
        slot.state, member.version = "starting", None
        self.members.append(member)
        self._notify()
        self._report()
        self._begin(slot, self._admit(member))

    def _begin(self, slot: WorkerSlot[W], work: Awaitable[object]) -> None:
        async def run() -> None:
            try:
                await work
            finally:
                if slot.task is task:
                    slot.task = None

        slot.task = task = asyncio.get_running_loop().create_task(run())

    def _make(self, slot: WorkerSlot[W]) -> W:
        slot.worker = worker = self._spawn(slot.index, slot.name)
        return worker

    async def _bring_up(self, slot: WorkerSlot[W], error: LpoRayError | None) -> None:
        """Start the worker until it is up. ``error``: why it has to be started again, None for a joiner."""
        started = time.monotonic()
        while True:
            if error is not None and not await self._may_start_again(slot, error):
                return
            slot.state = "starting"
            self._report()
            worker = self._make(slot)
            try:
                process = await self._started(slot, worker)
                break
            except LpoRayError as failed:
                worker.kill()
                error, slot.state, slot.detail = failed, "out", str(failed)
                self._events.note(f"{slot.name} did not start: {failed}")
        member = self._join(slot, worker, process)
        self.members.append(member)
        self._update_unserved()
        self._notify()
        if not await self._admit(member):
            return
        again = f" ({slot.budget})" if slot.budget.spent else ""
        serves = f"serves {member.version}" if member.version else "is up, and takes the next weights"
        self._events.note(f"{slot.name} {serves} after {time.monotonic() - started:.1f} s{again}")

    async def _admit(self, member: Member[W]) -> bool:
        """Bring a member to the current weights, or take it out. Returns whether it is still up."""
        try:
            await self.admit(member)
        except LpoRayError as failed:
            self.take_out(member, failed)
            return False
        return True

    async def _may_start_again(self, slot: WorkerSlot[W], error: LpoRayError) -> bool:
        """Wait as long as the restart budget demands. Returns False when it is spent: the worker is given up."""
        pause = slot.budget.spend()
        if pause is not None:
            await asyncio.sleep(pause)
            return True
        text = f"{error}; its {slot.budget} are spent (supervision) and it is given up"
        self._events.note(f"{slot.name}: {text}")
        slot.detail, slot.task = text, None
        if not self.members and all(other.task is None for other in self._slots.values() if other.stays):
            self._fail(ComponentDied(slot.name, f"{text}; no rollout worker is left"))
        self._report()
        return False

    async def _replace(self, slot: WorkerSlot[W], member: Member[W], error: LpoRayError) -> None:
        evidence = await member.worker.inspect()
        self._events.note(f"{member.name} is taken out of the pool: {error}\n{evidence}")
        member.worker.kill()
        slot.member = None
        await self._bring_up(slot, error)

    def _leave(self, slot: WorkerSlot[W]) -> None:
        if slot.task is not None:
            slot.task.cancel()
        slot.state = "leaving"
        if slot.member is None:
            if slot.worker is not None:
                slot.worker.kill()
            self._forget(slot)
            return
        self._retire(slot.member)
        slot.member.leaving = True
        self._begin(slot, self._drain(slot, slot.member))

    async def _drain(self, slot: WorkerSlot[W], member: Member[W]) -> None:
        """Let it finish its groups for drain_seconds, then stop it; unfinished groups are lost and issued again."""
        if left := len(member.groups):
            member.done.clear()
            try:
                await asyncio.wait_for(member.done.wait(), self._settings.drain_seconds)
            except TimeoutError:
                text = f"{len(member.groups)} of its {left} groups go back after {self._settings.drain_seconds:g} s"
                self._events.note(f"{member.name} leaves: {text}")
        await member.worker.close(CLOSE_SECONDS)
        member.worker.kill()
        self._forget(slot)
        self._events.note(f"{member.name} has left")
        self._report()
