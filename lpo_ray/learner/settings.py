"""Settings of the learner: the point of the grid, the optimiser, and how a policy is loaded and packed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from lpo_ray.common.step_schedule import StepSchedule
from lpo_ray.learner.packing import Packing


class GridPoint(NamedTuple):
    """Point of the grid, as far as objective.schedule can change it during a run."""

    divergence: str
    target_temperature: str | float
    temperature_scale: float


@dataclass(frozen=True, slots=True)
class Objective:
    """Objective of the learner: divergence, token clip and behaviour.

    The target temperature is not here: the target builder has already applied it.
    """

    divergence: str
    token_clip: str
    clip_low: float
    clip_high: float
    length_norm: str
    """mean or sum over the tokens of a response"""
    sampling_temperature: float
    behaviour_from_engine: bool
    """true: pi_b is what the engine reported; false: the policy before the step's first update, computed again"""
    reference_kl: float
    """weight of the k3 estimate of KL(policy || reference), mean over tokens, responses and prompts; 0: no reference"""
    clip_around_anchor: bool = False
    """true: the clip's band lies around pi_t, the policy before the step's first update; false: around pi_b. Without
    ``behaviour_from_engine`` the two are the same
    """
    importance_cap: float | None = None
    """without ``behaviour_from_engine``, the policy's loss of a token is multiplied by min(pi_behaviour / pi_engine,
    this); None: it is not
    """


@dataclass(frozen=True, slots=True)
class OptimiserSettings:
    """AdamW and the gradient clip; the learning rate comes with each batch."""

    betas: tuple[float, float]
    weight_decay: float
    gradient_clip: float


@dataclass(frozen=True, slots=True)
class LearnerSettings:
    """Everything that a learner is built from, on Ray and in one process."""

    model_path: str
    dtype: str
    """float32, or bfloat16 with fp32 master weights"""
    objective: StepSchedule[Objective]
    """only its divergence changes"""
    optimiser: OptimiserSettings
    packing: Packing
    attention: str
    """auto, packed or padded"""
    gradient_checkpointing: bool
    reference_path: str
    """folder of the frozen reference; read when objective.reference_kl > 0"""
    threads: int
    zero: Mapping[str, object]
    """merged over DeepSpeed's zero_optimization; ranks only"""
    trust_remote_code: bool = False
    """model.trust_remote_code"""
    on_gpu: bool = False
    """whether each rank has a GPU, whatever the machine has; ranks only"""
