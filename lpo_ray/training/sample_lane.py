"""The sample lane: prompts in data order -> scored groups, one task a group.

```
 request -> gate.acquire -> ledger.issue -> rollout.sample -> verifier.score -> ledger.scored -> ready
               ▲                 ▲──── lost, or its lease ran out: the next attempt, in the same slot
               └── release: trained, stale, filtered or cut
```
A prompt whose answer cannot be read is filtered before it is sampled. One that stays unscored at every attempt, while
the verifier works, is filtered too, and another is sampled in its place. The run ends when there are too many of those.

A thread writes to the ledger what becomes of the groups, in the order in which it happens: nothing waits for a disk.
"""

from __future__ import annotations

import asyncio
import itertools
import math
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass

from lpo_ray.common.silence import ROUNDING, retrieve_exception
from lpo_ray.errors import GroupLost, TooManyLost, TooManyUnscored, Unscored, UnusableRow
from lpo_ray.interfaces import Components, Observer, PromptSource
from lpo_ray.records import Backlog, Key, Prompt, Sampling, ScoredGroup
from lpo_ray.training.group_selection import Selection
from lpo_ray.training.ledger import Ledger, PendingWork
from lpo_ray.training.staleness import GateSlot, ReadyGroups, StalenessGate

LEAST_PROMPTS = 20
"""prompts of which a share is taken, so that the first that stays unscored ends no run"""


@dataclass(frozen=True, slots=True)
class SampleSettings:
    """Settings of the sample lane."""

    sampling: Sampling
    max_attempts: int
    """attempts of one prompt in a row that are lost, before TooManyLost; that stay unscored, before it is filtered"""
    max_unscored_share: float
    """share of prompts that may be filtered for that, before TooManyUnscored"""
    lease_seconds: float
    """time without a sign of life of who holds an attempt; then it is lost"""
    capacity: int
    """groups that may be in flight or waiting to be trained"""
    max_bytes: int
    largest_group: int
    """bytes"""


@dataclass(slots=True, eq=False)
class _Flight:
    """A group in flight."""

    index: int
    prompt: Prompt
    slot: GateSlot
    attempt: int
    version: int
    """step of the weights when the attempt was issued"""
    task: asyncio.Task[None] | None = None

    @property
    def key(self) -> Key:
        """Prompt id and number of the current attempt."""
        return self.prompt.prompt_id, self.attempt


class UnscoredPrompts:
    """Prompts of this process that were filtered as unscored, among all whose groups are done."""

    def __init__(self, max_share: float) -> None:
        self._max_share = max_share
        self._done = self._unscored = 0
        self._since_step = 0

    def scored(self) -> None:
        """Count a prompt with a scored group."""
        self._done += 1

    def filtered(self, prompt_id: str, reason: str) -> None:
        """Count a prompt that was filtered. Raises TooManyUnscored when the share of LEAST_PROMPTS, or of all when
        these are more, is above the limit.
        """
        self._done += 1
        self._unscored += 1
        self._since_step += 1
        if self._unscored > self._max_share * max(self._done, LEAST_PROMPTS):
            raise TooManyUnscored(self._unscored, self._done, self._max_share, f"{prompt_id}: {reason}")

    def since_step(self) -> int:
        """Return how many were filtered since the last call."""
        count, self._since_step = self._since_step, 0
        return count


