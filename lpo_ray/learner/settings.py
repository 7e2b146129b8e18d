"""Settings of the learner: the point of the grid, the optimiser, and how a policy is loaded and packed."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from lpo_ray.common.step_schedule import StepSchedule
from lpo_ray.learner.packing import Packing
from lpo_ray.policy.lora import AdapterSettings

CPU_BUCKET = 20_000_000
"""elements; the default, 500 M, makes one temporary copy of all gradients of a small model"""


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
    threads: int | None
    """None: the host's cores divided among its ranks"""
    deepspeed: Mapping[str, Any]
    """merged over DeepSpeed's configuration; ranks only"""
    silence_seconds: float = 1800.0
    """how long a rank that others wait for may get on with nothing; ranks only"""
    trust_remote_code: bool = False
    """model.trust_remote_code"""
    on_gpu: bool = False
    """whether each rank has a GPU, whatever the machine has; ranks only"""
    adapter: AdapterSettings | None = None
    """adapter that is trained beside frozen weights; None: all weights are trained"""

    @property
    def reference_is_base(self) -> bool:
        """Whether the frozen reference is the policy without its adapter, which needs no second copy."""
        return self.adapter is not None and self.reference_path == self.model_path


def zero_defaults(world_size: int, *, on_gpu: bool) -> dict[str, int]:
    """Options of ZeRO that differ from DeepSpeed's own defaults, unless learner.deepspeed says otherwise."""
    found: dict[str, int] = {}
    if world_size == 1:  # nothing to shard: whole parameters save a copy of the model in each forward and backward
        found["stage3_param_persistence_threshold"] = sys.maxsize
    elif not on_gpu:  # really shards every parameter; DeepSpeed's default keeps small ones whole, for fewer messages
        found["stage3_param_persistence_threshold"] = 0
    if not on_gpu:
        found["reduce_bucket_size"] = CPU_BUCKET
    return found


def offloads(deepspeed: Mapping[str, Any], key: str) -> bool:
    """Whether a section of learner.deepspeed, such as offload_optimizer, moves something off the GPU."""
    return offload_device(deepspeed, key) != "none"


def offload_device(deepspeed: Mapping[str, Any], key: str) -> str:
    """Where a section of learner.deepspeed, such as offload_param, moves something: none, cpu or nvme."""
    section = zero_options(deepspeed).get(key)
    return str(section.get("device", "none")) if isinstance(section, Mapping) else "none"


def zero_options(deepspeed: Mapping[str, Any]) -> Mapping[str, Any]:
    """Options of ZeRO in a value of learner.deepspeed."""
    zero = deepspeed.get("zero_optimization", {})
    return zero if isinstance(zero, Mapping) else {}
