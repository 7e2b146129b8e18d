"""The training loop: two lanes over five interfaces, the same in one process, on one machine, or on a cluster.

```
 sample lane   gate.acquire -> rollout.sample -> verifier.score -> ready          (sample_lane.py; one task a group)
 project lane  groups, anchor -> targets -> pack -> learner.project -> transport.publish -> ledger.step -> release
               (TrainingLoop._step)
```
The gate is the only place where the lanes wait for each other: the sample lane stops when groups_per_step x
(max_staleness + 1) groups are in flight, the project lane frees slots when every engine has proved new weights. With
max_staleness = 0 the lanes take turns, on-policy; with more, sampling of the next steps overlaps with learning.
A lost learner is restored to the last commit inside the project lane's await (``LearnerRecovery``); the lane keeps the
step's groups, and the sample lane is not affected.
"""

from __future__ import annotations

import asyncio
import dataclasses
import functools
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from lpo_ray.common.silence import retrieve_exception
from lpo_ray.errors import ComponentDied, Interrupted, LearnerLost, NumbersNotFinite
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
    zero_anchor,
)
from lpo_ray.training.checkpoint import CheckpointRules
from lpo_ray.training.checkpoint_writer import CheckpointWriter
from lpo_ray.training.group_selection import (
    GroupSelector,
    ReusableGroups,
    SelectionSettings,
    StepGroups,
    reason_to_drop,
)
from lpo_ray.training.learner_recovery import LearnerRecovery, Recover, no_recovery
from lpo_ray.training.ledger import Ledger, PendingWork
from lpo_ray.training.measurement import NOTHING, Measurement, MeasureRule
from lpo_ray.training.sample_lane import SampleLane, SampleSettings

T = TypeVar("T")
Evaluate = Callable[[int], Awaitable[None]]
NOTHING_OWED = PendingWork((), ())


@dataclass(frozen=True, slots=True)
class BatchSettings:
    """How a step's groups become a batch."""

    packing: Packing
    updates_per_step: int
    learning_rate: Callable[[int], float]
    """step, counted from 0 -> learning rate"""
    seed: int


@dataclass(frozen=True, slots=True)
class LoopSettings:
    """The loop's own values; everything else belongs to the components."""

    steps: int
    sample: SampleSettings
    selection: SelectionSettings
    batch: BatchSettings
    checkpoints: CheckpointRules
    max_skipped_updates: int
    """skipped updates in a row, before NumbersNotFinite"""
    evaluate_every: int
    measure: MeasureRule = NOTHING


@dataclass(frozen=True, slots=True, eq=False)
class StepResult:
    """Result of learning from a step's groups. Nothing of it is on record before the step is committed."""

    targets: Sequence[TargetGroup]
    batch: TrainBatch
    report: StepReport
    after: Mapping[Key, AfterGroup]
    publication: Publication

    @property
    def version(self) -> WeightsVersion:
        """Weights that the step made."""
        return self.publication.version


