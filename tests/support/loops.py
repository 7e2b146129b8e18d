"""Settings of a small training loop."""

from __future__ import annotations

from pathlib import Path

from lpo_ray.learner.packing import Packing
from lpo_ray.learner.targets import StaleRule
from lpo_ray.records import Sampling
from lpo_ray.training.checkpoint import CheckpointRules
from lpo_ray.training.group_selection import SelectionSettings
from lpo_ray.training.loop import BatchSettings, LoopSettings
from lpo_ray.training.sample_lane import SampleSettings


def loop_settings(
    folder: Path,
    *,
    steps: int = 3,
    groups_per_step: int = 4,
    max_staleness: int = 0,
    oversample_groups: int = 0,
    lease_seconds: float = 1000.0,
    max_attempts: int = 3,
    max_unscored_share: float = 0.1,
    min_ess: float = 0.0,
    checkpoint_every: int = 2,
    checkpoints: CheckpointRules | None = None,
    **selection: object,
) -> LoopSettings:
    values = {
        "drop_equal_rewards": False, "refill_groups": groups_per_step, "reused_groups_per_step": 0,
        "behaviour_from_engine": False, **selection,
    }  # fmt: skip
    return LoopSettings(
        steps=steps,
        sample=SampleSettings(
            Sampling(2, 1.0, 4, seed=0),
            max_attempts,
            max_unscored_share,
            lease_seconds,
            capacity=(groups_per_step + oversample_groups) * (max_staleness + 1),
            max_bytes=1_000_000,
            largest_group=200,
        ),
        selection=SelectionSettings(
            groups_per_step=groups_per_step,
            max_staleness=max_staleness,
            oversample_groups=oversample_groups,
            stale=StaleRule("drop", min_ess, max_drift=1.0),
            seed=0,
            **values,
        ),
        batch=BatchSettings(Packing(2, 1000, share_prompt=False), 2, lambda step: 0.1, seed=0),
        checkpoints=checkpoints or CheckpointRules(folder / "checkpoints", every=checkpoint_every, keep=0, best=None),
        max_skipped_updates=3,
        evaluate_every=0,
    )
