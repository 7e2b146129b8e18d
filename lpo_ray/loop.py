"""The training loop: two lanes over five interfaces, the same in one process, on one machine, or on a cluster.

```
 sample lane   gate.acquire -> rollout.sample -> verifier.score -> queue          (one task a group)
 project lane  take_fresh -> anchor -> targets -> pack -> learner.project -> transport.publish -> gate.release -> commit
```
The gate is the only place where the lanes wait for each other: the sample lane stops when groups_per_step x
(max_staleness + 1) groups are on their way, the project lane frees places when every engine has proved new weights.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol, TypeVar

from lpo_ray.checkpoint import CheckpointRules, CheckpointState, save_checkpoint
from lpo_ray.data.source import PromptSource
from lpo_ray.errors import GroupLost, Interrupted, NumbersNotFinite, TooManyLost
from lpo_ray.interfaces import Components
from lpo_ray.ledger import Ledger
from lpo_ray.packing import Packing, pack_step
from lpo_ray.records import (
    Anchor,
    Prompt,
    Publication,
    Sampling,
    ScoredGroup,
    StepReport,
    TargetGroup,
    TrainBatch,
    UpdateReport,
    WeightsVersion,
    zero_anchor,
)
from lpo_ray.staleness import StalenessGate, take_fresh

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class LoopSettings:
    """The loop's own values; everything else belongs to the components."""

    steps: int
    groups_per_step: int
    updates_per_step: int
    max_staleness: int
    max_attempts: int
    packing: Packing
    sampling: Sampling
    behaviour_from_engine: bool
    learning_rate: Callable[[int], float]
    """of a step, counted from 0"""
    checkpoints: CheckpointRules
    max_skipped_updates: int
    """in a row, before NumbersNotFinite"""
    evaluate_every: int


@dataclass(frozen=True, slots=True, eq=False)
class StepRecord:
    """One finished step, for the observer. ``step`` counts from 1: it is the version of the weights it made."""

    step: int
    batch: TrainBatch
    targets: Sequence[TargetGroup]
    report: StepReport
    publication: Publication
    groups: dict[str, int]
    """ledger counts"""


class Observer(Protocol):
    """Who is told what happens; telemetry in a run, a list in a test."""

    def stage(self, name: str) -> AbstractContextManager[None]:
        """Entered while a stage is at work."""
        ...

    def lost(self, lost: GroupLost) -> None:
        """A group was lost and is issued again."""
        ...

    def step_done(self, record: StepRecord) -> None:
        """A step is committed."""
        ...

    def score(self, name: str) -> float | None:
        """The value of a metric, or of the newest evaluation, for the step that was done last; None: not measured."""
        ...

    def evidence(self) -> str:
        """Where the groups of the step that was done last can be read."""
        ...


