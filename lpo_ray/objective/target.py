"""Target on the simplex (Theorem 1): w* = softmax(R/tau + s_t) maximises sum w R - tau KL(w || P_t)."""

from __future__ import annotations

import torch
from torch import Tensor

from lpo_ray.objective.simplex import check_mask, masked_log_softmax


def gibbs_target(rewards: Tensor, tau: Tensor, anchor: Tensor | None = None, *, mask: Tensor | None = None) -> Tensor:
    """Compute log w* [P, K] from rewards [P, K], temperatures tau [P] > 0 and the anchor s_t [P, K] (None: zeros).

    Rewards are taken relative to the group's best, which the softmax does not notice: (R - max R)/tau <= 0 stays
    finite at the temperature's floor, and equal rewards give w* = P_t exactly. tau = infinity gives P_t; tau <= 0 or
    NaN is an error: it would invert the preference or spread NaN silently.
    """
    if rewards.ndim != 2 or tau.shape != rewards.shape[:1]:
        raise ValueError(f"rewards {tuple(rewards.shape)} and tau {tuple(tau.shape)}: expected [P, K] and [P]")
    if anchor is not None and anchor.shape != rewards.shape:
        raise ValueError(f"anchor has shape {tuple(anchor.shape)}, rewards {tuple(rewards.shape)}; expected the same")
    if not bool((tau > 0).all()):
        raise ValueError(f"tau is {tau[~(tau > 0)][:3].tolist()} in places; expected numbers above 0")
    kept = check_mask(rewards, mask)
    best = torch.where(kept, rewards, -torch.inf).amax(-1, keepdim=True)
    logits = (rewards - best) / tau[:, None]
    return masked_log_softmax(logits if anchor is None else logits + anchor, kept)
