"""Targets: the paper's Theorem 1 applied to the scored groups of one step, and the rule for stale groups."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from lpo_ray.objective import effective_sample_size, gibbs_target, target_temperature, temper
from lpo_ray.objective.off_policy import SLACK
from lpo_ray.records import Anchor, AnchorGroup, ScoredGroup, TargetGroup


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


def build_targets(groups: Sequence[ScoredGroup], anchor: Anchor, rule: TargetRule) -> list[TargetGroup]:
    """Build w* = softmax(R/tau + s_t) of each group, in order. Unequal K are masked, K = 1 is a virtual group.

    A tempered group has w* = softmax(R/tau + lambda s_t). It counts as sampled from pi_b^lambda pi_t^(1 - lambda), and
    the learner measures its log-ratios from there (``TargetGroup.offset``). Batch-wide statistics (batch_std, and the
    baseline of K = 1) are over exactly these groups.
    """
    if len(groups) != len(anchor):
        raise ValueError(f"{len(groups)} groups but {len(anchor)} anchors; expected one s_t of [K] for each group")
    width = max(len(scored.rewards) for scored in groups)
    rewards = torch.zeros(len(groups), width, dtype=torch.float64)
    shift = torch.zeros_like(rewards)
    mask = torch.zeros(len(groups), width, dtype=torch.bool)
    for row, (scored, s_t) in enumerate(zip(groups, anchor, strict=True)):
        size = len(scored.rewards)
        rewards[row, :size] = torch.from_numpy(scored.shaped.astype("float64"))
        shift[row, :size] = torch.from_numpy(s_t.log_ratio.astype("float64"))
        mask[row, :size] = True
    tempering = torch.ones(len(groups), dtype=torch.float64)
    if rule.stale.policy == "temper":
        tempering = temper(shift, rule.stale.min_ess * mask.sum(-1), mask=mask)
    tau = target_temperature(rewards, rule.temperature, ddof=rule.ddof, floor=rule.floor, mask=mask) * rule.scale
    log_target = gibbs_target(rewards, tau, tempering[:, None] * shift if rule.anchored else None, mask=mask)
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
            float(tempering[row]),
        )
        for row, scored in enumerate(groups)
    ]


def _batch_statistics(rewards: torch.Tensor, rule: TargetRule) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute baseline b and tau of virtual groups: one response has no spread, so the batch [N] is their group."""
    tau = target_temperature(rewards[None], rule.temperature, ddof=rule.ddof, floor=rule.floor) * rule.scale
    return rewards.mean(), tau[0]
