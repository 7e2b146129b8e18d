"""Hand-written components that record the order of events."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from lpo_ray.errors import GroupLost, LearnerLost, Unscored, UnusableRow
from lpo_ray.records import (
    AfterGroup,
    Anchor,
    BusyWorker,
    FloatArray,
    Key,
    NotFinite,
    Process,
    ProjectedGroup,
    Prompt,
    PromptGroup,
    Publication,
    Response,
    Sampling,
    ScoredGroup,
    ScoringItem,
    StepNorms,
    StepRecord,
    StepReport,
    TargetGroup,
    TrainBatch,
    UpdateReport,
    WeightsVersion,
    WorkerStatus,
    zero_anchor,
)


@dataclass
class FakeComponents:
    """All five interfaces in one object; ``events`` is what happened, in order."""

    events: list[str] = field(default_factory=list)
    lose: dict[str, int] = field(default_factory=dict)
    """prompt id -> how many attempts are lost"""
    unscored: dict[str, int] = field(default_factory=dict)
    """prompt id -> how many attempts stay unscored"""
    step: int = 0
    fail_project_at: int | None = None
    not_finite_at: set[int] = field(default_factory=set)
    sampled_at: dict[str, int] = field(default_factory=dict)
    world_size: int = 2
    sample_seconds: float = 0.0
    holding: dict[str, list[BusyWorker]] = field(default_factory=dict)
    """stage -> who is at work on it"""
    inspected: list[int] = field(default_factory=list)
    """process ids, in order"""

    def lend(self) -> None:
        pass

    def __post_init__(self) -> None:
        self.rollout = self.verifier = self.target_builder = self.learner = self.transport = self

    async def sample(self, prompt: Prompt, sampling: Sampling, attempt: int) -> PromptGroup:
        version = self.step
        self.sampled_at[prompt.prompt_id] = version
        await asyncio.sleep(self.sample_seconds)
        if self.lose.get(prompt.prompt_id, 0) > attempt:
            raise GroupLost(prompt.prompt_id, attempt, "the fake engine lost it")
        responses = tuple(
            Response(np.array([1, 2]), np.zeros(2, np.float32), np.full(2, version), "stop")
            for _ in range(sampling.group_size)
        )
        return PromptGroup(prompt, attempt, responses)

    async def score(self, group: PromptGroup) -> ScoredGroup:
        if self.unscored.get(group.prompt.prompt_id, 0) > group.attempt:
            raise Unscored(group.prompt.prompt_id, group.attempt, "the fake verifier has no verdict")
        return ScoredGroup(group, np.arange(len(group.responses), dtype=np.float32))

    async def build(self, groups: Sequence[ScoredGroup], anchor: Anchor, step: int) -> list[TargetGroup]:
        self.events.append(f"build {len(groups)}")
        size = len(groups[0].rewards)
        flat = np.full(size, -np.log(size), dtype=np.float32)
        return [TargetGroup(scored, flat, s_t, 1.0) for scored, s_t in zip(groups, anchor, strict=True)]

    async def log_ratios(self, groups: Sequence[ScoredGroup]) -> Anchor:
        self.events.append("anchor")
        return zero_anchor(groups)

    async def project(self, batch: TrainBatch) -> StepReport:
        if batch.step == self.fail_project_at:
            raise RuntimeError("the fake learner broke")
        self.events.append(f"project {batch.step}")
        reports = []
        for number, update in enumerate(batch.updates):
            targets = [piece.item for share in update.shares for mb in share for piece in mb.pieces]
            applied = batch.step not in self.not_finite_at
            where = () if applied else (NotFinite("loss", targets[0].group.prompt.prompt_id, 0, 0, 0),)
            groups = tuple(projected(target, number) for target in targets)
            reports.append(UpdateReport(groups, StepNorms(1.0, applied, {}, {}), 1, 0.0, where))
        return StepReport(tuple(reports))

    async def publish(self, step: int) -> Publication:
        self.events.append(f"publish {step}")
        self.step = step
        version = WeightsVersion(step, f"digest-{step}")
        return Publication(version, 8, 0.5, (WorkerStatus("the fake engine", "serving", version, 0, ""),), 0.0, {})

    async def logprobs(self, forwards: Sequence[Sequence[ScoringItem]], temperature: float) -> list[FloatArray]:
        bundles = itertools.chain.from_iterable(forwards)
        return [np.zeros(len(response), np.float32) for _, responses in bundles for response in responses]

    async def save(self, folder: Path) -> None:
        self.events.append(f"save {self.step}")
        (folder / "weights").write_text(str(self.step))

    async def digest(self) -> str:
        return f"digest-{self.step}"

    async def restore(self, folder: Path, written_by: int) -> None:
        self.step = int((folder / "weights").read_text())

    def busy(self, stage: str) -> list[BusyWorker]:
        return list(self.holding.get(stage, []))

    def silence_of(self, key: Key) -> float:
        return math.inf

    async def inspect(self, process: Process) -> str:
        self.inspected.append(process.pid)
        return f"process {process.pid} is stopped, 1 MiB resident\n  a frame\n  log: a line"

    async def reform(self, lost: LearnerLost) -> None:
        self.events.append("reform")

    async def scale(self, role: str, count: int) -> str:
        self.events.append(f"scale {role}={count}")
        return f"{count} {role}"

    async def close(self) -> None:
        self.events.append("close")


def projected(target: TargetGroup, update: int) -> ProjectedGroup:
    zeros = np.zeros(len(target.log_target), dtype=np.float32)
    group = target.group
    return ProjectedGroup(
        prompt_id=group.prompt.prompt_id,
        attempt=group.attempt,
        update=update,
        responses=tuple(range(len(zeros))),
        loss=0.0,
        **dict.fromkeys(ProjectedGroup.ARRAYS, zeros),
    )


@dataclass
class FakeSource:
    """Prompt i is [i + 1]."""

    unusable: frozenset[int] = frozenset()

    def train(self, index: int) -> Prompt:
        if index in self.unusable:
            raise UnusableRow(f"train-{index:08d}", f"row {index + 1}: answer: there is none")
        return Prompt(f"train-{index:08d}", np.array([index + 1]), "", "countdown")

    def heldout(self, count: int) -> Sequence[Prompt]:
        return [Prompt(f"heldout-{n:08d}", np.array([n + 1]), "", "countdown") for n in range(count)]


@dataclass
class FakeObserver:
    """Remembers what it was told."""

    learnt: list[int] = field(default_factory=list)
    """steps whose updates were reported, from 0 on"""
    steps: list[StepRecord] = field(default_factory=list)
    losses: list[GroupLost] = field(default_factory=list)
    out: dict[str, str] = field(default_factory=dict)
    """prompts that were left out -> why"""
    scores: dict[int, float] = field(default_factory=dict)

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        yield

    def lost(self, lost: GroupLost) -> None:
        self.losses.append(lost)

    def left_out(self, prompt_id: str, reason: str) -> None:
        self.out[prompt_id] = reason

    async def learned(
        self,
        batch: TrainBatch,
        targets: Sequence[TargetGroup],
        report: StepReport,
        after: Mapping[Key, AfterGroup],
    ) -> None:
        self.learnt.append(batch.step)

    def step_ends(self) -> Callable[[StepRecord], None]:
        return lambda record: None

    def step_done(self, record: StepRecord) -> None:
        self.steps.append(record)

    def score(self, name: str) -> float | None:
        return self.scores.get(self.steps[-1].step)

    def evidence(self) -> str:
        return "the samples"


@dataclass
class FakeEvents:
    """Remembers what components reported."""

    notes: list[str] = field(default_factory=list)
    reports: list[tuple[WorkerStatus, ...]] = field(default_factory=list)
    counts: list[Mapping[str, int]] = field(default_factory=list)

    def note(self, text: str) -> None:
        self.notes.append(text)
        sys.stderr.write(f"{text}\n")

    def workers(self, workers: Sequence[WorkerStatus]) -> None:
        self.reports.append(tuple(workers))

    def measured(self, values: Mapping[str, int]) -> None:
        self.counts.append(values)

    def starting(self, name: str, seconds: float) -> AbstractContextManager[None]:
        return contextlib.nullcontext()
