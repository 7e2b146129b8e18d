"""Metrics of a step of groups made by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from lpo_ray.learner.packing import Packing, pack_step
from lpo_ray.objective import project
from lpo_ray.records import (
    Backlog,
    NotFinite,
    ProjectedGroup,
    Publication,
    StepNorms,
    StepRecord,
    StepReport,
    TargetGroup,
    UpdateReport,
    WeightsVersion,
    WorkerStatus,
)
from lpo_ray.telemetry.metrics import step_metrics
from lpo_ray.telemetry.stage_clock import ENGINES, LEARNER, PRIORITY, Seconds


def by_stage(order: tuple[str, ...], **seconds: float) -> dict[str, float]:
    return {**dict.fromkeys((*order, "wait"), 0.0), **seconds}


SECONDS = Seconds(
    by_stage(PRIORITY, sample=1.0, verify=0.5, project=2.0, publish=0.5),
    by_stage(ENGINES, sample=2.0, verify=0.5, publish=0.5, wait=1.0),
    by_stage(LEARNER, project=2.0, anchor=0.5, publish=0.5, wait=1.0),
)


def report_of(targets: list[TargetGroup]) -> StepReport:
    rng = np.random.default_rng(0)
    groups = []
    for number, target in enumerate(targets):
        size = len(target.log_target)
        log_ratio = rng.normal(size=size).astype(np.float32)
        projection = project("forward_kl", torch.from_numpy(log_ratio)[None], torch.from_numpy(target.log_target)[None])
        noise = rng.random(size).astype(np.float32)
        groups.append(
            ProjectedGroup(
                prompt_id=target.group.prompt.prompt_id,
                attempt=0,
                update=number % 2,
                responses=tuple(range(size)),
                log_ratio=log_ratio,
                surrogate=noise,
                coefficient=projection.coefficient[0].numpy(),
                loss=float(projection.loss),
                entropy=noise,
                clip_fraction=noise,
                engine_mismatch=noise,
                engine_drift=noise,
                engine_kl=noise,
                reference_kl=noise,
            )
        )
    halves = [tuple(group for group in groups if group.update == update) for update in (0, 1)]
    good = StepNorms(0.5, True, {"mlp": 0.3, "attention": 0.4}, {"mlp": 1e-3})
    where = NotFinite("loss", "train-00000001", 0, 1, 2)
    skipped = replace(good, applied=False, update_ratio_by_kind={})
    return StepReport((UpdateReport(halves[0], good, 2, 0.25, ()), UpdateReport(halves[1], skipped, 2, 0.0, (where,))))


def publication_of(step: int) -> Publication:
    version = WeightsVersion(step, "abc")
    workers = (
        WorkerStatus("rollout worker 0", "serving", version, 0, ""),
        WorkerStatus("rollout worker 1", "out", None, 1, "it died"),
    )
    return Publication(version, 6_000_000, 0.5, workers, 1e-6, {"prepare": 0.1})


def metrics_of(step: int, targets: list[TargetGroup], report: StepReport | None = None) -> dict:
    batch = pack_step(targets, Packing(1, 10**6, False), step=step, seed=0, updates=2, learning_rate=0.1)
    record = StepRecord(
        step, batch, targets, report or report_of(targets), publication_of(step), {"issued": 4, "trained": 4},
        {"equal_rewards": 1, "off_policy": 0, "cut": 0}, 0, Backlog(5, 3, 4096, 50),
    )  # fmt: skip
    return step_metrics(record, pass_reward=1.0, seconds=SECONDS)
