"""Reports: what a step did to its groups and to the weights, and what an evaluation found.

Made by the learner, the loop (StepRecord) and the evaluation. Read by telemetry.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import ClassVar

import numpy as np

from lpo_ray.records.arrays import FloatArray, IntArray, check_lengths
from lpo_ray.records.batch import TrainBatch
from lpo_ray.records.groups import Key, TargetGroup
from lpo_ray.records.status import Backlog, Publication


@dataclass(frozen=True, slots=True, eq=False)
class ProjectedGroup:
    """Report of one group at its update: enough to recompute the loss. Arrays are over ``responses``.

    From one rank it may cover a piece of the group only; merged over ranks, it covers all of it.
    """

    ARRAYS: ClassVar[tuple[str, ...]]
    """names of the fields that hold one number for each response"""

    prompt_id: str
    attempt: int
    update: int
    responses: tuple[int, ...]
    """their indices in the group"""
    log_ratio: FloatArray
    """s_theta before this update, to pi_b itself; the simplex is over s_theta minus ``TargetGroup.offset``"""
    surrogate: FloatArray
    """what each response adds to the differentiated loss: its coefficient times its clipped log-ratio"""
    coefficient: FloatArray
    """c_k"""
    loss: float
    """divergence of the whole group"""
    entropy: FloatArray
    """mean token entropy, nats"""
    clip_fraction: FloatArray
    """share of tokens outside the clip band"""
    engine_mismatch: FloatArray
    """mean over tokens of log pi_engine - log pi_behaviour; 0 up to rounding when engine and learner agree"""
    engine_drift: FloatArray
    """mean over tokens of the same, absolute: what AnchorGroup.drift is for a behaviour that is not recomputed"""
    engine_kl: FloatArray
    """mean over tokens of the k3 estimate of KL(pi_engine || pi_behaviour), nats; likewise AnchorGroup.mismatch_kl"""
    reference_kl: FloatArray
    """mean over tokens of the k3 estimate of KL(policy || reference), nats; 0 without a reference"""

    @property
    def key(self) -> Key:
        """Name of the group in the run."""
        return self.prompt_id, self.attempt


ProjectedGroup.ARRAYS = tuple(entry.name for entry in fields(ProjectedGroup) if entry.type == "FloatArray")


@dataclass(frozen=True, slots=True, eq=False)
class AfterGroup:
    """Log-ratios of a group under the policy after a step's last update. Made by ``training.measurement``."""

    log_ratio: FloatArray
    """[K] s_theta, to pi_b itself"""
    token_log_ratio: tuple[FloatArray, ...]
    """[K][T] log pi_theta - log pi_b of each token"""

    def __post_init__(self) -> None:
        check_lengths("after", len(self.log_ratio), token_log_ratio=len(self.token_log_ratio))


@dataclass(frozen=True, slots=True)
class NotFinite:
    """A NaN or Inf, and where it came up first."""

    what: str
    """"log-prob", "loss" or "gradient". The forward pass does not show where a gradient became NaN or Inf; then the
    response that weighs most in the update is named
    """
    prompt_id: str
    attempt: int
    response: int
    token: int | None
    """index in the response, where it is known"""

    def __str__(self) -> str:
        where = "" if self.token is None else f", token {self.token}"
        return f"{self.what} of {self.prompt_id} (attempt {self.attempt}), response {self.response}{where}"


@dataclass(frozen=True, slots=True)
class StepNorms:
    """Norms of one optimiser step, over all ranks."""

    gradient: float
    """before clipping"""
    applied: bool
    """False: the gradient was NaN or Inf, the weights are as before"""
    gradient_by_kind: Mapping[str, float]
    """embedding, attention, mlp, norm, head, other -> gradient norm before clipping"""
    update_ratio_by_kind: Mapping[str, float]
    """the same kinds -> norm of the update over norm of the weights; empty when not applied"""


@dataclass(frozen=True, slots=True, eq=False)
class UpdateReport:
    """Report of one optimiser update, by one rank or merged over ranks."""

    groups: tuple[ProjectedGroup, ...]
    norms: StepNorms
    forwards: int
    """forward passes this rank ran, empty ones included"""
    padding: float
    """share of the forwards' positions that held no token"""
    not_finite: tuple[NotFinite, ...]
    """first NaN or Inf of each micro-batch"""

    @property
    def loss(self) -> float:
        """Mean of the divergence over the update's prompts."""
        return float(np.mean([group.loss for group in self.groups])) if self.groups else 0.0


@dataclass(frozen=True, slots=True, eq=False)
class StepReport:
    """Report of all updates of one step, made by the learner."""

    updates: tuple[UpdateReport, ...]

    @property
    def groups(self) -> tuple[ProjectedGroup, ...]:
        """Groups of all updates, in update order."""
        return tuple(group for update in self.updates for group in update.groups)

    @property
    def loss(self) -> float:
        """Mean of the divergence over the step's prompts, each at the update that trained it."""
        return float(np.mean([group.loss for group in self.groups]))


@dataclass(frozen=True, slots=True, eq=False)
class StepRecord:
    """Record of a finished step, made by the loop. ``step`` counts from 1: it is the version of the weights it made."""

    step: int
    batch: TrainBatch
    targets: Sequence[TargetGroup]
    report: StepReport
    publication: Publication
    groups: Mapping[str, int]
    """ledger counts"""
    left_out: Mapping[str, int]
    """why -> groups that were collected for the step and not trained by it: equal_rewards, off_policy, cut,
    unscored
    """
    reused: int
    """groups that were trained before"""
    backlog: Backlog
    after: Mapping[Key, AfterGroup] = field(default_factory=dict)
    """reports of the groups that were measured after the step"""


@dataclass(frozen=True, slots=True, eq=False)
class Evaluation:
    """Result of one evaluation. P prompts."""

    pass_at: dict[int, float]
    ci95: dict[int, tuple[float, float]]
    num_prompts: int
    """prompts that count; those that were lost are left out, never counted as failed"""
    samples_per_prompt: int
    num_lost: int
    mean_reward: float
    mean_length: float
    """response tokens"""
    num_correct: IntArray
    """[P] passing responses of each prompt, in the order of the prompts"""
    prompt_ids: tuple[str, ...]
    """[P] of the same prompts"""
    of_turns: Mapping[str, tuple[float, tuple[float, float]]] = field(default_factory=dict)
    """turns (of a response), solved_in_turn_1, ... -> mean and its 95 % interval; empty without conversations"""

    def to_json(self) -> dict[str, object]:
        """Make the form that summary.json has."""
        return {
            **{f"pass@{k}": value for k, value in self.pass_at.items()},
            **{name: value for name, (value, _) in self.of_turns.items()},
            "num_prompts": self.num_prompts,
            "samples_per_prompt": self.samples_per_prompt,
            "ci95": {
                **{f"pass@{k}": list(interval) for k, interval in self.ci95.items()},
                **{name: list(interval) for name, (_, interval) in self.of_turns.items()},
            },
            "lost": self.num_lost,
            "mean_reward": self.mean_reward,
            "mean_length": self.mean_length,
        }