async def make_batch(
    components: Components, groups: Sequence[ScoredGroup], anchor: Anchor, settings: BatchSettings, step: int
) -> tuple[list[TargetGroup], TrainBatch]:
    """Build the targets of a step's groups, and pack the updates that project the policy onto them for all ranks."""
    targets = await components.target_builder.build(groups, anchor, step)
    batch = await asyncio.to_thread(  # thousands of long responses take a second
        pack_step,
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
        self._components, self._ledger = components, ledger
        self._settings, self._observer = settings, observer
        self._tasks = asyncio.TaskGroup()
        self._lane = SampleLane(components, source, ledger, settings.sample, observer, self._tasks)
        self._reusable = ReusableGroups(settings.selection)
        self._recovery = LearnerRecovery(observer)
        self._checkpoints = CheckpointWriter(
            settings.checkpoints, components.learner, self._recovery, ledger, observer, self._tasks,
            keep_steps=settings.selection.max_staleness,
        )  # fmt: skip
        self._evaluate: Evaluate | None = None
        self._stop: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._skipped = 0
        """updates in a row"""

    def stop(self, signal_number: int) -> None:
        """Ask the run to end after the update that is being computed. Safe to call more than once."""
        if not self._stop.done():
            self._stop.set_result(signal_number)

    async def run(
        self,
        first: WeightsVersion,
        owed: PendingWork = NOTHING_OWED,
        evaluate: Evaluate | None = None,
        *,
        saved: int = 0,
        recover: Recover = no_recovery,
    ) -> WeightsVersion:
        """Train from ``first`` (already published) to the last step; returns the last version.

        ``saved``: step of the newest checkpoint; when steps were computed again since, a new one is written first.
        ``recover``: start a lost learner again, with the weights of the last commit.
        Raises Interrupted, with a checkpoint written, after ``stop``; or the first error of a component, with one where
        the learner stands at the last commit.
        """
        self._checkpoints.saved, self._checkpoints.standing = saved, first
        self._recovery.recover, self._evaluate = recover, evaluate
        try:
            version = await self._run_lanes(first, owed)
        except* ComponentDied as died:
            if died.subgroup(LearnerLost) is None:
                await self._checkpoints.save_standing()
            raise
        await self._ledger.in_turn(self._ledger.end, f"on its way when the run ended at step {version.step}")
        if version.step != self._checkpoints.saved:
            await self._checkpoints.save(version)
        if self._stop.done():
            raise Interrupted(self._stop.result(), version.step)
        return version

    async def _run_lanes(self, first: WeightsVersion, owed: PendingWork) -> WeightsVersion:
        settings, lane = self._settings, self._lane
        remaining = (settings.steps - first.step) * settings.selection.groups_per_step
        async with self._tasks as tasks:
            lane.version = first.step
            if remaining > 0:
                lane.request(remaining + settings.selection.oversample_groups)
            sampling = tasks.create_task(lane.run(owed))
            if first.step != self._checkpoints.saved:
                await self._checkpoints.begin(first)
            version = await self._project_lane(first)
            sampling.cancel()
            lane.close()
        return version

    async def _project_lane(self, version: WeightsVersion) -> WeightsVersion:
        """Turn scored groups into weights, step by step. Waits for the sample lane; unblocks it through the gate."""
        if self._settings.selection.reused_groups_per_step:
            since = version.step - self._settings.selection.max_staleness
            trained = await asyncio.to_thread(self._ledger.trained_since, since)
            self._reusable.add(version.step, trained)
        for step in range(version.step, self._settings.steps):
            made = await self._step(step)
            if made is None:
                break
            version = made
        return version

    async def _step(self, step: int) -> WeightsVersion | None:
        """Compute one step; every stage of the algorithm, in order. Returns None once ``stop`` was called."""
        groups = await self._unless_stopped(self._take_groups(step))  # fresh enough, each with its anchor s_t
        if groups is None:
            return None

        async def learn() -> StepResult:  # from the beginning, when the learner is lost in it
            targets, batch = await self._make_batch(groups, step)  # w*, and the micro-batches of the updates
            await self._checkpoints.until_saved()
            report, after = await self._project(targets, batch)  # the updates
            keeping = asyncio.ensure_future(self._observer.learned(batch, targets, report, after))
            keeping.add_done_callback(retrieve_exception)
            try:
                publication = await self._publish(step + 1)  # until every engine has proved the new weights
                await keeping
            finally:
                keeping.cancel()
            return StepResult(targets, batch, report, after, publication)

        result = await self._recovery.run(learn)
        await asyncio.get_running_loop().run_in_executor(self._ledger.contents, self._ledger.sync)
        await self._commit(groups, result)
        self._release(groups, result.version)
        await self._evaluate_if_due(result.version)
        await self._save_if_due(result.version)
        await self._stop_if_not_finite(result)
        return result.version

    async def _make_batch(self, groups: StepGroups, step: int) -> tuple[list[TargetGroup], TrainBatch]:
        with self._observer.stage("anchor"):
            return await make_batch(self._components, groups.groups, groups.anchor, self._settings.batch, step)

    async def _project(
        self, targets: Sequence[TargetGroup], batch: TrainBatch
    ) -> tuple[StepReport, Mapping[Key, AfterGroup]]:
        """Run the updates, and measure how the policy sees some groups before and after them."""
        with self._observer.stage("project"):
            measurement = Measurement(self._components.learner, targets, self._settings.measure)
            await measurement.before()
            self._checkpoints.standing = None
            report = await self._components.learner.project(batch)
            return report, await measurement.after()

    async def _publish(self, step: int) -> Publication:
        with self._observer.stage("publish"):
            return await self._components.transport.publish(step)

    async def _take_groups(self, step: int) -> StepGroups:
        """Wait for the groups of a step in the sample lane, and score their anchor. Raises NothingToTrain."""
        settings, selector = self._settings.selection, GroupSelector(step, self._settings.selection)
        while not selector.is_done:
            while not selector.is_round_full:
                scored = await self._lane.take_fresh(step, settings.max_staleness)
                self._lane.apply(selector.add(scored))
            anchor = await self._anchor(selector.candidates)
            self._lane.apply(selector.judge(anchor))
        fresh = selector.step_groups()
        num_cut = self._cut_stragglers(step)
        drawn = self._reusable.draw(step)
        anchor = await self._anchor(drawn)
        pairs = zip(drawn, anchor, strict=True)
        return fresh.extended([pair for pair in pairs if reason_to_drop(pair[1], settings) is None], num_cut)

    async def _anchor(self, groups: Sequence[ScoredGroup]) -> Anchor:
        """Score s_t. It is zero by definition when the behaviour is the anchor itself: no forward is spent on it."""
        if not groups or not self._settings.selection.behaviour_from_engine:
            return zero_anchor(groups)
        with self._observer.stage("anchor"):
            return await self._recovery.run(lambda: self._components.learner.log_ratios(groups))

    def _cut_stragglers(self, step: int) -> int:
        """End the groups that are late once the step has its own, and request others. Returns their number."""
        settings = self._settings.selection
        if not settings.oversample_groups:
            return 0
        reason = f"late when step {step + 1} had its groups"
        num_cut = self._lane.cut(step + 1 - settings.max_staleness, reason)
        self._lane.request(num_cut)
        return num_cut

    async def _commit(self, groups: StepGroups, result: StepResult) -> None:
        """Record the step in one transaction: in the ledger, and with the observer. A thread waits for the disk."""
        version, skipped = result.version, _skipped(groups.fresh, result.report)
        trained = [scored for scored in groups.fresh if scored.group.key not in skipped]
        keys, reused = ([scored.group.key for scored in found] for found in (trained, groups.reused))
        record = functools.partial(
            StepRecord,
            step=version.step,
            batch=result.batch,
            targets=result.targets,
            report=result.report,
            publication=result.publication,
            left_out={**groups.left_out, "unscored": self._lane.num_unscored()},
            reused=groups.num_reused,
            backlog=self._lane.backlog(),
            after=result.after,
        )
        write = self._observer.step_ends()

        def commit() -> StepRecord:
            with self._ledger.step(version, keys, skipped, reused, groups.anchors):
                write(made := record(groups=self._ledger.counts()))
            return made

        self._observer.step_done(await self._ledger.in_turn(commit))
        self._checkpoints.standing = version
        self._reusable.add(version.step, trained)

    def _release(self, groups: StepGroups, version: WeightsVersion) -> None:
        """Free the slots of the step's groups at the gate: the groups that take them are sampled by ``version``."""
        self._lane.version = version.step
        self._lane.release(groups.fresh)

    async def _evaluate_if_due(self, version: WeightsVersion) -> None:
        every = self._settings.evaluate_every
        if self._evaluate and every and version.step % every == 0:
            await self._evaluate(version.step)

    async def _save_if_due(self, version: WeightsVersion) -> None:
        every = self._settings.checkpoints.every
        if every and version.step % every == 0:
            await self._checkpoints.begin(version)

    async def _stop_if_not_finite(self, result: StepResult) -> None:
        """Raise NumbersNotFinite, with a checkpoint written, when too many updates in a row were skipped."""
        for update in result.report.updates:
            self._skipped = 0 if update.norms.applied else self._skipped + 1
            if self._skipped >= self._settings.max_skipped_updates:
                await self._checkpoints.begin(result.version)
                await self._checkpoints.until_saved()
                where, evidence = _not_finite_in(update), self._observer.evidence()
                raise NumbersNotFinite(self._skipped, result.version.step, where, evidence)

    async def _unless_stopped(self, work: Awaitable[T]) -> T | None:
        """Return the result of ``work``, or None (and ``work`` cancelled) once ``stop`` was called."""
        task = asyncio.ensure_future(work)
        try:
            await asyncio.wait({task, self._stop}, return_when=asyncio.FIRST_COMPLETED)
            return None if self._stop.done() else task.result()
        finally:
            task.cancel()


def _skipped(fresh: Sequence[ScoredGroup], report: StepReport) -> dict[Key, str]:
    """Fresh groups of updates that were skipped, with the reason: they are filtered, and not issued again."""
    reasons = {
        group.key: f"update skipped: {_not_finite_in(update)}"
        for update in report.updates
        if not update.norms.applied
        for group in update.groups
    }
    return {scored.group.key: reasons[scored.group.key] for scored in fresh if scored.group.key in reasons}


def _not_finite_in(update: UpdateReport) -> str:
    """Say where the NaN or Inf of a skipped update appeared."""
    return "; ".join(str(found) for found in update.not_finite[:3]) or "in the gradient, nowhere in the forward pass"
