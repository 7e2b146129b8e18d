"""Scored groups -> target groups: the paper's Theorem 1 applied to the records of one step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from lpo_ray.objective import gibbs_target, target_temperature
from lpo_ray.objective.off_policy import effective_sample_size, temper
from lpo_ray.records import Anchor, AnchorGroup, ScoredGroup, TargetGroup


@dataclass(frozen=True, slots=True)
class StaleRule:
    """What becomes of groups that are far from the policy that trains them."""

    policy: str
    """keep; drop: left out, and issued again; temper: s_t is shrunk until the responses are worth min_ess of them"""
    min_ess: float
    """share of K that the effective sample size has to reach"""
    max_drift: float
    """nats: mean over tokens of |log pi_t - log pi_b|; drop only"""


@dataclass(frozen=True, slots=True)
class TargetRule:
    """How targets are built. ``anchored=False`` leaves s_t out, as the first-order (policy gradient) rows read A_k
    off a target without it.
    """

    temperature: str | float
    ddof: int
    floor: float
    anchored: bool
    stale: StaleRule


def why_dropped(anchor: AnchorGroup, rule: StaleRule) -> str:
    """Why the rule leaves the group out of its step; empty when it does not."""
    if rule.policy != "drop":
        return ""
    size, drift = len(anchor.log_ratio), float(anchor.drift.mean())
    worth = effective_sample_size(torch.from_numpy(np.array(anchor.log_ratio)))
    if worth < rule.min_ess * size:
        return f"its {size} responses are worth {worth:.2f}, less than {rule.min_ess:g} of them"
    if drift > rule.max_drift:
        return f"its tokens' log-probs have moved by {drift:.3g} nats on average, more than {rule.max_drift:.3g}"
    return ""


def build_targets(groups: Sequence[ScoredGroup], anchor: Anchor, rule: TargetRule) -> list[TargetGroup]:
    """w* = softmax(R/tau + lambda s_t) of each group, in order; lambda is 1 unless the stale rule tempers it. Groups of
    unequal K are masked, K = 1 is a virtual group.

    Batch-wide statistics (batch_std, and the baseline of K = 1) are over exactly these groups.
    """
    if len(groups) != len(anchor):
        raise ValueError(f"{len(groups)} groups but {len(anchor)} anchors; expected one s_t of [K] for each group")
    width = max(len(scored.rewards) for scored in groups)
    rewards = torch.zeros(len(groups), width, dtype=torch.float64)
    shift = torch.zeros_like(rewards)
    mask = torch.zeros(len(groups), width, dtype=torch.bool)
    tempering = [_tempering(found, rule.stale) for found in anchor]
    for row, (scored, found) in enumerate(zip(groups, anchor, strict=True)):
        size = len(scored.rewards)
        rewards[row, :size] = torch.from_numpy(scored.rewards.astype("float64"))
        shift[row, :size] = tempering[row] * torch.from_numpy(found.log_ratio.astype("float64"))
        mask[row, :size] = True
    tau = target_temperature(rewards, rule.temperature, ddof=rule.ddof, floor=rule.floor, mask=mask)
    log_target = gibbs_target(rewards, tau, shift if rule.anchored else None, mask=mask)
    single = mask.sum(1) == 1
    if single.any():
        baseline, spread = _batch_statistics(rewards[mask], rule)
        tau = torch.where(single, spread, tau)
        log_target[single, 0] = torch.nn.functional.logsigmoid((rewards[single, 0] - baseline) / spread)
    return [
        TargetGroup(
            scored,
            log_target[row, : len(scored.rewards)].float().numpy(),
            anchor[row],
            float(tau[row]),
            tempering[row],
        )
        for row, scored in enumerate(groups)
    ]


def _tempering(anchor: AnchorGroup, rule: StaleRule) -> float:
    if rule.policy != "temper":
        return 1.0
    log_ratio = torch.from_numpy(np.array(anchor.log_ratio))
    return temper(log_ratio, max(1.0, rule.min_ess * len(log_ratio)))


def _batch_statistics(rewards: torch.Tensor, rule: TargetRule) -> tuple[torch.Tensor, torch.Tensor]:
    """Baseline b and tau of the virtual groups: one response has no spread, so the batch [N] is their group."""
    tau = target_temperature(rewards[None], rule.temperature, ddof=rule.ddof, floor=rule.floor)
    return rewards.mean(), tau[0]
