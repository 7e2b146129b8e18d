"""Targets: the paper's Theorem 1 applied to the scored groups of one step, and the rule for stale groups."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from lpo_ray.objective import effective_sample_size, gibbs_target, target_temperature, temper
from lpo_ray.objective.off_policy import SLACK
from lpo_ray.records import Anchor, AnchorGroup, FloatArray, ScoredGroup, TargetGroup


@dataclass(frozen=True, slots=True)
class StaleRule:
    """Rule for groups whose behaviour has drifted from the policy.

    It is read off the anchor, so it has no effect where the behaviour is recomputed.
    """

    policy: Literal["keep", "drop", "temper"]
    """keep: nothing. drop: do not train it (``why_dropped``). temper: shrink its anchor until ``min_ess`` is reached"""
    min_ess: float
    """least effective sample size, as a share of K"""
    max_drift: float
    """nats; mean over responses of the mean over tokens of abs(log pi_t - log pi_b). Only drop reads it"""


KEEP = StaleRule("keep", 0.0, math.inf)


def why_dropped(anchor: AnchorGroup, rule: StaleRule) -> str | None:
    """Say why a group is not to be trained on, with the numbers. None: it is trained.

    Call it before targets are built: their batch-wide statistics are over the groups that are trained. One response is
    an effective sample of one of one, so K = 1 is dropped for drift only.
    """
    if rule.policy != "drop":
        return None
    size = len(anchor)
    effective = float(effective_sample_size(torch.from_numpy(anchor.log_ratio.astype("float64"))[None])[0])
    drift = float(anchor.drift.mean(dtype="float64"))
    reasons = []
    if effective < rule.min_ess * size * (1 - SLACK):
        reasons.append(
            f"its effective sample size is {effective:.2f} of {size} responses, expected at least "
            f"{rule.min_ess * size:.2f} (objective.stale.min_ess={rule.min_ess:g})"
        )
    if drift > rule.max_drift:
        reasons.append(
            f"its mean drift is {drift:.4f} nats, expected at most {rule.max_drift:.4f} (objective.stale.max_drift)"
        )
    return "; ".join(reasons) or None


@dataclass(frozen=True, slots=True)
class TargetRule:
    """Rule by which targets are built.

    ``anchored=False`` leaves s_t out: the first-order (policy gradient) rows read A_k off a target without it.
    ``stale`` matters to the target when it tempers.
    """

    temperature: str | float
    ddof: int
    floor: float
    anchored: bool
    stale: StaleRule = KEEP
    scale: float = 1.0
    """multiplies tau, its floor included"""


@dataclass(frozen=True, slots=True, eq=False)
class Targets:
    """Targets of a step's groups, without the groups: in their order."""

    log_target: tuple[FloatArray, ...]
    """[K] of each"""
    temperature: tuple[float, ...]
    tempering: tuple[float, ...]


def build_targets(groups: Sequence[ScoredGroup], anchor: Anchor, rule: TargetRule) -> list[TargetGroup]:
    """Give each group its target, in order; see ``compute_targets``."""
    check_anchor(groups, anchor)
    return with_targets(groups, anchor, compute_targets(*numbers_of(groups, anchor), rule))


def check_anchor(groups: Sequence[ScoredGroup], anchor: Anchor) -> None:
    """Raise ValueError unless there is one anchor for each group."""
    if len(groups) != len(anchor):
        raise ValueError(f"{len(groups)} groups but {len(anchor)} anchors; expected one s_t of [K] for each group")


def numbers_of(groups: Sequence[ScoredGroup], anchor: Anchor) -> tuple[list[FloatArray], list[FloatArray]]:
    """Return all of the groups that their targets depend on: rewards and s_t, [K] of each."""
    return [scored.shaped for scored in groups], [s_t.log_ratio for s_t in anchor]


def with_targets(groups: Sequence[ScoredGroup], anchor: Anchor, targets: Targets) -> list[TargetGroup]:
    """Put groups, anchors and their targets together, in order."""
    rows = zip(groups, targets.log_target, anchor, targets.temperature, targets.tempering, strict=True)
    return [TargetGroup(*row) for row in rows]


def compute_targets(rewards: Sequence[FloatArray], anchor: Sequence[FloatArray], rule: TargetRule) -> Targets:
    """Compute w* = softmax(R/tau + s_t) of each group. Unequal K are masked, K = 1 is a virtual group.

    A tempered group has w* = softmax(R/tau + lambda s_t). It counts as sampled from pi_b^lambda pi_t^(1 - lambda), and
    the learner measures its log-ratios from there (``TargetGroup.offset``). Batch-wide statistics (batch_std, and the
    baseline of K = 1) are over exactly these groups.
    """
    sizes = [len(values) for values in rewards]
    reward_PK = torch.zeros(len(sizes), max(sizes), dtype=torch.float64)
    shift = torch.zeros_like(reward_PK)
    mask = torch.zeros_like(reward_PK, dtype=torch.bool)
    for row, (size, values, s_t) in enumerate(zip(sizes, rewards, anchor, strict=True)):
        reward_PK[row, :size] = torch.from_numpy(values.astype("float64"))
        shift[row, :size] = torch.from_numpy(s_t.astype("float64"))
        mask[row, :size] = True
    tempering = torch.ones(len(sizes), dtype=torch.float64)
    if rule.stale.policy == "temper":
        tempering = temper(shift, rule.stale.min_ess * mask.sum(-1), mask=mask)
    tau = target_temperature(reward_PK, rule.temperature, ddof=rule.ddof, floor=rule.floor, mask=mask) * rule.scale
    log_target = gibbs_target(reward_PK, tau, tempering[:, None] * shift if rule.anchored else None, mask=mask)
    single = mask.sum(1) == 1
    if single.any():
        baseline, spread = _batch_statistics(reward_PK[mask], rule)
        tau = torch.where(single, spread, tau)
        log_target[single, 0] = torch.nn.functional.logsigmoid((reward_PK[single, 0] - baseline) / spread)
    return Targets(
        tuple(log_target[row, :size].float().numpy() for row, size in enumerate(sizes)),
        tuple(tau.tolist()),
        tuple(tempering.tolist()),
    )


def _batch_statistics(rewards: torch.Tensor, rule: TargetRule) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute baseline b and tau of virtual groups: one response has no spread, so the batch [N] is their group."""
    tau = target_temperature(rewards[None], rule.temperature, ddof=rule.ddof, floor=rule.floor) * rule.scale
    return rewards.mean(), tau[0]
