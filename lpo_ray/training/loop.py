"""The training loop: two lanes over five interfaces, the same in one process, on one machine, or on a cluster.

```
 sample lane   gate.acquire -> rollout.sample -> verifier.score -> ready          (sample_lane.py; one task a group)
 project lane  groups, anchor -> targets -> pack -> learner.project -> transport.publish -> ledger.step -> release
               (assembly.py)
```
The gate is the only place where the lanes wait for each other: the sample lane stops when groups_per_step x
(max_staleness + 1) groups are on their way, the project lane frees places when every engine has proved new weights.
With max_staleness = 0 the lanes take turns, on-policy; with more, sampling of the next steps overlaps with learning.
A learner that is lost (``_with_learner``) is brought back to the last commit under the project lane's feet: the step's
groups are still in its hands, and the sample lane does not hear of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from lpo_ray.errors import ComponentDied, Interrupted, LearnerLost, LpoRayError, NumbersNotFinite
from lpo_ray.interfaces import Components, Observer, PromptSource
from lpo_ray.learner.packing import Packing, pack_step
from lpo_ray.records import (
    AfterGroup,
    Anchor,
    Key,
    Publication,
    ScoredGroup,
    StepRecord,
    StepReport,
    TargetGroup,
    TrainBatch,
    UpdateReport,
    WeightsVersion,
)
from lpo_ray.training.checkpoint import CheckpointRules, CheckpointState, save_checkpoint
from lpo_ray.training.group_selection import GroupSelector, SelectionSettings, StepGroups
from lpo_ray.training.ledger import Ledger, PendingWork
from lpo_ray.training.measurement import NOTHING, Measurement, MeasureRule
from lpo_ray.training.sample_lane import SampleLane, SampleSettings

T = TypeVar("T")
Recover = Callable[[LearnerLost], Awaitable[None]]
NOTHING_OWED = PendingWork((), ())


async def _no_recovery(lost: LearnerLost) -> None:
    raise ComponentDied(lost.who, lost.cause)


@dataclass(frozen=True, slots=True)
class BatchSettings:
    """How a step's groups become a batch."""

    packing: Packing
    updates_per_step: int
    learning_rate: Callable[[int], float]
    """of a step, counted from 0"""
    seed: int


@dataclass(frozen=True, slots=True)
class LoopSettings:
    """The loop's own values; everything else belongs to the components."""

    steps: int
    sample: SampleSettings
    assembly: SelectionSettings
    batch: BatchSettings
    checkpoints: CheckpointRules
    max_skipped_updates: int
    """in a row, before NumbersNotFinite"""
    evaluate_every: int
    measure: MeasureRule = NOTHING


async def make_batch(
    components: Components, groups: Sequence[ScoredGroup], anchor: Anchor, settings: BatchSettings, step: int
) -> tuple[list[TargetGroup], TrainBatch]:
    """Targets of a step's groups and the updates that project the policy onto them, for as many ranks as there are."""
    targets = await components.target_builder.build(groups, anchor, step)
    batch = pack_step(
        targets,
        dataclasses.replace(settings.packing, world_size=components.learner.world_size),
        step=step,
        seed=settings.seed,
        updates=settings.updates_per_step,
        learning_rate=settings.learning_rate(step),
    )
    return targets, batch


