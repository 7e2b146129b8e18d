"""Diagnostics of each group: entropies, divergences both ways, gains, effective sample size."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lpo_ray.objective.off_policy import effective_sample_size
from lpo_ray.objective.simplex import check_mask, finite_log, masked_log_softmax, masked_sum


@dataclass(frozen=True, slots=True)
class Diagnostics:
    """Diagnostics of P groups: each field is [P], one value a group."""

    target_entropy: Tensor
    """H(w*), nats"""
    policy_entropy: Tensor
    """H(P_theta), nats"""
    kl_target_policy: Tensor
    """KL(w* || P_theta)"""
    kl_policy_target: Tensor
    """KL(P_theta || w*)"""
    total_variation: Tensor
    """TV(w*, P_theta), in [0, 1]"""
    predicted_gain: Tensor
    """tau Jeffreys(w*, P_t) = R(w*) - R(P_t), the most the projection can win (Thm. 2)"""
    realised_gain: Tensor
    """R(P_theta) - R(P_t)"""
    effective_sample_size: Tensor
    """1 / sum P_t^2, in [1, K]"""
    equal_rewards: Tensor
    """bool: all rewards of the group are the same"""


def diagnose(
    rewards: Tensor, tau: Tensor, anchor: Tensor, log_ratio: Tensor, log_target: Tensor, *, mask: Tensor | None = None
) -> Diagnostics:
    """Compute diagnostics from rewards R, anchor s_t, log-ratio s_theta and log w*, each [P, K]; tau [P].

    The predicted gain is computed as R(w*) - R(P_t), which the theorem shows to be the same. It stays finite for tau =
    infinity, and exact where tau is large and Jeffreys all rounding. So of tau only the shape is read.
    """
    shapes = {tuple(value.shape) for value in (rewards, anchor, log_ratio, log_target)}
    if rewards.ndim != 2 or len(shapes) != 1 or tau.shape != rewards.shape[:1]:
        raise ValueError(f"shapes {sorted(shapes)} and tau {tuple(tau.shape)}; expected [P, K] four times, and [P]")
    kept = check_mask(rewards, mask)
    log_p, log_w = finite_log(masked_log_softmax(log_ratio, kept), kept), finite_log(log_target, kept)
    policy, target, start = log_p.exp(), log_w.exp(), masked_log_softmax(anchor, kept).exp()
    expected = masked_sum(start * rewards, kept)
    best = torch.where(kept, rewards, -torch.inf).amax(-1)
    worst = torch.where(kept, rewards, torch.inf).amin(-1)
    return Diagnostics(
        target_entropy=-masked_sum(target * log_w, kept),
        policy_entropy=-masked_sum(policy * log_p, kept),
        kl_target_policy=masked_sum(target * (log_w - log_p), kept),
        kl_policy_target=masked_sum(policy * (log_p - log_w), kept),
        total_variation=0.5 * masked_sum((policy - target).abs(), kept),
        predicted_gain=masked_sum(target * rewards, kept) - expected,
        realised_gain=masked_sum(policy * rewards, kept) - expected,
        effective_sample_size=effective_sample_size(anchor, mask=kept),
        equal_rewards=best == worst,
    )
