"""A step's records, metrics and times, made by hand for the tests of telemetry."""

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
from lpo_ray.telemetry.summary import Summary


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
    proof = {"typical": 4e-7, "baseline": 3e-7, "typical_limit": 3e-5, "limit": 1e-3}
    return Publication(version, 6_000_000, 0.5, workers, 1e-6, {"prepare": 0.1}, proof)


def metrics_of(step: int, targets: list[TargetGroup], report: StepReport | None = None) -> dict:
    batch = pack_step(targets, Packing(1, 10**6, False), step=step, seed=0, updates=2, learning_rate=0.1)
    record = StepRecord(
        step, batch, targets, report or report_of(targets), publication_of(step), {"issued": 4, "trained": 4},
        {"equal_rewards": 1, "off_policy": 0, "cut": 0}, 0, Backlog(5, 3, 4096, 50),
    )  # fmt: skip
    return step_metrics(record, pass_reward=1.0, seconds=SECONDS)


class Ticking:
    """A clock that the test moves."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def summary_json() -> dict[str, object]:
    evaluation = {
        "pass@1": 0.2, "pass@16": 0.8, "num_prompts": 256, "samples_per_prompt": 16,
        "ci95": {"pass@1": [0.1, 0.3], "pass@16": [0.7, 0.9]}, "lost": 0, "mean_reward": 0.3, "mean_length": 8.0,
    }  # fmt: skip
    return Summary(
        run="r", seed=0, steps=3, model="m", task="countdown", wall_seconds=12.5,
        objective={"divergence": "forward_kl", "target_temperature": "group_std", "token_clip": "clamp 0.2/0.2",
                   "length_norm": "mean"},
        before=evaluation, after=None, tokens=800, groups={"issued": 4, "trained": 4}, advice="more of it",
        seconds=Seconds({**SECONDS.run, "start": 9.0, "evaluate": 4.0}, SECONDS.engines, SECONDS.learner),
    ).to_json()  # fmt: skip