class SampleLane:
    """The lane that samples and scores. Make it inside a running event loop; ``run`` is a task of the training loop's
    task group, and so is each group.
    """

    def __init__(
        self,
        components: Components,
        source: PromptSource,
        ledger: Ledger,
        settings: SampleSettings,
        observer: Observer,
        tasks: asyncio.TaskGroup,
    ) -> None:
        self._components, self._source, self._ledger = components, source, ledger
        self._settings, self._observer, self._tasks = settings, observer, tasks
        self._gate = StalenessGate(settings.capacity, settings.max_bytes, settings.largest_group)
        self._ready = ReadyGroups()
        self._requested = asyncio.Semaphore(0)
        self._again: deque[str] = deque()
        """ids of prompts to issue again"""
        self._flights: set[_Flight] = set()
        self._slots: dict[Key, GateSlot] = {}
        self._heard: dict[Key, float] = {}
        """attempt that was sampled -> when the ledger had noted it; infinite until then, when nobody works on it"""
        self._sampled_tokens = 0
        self._unscored = UnscoredPrompts(settings.max_unscored_share)
        self.version = 0
        """step of the weights that engines serve now"""

    async def run(self, owed: PendingWork) -> None:
        """Re-admit groups left over from before a resume, then issue new prompts, up to the number requested. Waits for
        ``request`` and for the gate.
        """
        for scored in owed.scored:
            slot = await self._admitted()
            self._arrived(scored, slot)
        again = (index for index, _ in owed.prompts)
        indices = itertools.chain(again, itertools.count(await self._ledger.in_turn(self._ledger.next_index)))
        while True:
            slot = await self._admitted()
            index, prompt = await self._next(indices)
            attempt = await self._issued(index, prompt)
            self._flights.add(flight := _Flight(index, prompt, slot, attempt, self.version))
            flight.task = self._tasks.create_task(self._one_group(flight))

    def request(self, groups: int) -> None:
        """Ask for ``groups`` more groups. Nothing is sampled that was not requested."""
        for _ in range(groups):
            self._requested.release()

    async def take_fresh(self, step: int, max_staleness: int) -> ScoredGroup:
        """Wait for the next group to train at ``step``. Groups that are too old for it are issued again."""

        def too_old(scored: ScoredGroup) -> None:
            bound, oldest = step - max_staleness, scored.group.oldest_version
            self.mark_stale(scored, f"sampled by weights {oldest}, step {step} takes none older than {bound}")

        return await self._ready.take_fresh(step, max_staleness, too_old)

    def apply(self, selection: Selection) -> None:
        """Do what the selection of a step's groups asks for."""
        self.release(selection.released)
        self.request(selection.requested)
        for scored, reason in selection.filtered:
            self._note(self._ledger.filtered, scored.group.key, reason)
        for scored, reason in selection.stale:
            self.mark_stale(scored, reason)

    def mark_stale(self, scored: ScoredGroup, reason: str) -> None:
        """Leave out a group that was taken, and issue its prompt again."""
        self._note(self._ledger.stale, scored.group.key, reason)
        self.release([scored])
        self._again.append(scored.group.prompt.prompt_id)
        self.request(1)

    def release(self, groups: Iterable[ScoredGroup]) -> None:
        """Free the slots of groups that were taken, unless they are free already."""
        for scored in groups:
            slot = self._slots.pop(scored.group.key, None)
            if slot is not None:
                self._gate.release(slot)

    def cut(self, before: int, reason: str) -> int:
        """End and filter the groups that were issued to weights before step ``before``. Returns their number."""
        late = [flight for flight in self._flights if flight.version < before]
        for flight in late:
            self._note(self._ledger.filtered, flight.key, reason)
            self._gate.release(flight.slot)
        self._end(late)
        return len(late)

    def num_unscored(self) -> int:
        """Return how many prompts were filtered as unscored since the last call."""
        return self._unscored.since_step()

    def backlog(self) -> Backlog:
        """Groups that the lane holds now, and the tokens that were sampled since the last call."""
        tokens, self._sampled_tokens = self._sampled_tokens, 0
        return Backlog(len(self._flights), len(self._ready), self._gate.num_bytes, tokens)

    def close(self) -> None:
        """End every group that is in flight."""
        self._end(list(self._flights))

    def _end(self, flights: Iterable[_Flight]) -> None:
        for flight in flights:
            self._flights.discard(flight)
            if flight.task is not None:
                flight.task.cancel()

    async def _admitted(self) -> GateSlot:
        await self._requested.acquire()
        return await self._gate.acquire()

    async def _next(self, indices: Iterator[int]) -> tuple[int, Prompt]:
        """Read the next prompt that can be scored; those that cannot are filtered."""
        while True:
            if self._again:
                index = await self._ledger.in_turn(self._ledger.index_of, self._again.popleft())
            else:
                index = next(indices)
            try:
                return index, self._source.train(index)
            except UnusableRow as unusable:
                self._note(self._ledger.unusable, index, unusable.prompt_id, unusable.reason)

    def _note(self, method: Callable[..., object], *arguments: object) -> None:
        """Have the ledger note something, in turn. The run ends if it cannot."""

        async def done(noted: Awaitable[object]) -> None:
            await noted

        self._tasks.create_task(done(self._ledger.in_turn(method, *arguments)))

    def _issued(self, index: int, prompt: Prompt) -> asyncio.Future[int]:
        """Have the ledger issue a prompt; its attempt number."""
        return self._ledger.in_turn(self._ledger.issue, index, prompt.prompt_id, self._settings.lease_seconds)

    async def _one_group(self, flight: _Flight) -> None:
        """Turn an issued prompt into a scored group. At most max_attempts leases are lost, or stay unscored."""
        lost_times = unscored_times = 0
        reason = ""
        while lost_times < self._settings.max_attempts:
            if lost_times + unscored_times:
                await self._issue_next(flight)
            try:
                scored = await self._leased(flight.prompt, flight.attempt)
            except Unscored as lost:
                unscored_times += 1
                if unscored_times == self._settings.max_attempts:
                    self._filter(flight, f"unscored at {unscored_times} attempts: {lost.reason}")
                    return
                self._lost(flight, lost)
                continue
            except GroupLost as lost:
                lost_times += 1
                self._lost(flight, lost)
                reason = lost.reason
                continue
            await asyncio.get_running_loop().run_in_executor(self._ledger.contents, self._ledger.scored, scored)
            self._unscored.scored()
            self._flights.discard(flight)
            self._sampled_tokens += scored.group.num_tokens
            self._arrived(scored, flight.slot)
            return
        raise TooManyLost(
            f"prompt {flight.prompt.prompt_id} was lost {self._settings.max_attempts} times (pipeline.max_attempts), "
            f"the last time so: {reason}. Expected a group by then; fix the cause or raise pipeline.max_attempts. All "
            "reasons are in ledger.sqlite"
        )

    async def _issue_next(self, flight: _Flight) -> None:
        """Issue the next attempt of a prompt. It has its number at once: it may be cut before the ledger has it. It
        begins when the ledger has it, and so all that was noted of the one before.
        """
        flight.attempt, flight.version = flight.attempt + 1, self.version
        assert await self._issued(flight.index, flight.prompt) == flight.attempt

    def _lost(self, flight: _Flight, lost: GroupLost) -> None:
        record = self._ledger.unscored if isinstance(lost, Unscored) else self._ledger.lost
        self._note(record, flight.key, lost.reason)
        self._observer.lost(lost)

    def _filter(self, flight: _Flight, reason: str) -> None:
        """Leave out the prompt of ``flight``, and ask for another in its place. Raises TooManyUnscored."""
        self._note(self._ledger.filtered, flight.key, reason)
        self._observer.left_out(flight.prompt.prompt_id, reason)
        self._flights.discard(flight)
        self._gate.release(flight.slot)
        self._unscored.filtered(flight.prompt.prompt_id, reason)
        self.request(1)

    async def _leased(self, prompt: Prompt, attempt: int) -> ScoredGroup:
        """Make one attempt within its lease, which whoever holds it renews by signs of life. An answer that comes after
        it, although it was cancelled, is discarded.
        """
        lease = left = self._settings.lease_seconds
        work = asyncio.ensure_future(self._attempt(prompt, attempt))
        try:
            while left > ROUNDING:
                if (await asyncio.wait({work}, timeout=left))[0]:
                    return work.result()
                left = lease - self._silence_of((prompt.prompt_id, attempt))
        finally:
            work.cancel()
            work.add_done_callback(retrieve_exception)
        raise GroupLost(prompt.prompt_id, attempt, f"nothing was heard of it within its lease of {lease:g} s")

    async def _attempt(self, prompt: Prompt, attempt: int) -> ScoredGroup:
        with self._observer.stage("sample"):
            group = await self._components.rollout.sample(prompt, self._settings.sampling, attempt)
        try:
            self._heard[group.key] = math.inf  # no time of its lease passes until the ledger has noted it
            await self._ledger.in_turn(self._ledger.sampled, group.key)
            self._heard[group.key] = asyncio.get_running_loop().time()
            with self._observer.stage("verify"):
                return await self._components.verifier.score(group)
        finally:
            del self._heard[group.key]

    def _silence_of(self, key: Key) -> float:
        """Seconds since the last sign of life of a group's attempt: of whoever holds it, or that it was sampled."""
        heard = self._heard.get(key, -math.inf)
        return min(self._components.silence_of(key), max(0.0, asyncio.get_running_loop().time() - heard))

    def _arrived(self, scored: ScoredGroup, slot: GateSlot) -> None:
        self._gate.resize(slot, scored.group.num_bytes)
        self._slots[scored.group.key] = slot
        self._ready.put(scored)
