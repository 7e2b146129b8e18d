"""Scored groups -> target groups: the paper's Theorem 1 applied to the records of one step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from lpo_ray.objective import gibbs_target, target_temperature
from lpo_ray.records import Anchor, ScoredGroup, TargetGroup


@dataclass(frozen=True, slots=True)
class TargetRule:
    """How targets are built. ``anchored=False`` leaves s_t out, as the first-order (policy gradient) rows read A_k
    off a target without it.
    """

    temperature: str | float
    ddof: int
    floor: float
    anchored: bool


def build_targets(groups: Sequence[ScoredGroup], anchor: Anchor, rule: TargetRule) -> list[TargetGroup]:
    """w* = softmax(R/tau + s_t) of each group, in order. Groups of unequal K are masked, K = 1 is a virtual group.

    Batch-wide statistics (batch_std, and the baseline of K = 1) are over exactly these groups.
    """
    if len(groups) != len(anchor):
        raise ValueError(f"{len(groups)} groups but {len(anchor)} anchors; expected one s_t of [K] for each group")
    width = max(len(scored.rewards) for scored in groups)
    rewards = torch.zeros(len(groups), width, dtype=torch.float64)
    shift = torch.zeros_like(rewards)
    mask = torch.zeros(len(groups), width, dtype=torch.bool)
    for row, (scored, s_t) in enumerate(zip(groups, anchor, strict=True)):
        size = len(scored.rewards)
        rewards[row, :size] = torch.from_numpy(scored.rewards.astype("float64"))
        shift[row, :size] = torch.from_numpy(s_t.log_ratio.astype("float64"))
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
        )
        for row, scored in enumerate(groups)
    ]


def _batch_statistics(rewards: torch.Tensor, rule: TargetRule) -> tuple[torch.Tensor, torch.Tensor]:
    """Baseline b and tau of the virtual groups: one response has no spread, so the batch [N] is their group."""
    tau = target_temperature(rewards[None], rule.temperature, ddof=rule.ddof, floor=rule.floor)
    return rewards.mean(), tau[0]