class TrainingLoop:
    """One run of the loop. Make it inside a running event loop; call ``run`` once."""

    def __init__(
        self, components: Components, source: PromptSource, ledger: Ledger, settings: LoopSettings, observer: Observer
    ) -> None:
        self._components, self._source, self._ledger = components, source, ledger
        self._settings, self._observer = settings, observer
        self._gate = StalenessGate(settings.groups_per_step, settings.max_staleness)
        self._scored: asyncio.Queue[ScoredGroup] = asyncio.Queue()
        self._lanes: asyncio.TaskGroup
        self._in_flight: set[asyncio.Task[None]] = set()
        self._stop: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._saved = -1
        self._saving: asyncio.Task[None] | None = None
        self._skipped = 0

    def stop(self, signal_number: int) -> None:
        """Ask the run to end after the update that is being computed. Safe to call more than once."""
        if not self._stop.done():
            self._stop.set_result(signal_number)

    async def run(
        self,
        first: WeightsVersion,
        owed: Sequence[tuple[int, str]] = (),
        evaluate: Callable[[int], Awaitable[None]] | None = None,
    ) -> WeightsVersion:
        """Train from ``first`` (already published) to the last step; returns the last version.

        ``owed``: (data index, prompt id) pairs to issue before new data. Raises Interrupted, with a checkpoint
        written, after ``stop``; or the first error of a component.
        """
        self._saved = first.step
        async with asyncio.TaskGroup() as lanes:
            self._lanes = lanes
            sampling = lanes.create_task(self._sample_lane(first.step, [index for index, _ in owed]))
            version = await self._project_lane(first, evaluate)
            for task in (sampling, *self._in_flight):
                task.cancel()
        if version.step != self._saved:
            await self._save(version)
        if self._stop.done():
            raise Interrupted(self._stop.result(), version.step)
        return version

    async def _sample_lane(self, first_step: int, owed: list[int]) -> None:
        """Issues one group for each that the remaining steps will train. Waits for the gate."""
        remaining = (self._settings.steps - first_step) * self._settings.groups_per_step
        next_index = self._ledger.next_index()
        for number in range(remaining):
            await self._gate.acquire()
            index = owed[number] if number < len(owed) else next_index + number - len(owed)
            self._issue(index, self._source.train(index))

    def _issue(self, index: int, prompt: Prompt) -> None:
        self._in_flight.add(task := self._lanes.create_task(self._one_group(index, prompt)))
        task.add_done_callback(self._in_flight.discard)

    async def _one_group(self, index: int, prompt: Prompt) -> None:
        """Consumes a prompt, produces one scored group; a lost group is issued again in the same place of the gate."""
        for _ in range(self._settings.max_attempts):
            attempt = self._ledger.issue(index, prompt.prompt_id)
            try:
                with self._observer.stage("sample"):
                    group = await self._components.rollout.sample(prompt, self._settings.sampling, attempt)
                with self._observer.stage("verify"):
                    scored = await self._components.verifier.score(group)
            except GroupLost as lost:
                self._ledger.lost(prompt.prompt_id, attempt, lost.reason)
                self._observer.lost(lost)
                continue
            self._ledger.scored(prompt.prompt_id, attempt)
            self._scored.put_nowait(scored)
            return
        raise TooManyLost(
            f"prompt {prompt.prompt_id} was lost {self._settings.max_attempts} times (pipeline.max_attempts); the "
            "reasons are in ledger.sqlite. Expected a group at the latest then: mend the cause, or raise the limit"
        )

    async def _project_lane(
        self, version: WeightsVersion, evaluate: Callable[[int], Awaitable[None]] | None
    ) -> WeightsVersion:
        """Consumes scored groups, produces weights. Waits for the sample lane, and unblocks it through the gate."""
        settings, parts = self._settings, self._components
        for step in range(version.step, settings.steps):
            groups = await self._unless_stopped(self._take(step))
            if groups is None:
                break
            with self._observer.stage("anchor"):
                targets = await parts.target_builder.build(groups, await self._anchor(groups))
            batch = pack_step(
                targets,
                settings.packing,
                step=step,
                seed=settings.sampling.seed,
                updates=settings.updates_per_step,
                learning_rate=settings.learning_rate(step),
            )
            await self._until_saved()
            with self._observer.stage("project"):
                report = await parts.learner.project(batch)
            with self._observer.stage("publish"):
                publication = await parts.transport.publish(step + 1)
            version = publication.version
            self._commit(version, report)
            self._gate.release(len(groups))
            counts = self._ledger.counts()
            self._observer.step_done(StepRecord(version.step, batch, targets, report, publication, counts))
            if evaluate and settings.evaluate_every and version.step % settings.evaluate_every == 0:
                await evaluate(version.step)
            if settings.checkpoints.every and version.step % settings.checkpoints.every == 0:
                await self._checkpoint(version)
            await self._stop_if_not_finite(version, report)
        return version

    def _commit(self, version: WeightsVersion, report: StepReport) -> None:
        """Groups of an update that was skipped are not trained; they are filtered, and not issued again."""
        trained = [group.key for update in report.updates if update.norms.applied for group in update.groups]
        filtered = {
            group.key: f"update skipped: {_where(update)}"
            for update in report.updates
            if not update.norms.applied
            for group in update.groups
        }
        self._ledger.commit(version.step, version.digest, trained, filtered)

    async def _stop_if_not_finite(self, version: WeightsVersion, report: StepReport) -> None:
        for update in report.updates:
            self._skipped = 0 if update.norms.applied else self._skipped + 1
            if self._skipped >= self._settings.max_skipped_updates:
                await self._checkpoint(version)
                await self._until_saved()
                raise NumbersNotFinite(self._skipped, version.step, _where(update), self._observer.evidence())

    async def _take(self, step: int) -> list[ScoredGroup]:
        def reissue(scored: ScoredGroup) -> None:
            group, bound = scored.group, self._settings.max_staleness
            reason = f"sampled by weights {group.oldest_version}, step {step} takes none older than {step - bound}"
            self._ledger.stale(group.prompt.prompt_id, group.attempt, reason)
            self._issue(self._ledger.index_of(group.prompt.prompt_id), group.prompt)

        return await take_fresh(
            self._scored,
            self._settings.groups_per_step,
            step=step,
            max_staleness=self._settings.max_staleness,
            on_stale=reissue,
        )

    async def _anchor(self, groups: Sequence[ScoredGroup]) -> Anchor:
        """s_t. Zero by definition when the behaviour is the anchor itself: no forward is spent on it."""
        if self._settings.behaviour_from_engine:
            return await self._components.learner.log_ratios(groups)
        return zero_anchor(groups)

    async def _checkpoint(self, version: WeightsVersion) -> None:
        """Begin to save; the next step's sampling goes on meanwhile. The learner takes the call now, so what follows
        it (the next projection) does not change what is saved; and no projection starts before it is done.
        """
        if version.step == self._saved:
            return
        await self._until_saved()
        self._saving = self._lanes.create_task(self._save(version))
        await asyncio.sleep(0)

    async def _until_saved(self) -> None:
        if self._saving is not None:
            await self._saving

    async def _save(self, version: WeightsVersion) -> None:
        rules = self._settings.checkpoints
        score = self._observer.score(rules.best) if rules.best else None
        state = CheckpointState(version.step, version.digest, self._components.learner.world_size, score)
        self._saved = version.step
        with self._observer.stage("checkpoint"):
            await save_checkpoint(rules, state, self._components.learner)

    async def _unless_stopped(self, work: Awaitable[T]) -> T | None:
        """The result of ``work``, or None (and ``work`` cancelled) once ``stop`` was called."""
        task = asyncio.ensure_future(work)
        try:
            await asyncio.wait({task, self._stop}, return_when=asyncio.FIRST_COMPLETED)
            return None if self._stop.done() else task.result()
        finally:
            task.cancel()


def _where(update: UpdateReport) -> str:
    """Where the numbers of a skipped update stopped being finite."""
    return "; ".join(str(found) for found in update.not_finite[:3]) or "in the gradient, nowhere in the forward pass"
