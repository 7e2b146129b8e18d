"""The target on the simplex (Theorem 1): w* = softmax(R/tau + s_t) maximises sum w R - tau KL(w || P_t)."""

from __future__ import annotations

import torch
from torch import Tensor

from lpo_ray.objective.simplex import check_mask, masked_log_softmax


def gibbs_target(rewards: Tensor, tau: Tensor, anchor: Tensor | None = None, *, mask: Tensor | None = None) -> Tensor:
    """[P, K] log w* for rewards [P, K], temperatures tau [P] > 0 and the anchor s_t [P, K] (None: zeros).

    Rewards are taken relative to the group's best, which the softmax does not notice: (R - max R)/tau <= 0 stays
    finite at the temperature's floor, and equal rewards give w* = P_t exactly. tau = infinity gives P_t.
    """
    if rewards.ndim != 2 or tau.shape != rewards.shape[:1]:
        raise ValueError(f"rewards {tuple(rewards.shape)} and tau {tuple(tau.shape)}: expected [P, K] and [P]")
    if anchor is not None and anchor.shape != rewards.shape:
        raise ValueError(f"anchor has shape {tuple(anchor.shape)}, rewards {tuple(rewards.shape)}; expected the same")
    kept = check_mask(rewards, mask)
    best = torch.where(kept, rewards, -torch.inf).amax(-1, keepdim=True)
    logits = torch.where(kept, rewards - best, 0.0) / tau[:, None]
    return masked_log_softmax(logits if anchor is None else logits + anchor, kept)


def virtual_group_coefficient(reward: Tensor, baseline: Tensor | float, tau: Tensor | float) -> Tensor:
    """K = 1 (App. C.2): c = 1/2 - sigmoid((R - b)/tau) for [N] rewards against a batch baseline b; |c| <= 1/2."""
    return 0.5 - torch.sigmoid((reward - baseline) / tau)