class TrainingLoop:
    """One run of the loop. Make it inside a running event loop; call ``run`` once."""

    def __init__(
        self, components: Components, source: PromptSource, ledger: Ledger, settings: LoopSettings, observer: Observer
    ) -> None:
        self._components, self._source, self._ledger = components, source, ledger
        self._settings, self._observer = settings, observer
        self._lanes: asyncio.TaskGroup
        self._stop: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._saved = -1
        self._standing: WeightsVersion | None = None
        """the commit at which the learner is; None between an update and its commit"""
        self._saving: asyncio.Task[None] | None = None
        self._skipped = 0
        self._recover: Recover
        self._recovering = asyncio.Lock()
        self._recoveries = 0

    def stop(self, signal_number: int) -> None:
        """Ask the run to end after the update that is being computed. Safe to call more than once."""
        if not self._stop.done():
            self._stop.set_result(signal_number)

    async def run(
        self,
        first: WeightsVersion,
        owed: PendingWork = NOTHING_OWED,
        evaluate: Callable[[int], Awaitable[None]] | None = None,
        *,
        saved: int = 0,
        recover: Recover = _no_recovery,
    ) -> WeightsVersion:
        """Train from ``first`` (already published) to the last step; returns the last version.

        ``saved``: step of the newest checkpoint; when steps were computed again since, a new one is written first.
        ``recover``: start the learner that was lost again, with the weights of the last commit.
        Raises Interrupted, with a checkpoint written, after ``stop``; or the first error of a component, with one where
        the learner stands at the last commit.
        """
        self._saved, self._recover, self._standing = saved, recover, first
        try:
            version = await self._lanes_to_the_end(first, owed, evaluate)
        except* ComponentDied as died:
            if died.subgroup(LearnerLost) is None:
                await self._save_standing()
            raise
        self._ledger.end(f"on its way when the run ended at step {version.step}")
        if version.step != self._saved:
            await self._save(version)
        if self._stop.done():
            raise Interrupted(self._stop.result(), version.step)
        return version

    async def _lanes_to_the_end(
        self, first: WeightsVersion, owed: PendingWork, evaluate: Callable[[int], Awaitable[None]] | None
    ) -> WeightsVersion:
        settings = self._settings
        remaining = (settings.steps - first.step) * settings.assembly.groups_per_step
        async with asyncio.TaskGroup() as self._lanes:
            lane = SampleLane(
                self._components, self._source, self._ledger, settings.sample, self._observer, self._lanes
            )
            lane.version = first.step
            if remaining > 0:
                lane.want(remaining + settings.assembly.oversample_groups)
            sampling = self._lanes.create_task(lane.run(owed))
            if first.step != self._saved:
                await self._checkpoint(first)
            version = await self._project_lane(first, lane, evaluate)
            sampling.cancel()
            lane.close()
        return version

    async def _save_standing(self) -> None:
        """A run that ends because an engine, the verifier or the target builder is lost still has its learner. Between
        an update and its commit that is a step further than the books, and the run goes on from the checkpoint before.
        """
        version = self._standing
        cut_off = self._saving is not None and self._saving.cancelled()
        if version is None or (version.step == self._saved and not cut_off):
            return
        with contextlib.suppress(LpoRayError):  # the error that ended the run is the one to tell
            await self._write(version, self._score())

    async def _project_lane(
        self, version: WeightsVersion, lane: SampleLane, evaluate: Callable[[int], Awaitable[None]] | None
    ) -> WeightsVersion:
        """Consumes scored groups, produces weights. Waits for the sample lane, and unblocks it through the gate."""
        settings = self._settings
        since = version.step - settings.assembly.max_staleness
        reusable = self._ledger.trained_since(since) if settings.assembly.reused_groups_per_step else []
        assembly = GroupSelector(lane, self._log_ratios, settings.assembly, self._observer, reusable)
        for step in range(version.step, settings.steps):
            found = await self._unless_stopped(assembly.groups(step))
            if found is None:
                break
            made = await self._with_learner(functools.partial(self._make_step, step, found))
            targets, batch, report, after, publication = made
            version = publication.version
            trained, skipped = _outcome(found.fresh, report)
            reused = [scored.group.key for scored in found.reused]
            with self._ledger.step(version, trained, skipped, reused, found.anchors):
                self._observer.step_done(
                    StepRecord(
                        version.step, batch, targets, report, publication, self._ledger.counts(), found.left_out,
                        len(found.reused), lane.backlog(), after,
                    )
                )  # fmt: skip
            self._standing = version
            assembly.trained(step, [scored for scored in found.fresh if scored.group.key not in skipped])
            lane.version = version.step
            lane.release(found.fresh)
            if evaluate and settings.evaluate_every and version.step % settings.evaluate_every == 0:
                await evaluate(version.step)
            if settings.checkpoints.every and version.step % settings.checkpoints.every == 0:
                await self._checkpoint(version)
            await self._stop_if_not_finite(version, report)
        return version

    async def _make_step(
        self, step: int, found: StepGroups
    ) -> tuple[list[TargetGroup], TrainBatch, StepReport, dict[Key, AfterGroup], Publication]:
        """From a step's groups to published weights. Nothing of it is on record before the caller commits it."""
        parts = self._components
        with self._observer.stage("anchor"):
            targets, batch = await make_batch(parts, found.groups, found.anchor, self._settings.batch, step)
        await self._until_saved()
        with self._observer.stage("project"):
            measurement = Measurement(parts.learner, targets, self._settings.measure)
            await measurement.before()
            self._standing = None
            report = await parts.learner.project(batch)
            after = await measurement.after()
        with self._observer.stage("publish"):
            return targets, batch, report, after, await parts.transport.publish(step + 1)

    async def _log_ratios(self, groups: Sequence[ScoredGroup]) -> Anchor:
        return await self._with_learner(lambda: self._components.learner.log_ratios(groups))

    async def _with_learner(self, work: Callable[[], Awaitable[T]]) -> T:
        """The result of ``work``; when the learner is lost in it, the learner is brought back to the last commit, and
        the work is done again. Of several that lose it together, one brings it back.
        """
        while True:
            before = self._recoveries
            try:
                return await work()
            except LearnerLost as error:
                lost = error
            async with self._recovering:
                while self._recoveries == before:
                    try:
                        with self._observer.stage("project"):
                            await self._recover(lost)
                        self._recoveries += 1
                    except LearnerLost as again:
                        lost = again

    async def _stop_if_not_finite(self, version: WeightsVersion, report: StepReport) -> None:
        for update in report.updates:
            self._skipped = 0 if update.norms.applied else self._skipped + 1
            if self._skipped >= self._settings.max_skipped_updates:
                await self._checkpoint(version)
                await self._until_saved()
                raise NumbersNotFinite(self._skipped, version.step, _where(update), self._observer.evidence())

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
        """Once the checkpoint is whole the ledger forgets what only a resume from the one before it needs."""
        self._saved = version.step
        await self._with_learner(functools.partial(self._write, version, self._score()))
        self._ledger.settle(version.step, self._settings.assembly.max_staleness)

    def _score(self) -> float | None:
        """By which the best checkpoint is known."""
        best = self._settings.checkpoints.best
        return self._observer.score(best) if best else None

    async def _write(self, version: WeightsVersion, score: float | None) -> None:
        learner = self._components.learner
        state = CheckpointState(version.step, version.digest, learner.world_size, score)
        with self._observer.stage("checkpoint"):
            await save_checkpoint(self._settings.checkpoints, state, learner)

    async def _unless_stopped(self, work: Awaitable[T]) -> T | None:
        """The result of ``work``, or None (and ``work`` cancelled) once ``stop`` was called."""
        task = asyncio.ensure_future(work)
        try:
            await asyncio.wait({task, self._stop}, return_when=asyncio.FIRST_COMPLETED)
            return None if self._stop.done() else task.result()
        finally:
            task.cancel()


def _outcome(fresh: Sequence[ScoredGroup], report: StepReport) -> tuple[list[Key], dict[Key, str]]:
    """Groups that were trained, and those of an update that was skipped: they are filtered, and not issued again."""
    skipped = {
        group.key: f"update skipped: {_where(update)}"
        for update in report.updates
        if not update.norms.applied
        for group in update.groups
    }
    keys = [scored.group.key for scored in fresh]
    return [key for key in keys if key not in skipped], {key: skipped[key] for key in keys if key in skipped}


def _where(update: UpdateReport) -> str:
    """Where the numbers of a skipped update stopped being finite."""
    return "; ".join(str(found) for found in update.not_finite[:3]) or "in the gradient, nowhere in the forward pass"
