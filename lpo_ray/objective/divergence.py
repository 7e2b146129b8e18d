"""Projections: the divergence that pulls P_theta to w*, and its coefficients c_k = dL/ds_k.

A divergence is added as one function and one row of DIVERGENCES. Given log P and log w* [P, K] and the mask, it
returns its value [P] and its coefficient [P, K]; for L(P) with g = dL/dP the coefficient is P (g - sum P g) (C.6).
Both logs are finite: a masked or underflowed entry stands at LOG_ZERO, where its probability is 0. Whatever is weighted
by P or w* is right without looking at the mask; a mean over the K responses has to use it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from lpo_ray.common.plugins import resolve
from lpo_ray.objective.simplex import check_mask, finite_log, masked_log_softmax, masked_sum


class Projection(NamedTuple):
    """Loss and coefficients of a batch of groups."""

    loss: Tensor
    """[P] value of the divergence; its gradient with respect to the log-ratio is the coefficient"""
    coefficient: Tensor
    """[P, K] c_k, constants; the policy's gradient is sum_k c_k grad log pi(y_k|x), no 1/K"""


Divergence = Callable[[Tensor, Tensor, Tensor], Projection]
"""log_policy [P, K], log_target [P, K], kept [P, K] -> Projection"""


def forward_kl(log_policy: Tensor, log_target: Tensor, kept: Tensor) -> Projection:
    """KL(w* || P_theta): c = P - w*. Bounded, zero-sum, mode-covering; LPO's default."""
    target = log_target.exp()
    return Projection((target * (log_target - log_policy)).sum(-1), log_policy.exp() - target)


def reverse_kl(log_policy: Tensor, log_target: Tensor, kept: Tensor) -> Projection:
    """KL(P_theta || w*): c = P (d - sum P d) with d = log P - log w*. Zero-sum, not bounded; on-policy it is the policy
    gradient (Prop. 1).
    """
    policy, difference = log_policy.exp(), log_policy - log_target
    loss = (policy * difference).sum(-1)
    return Projection(loss, policy * (difference - loss[:, None]))


def jensen_shannon(log_policy: Tensor, log_target: Tensor, kept: Tensor) -> Projection:
    """JS(w*, P_theta): c = P (g - sum P g), g = log(P/m)/2, m = (w* + P)/2. In [0, log 2]."""
    policy, target = log_policy.exp(), log_target.exp()
    log_m = torch.logaddexp(log_policy, log_target) - math.log(2.0)
    loss = 0.5 * (target * (log_target - log_m) + policy * (log_policy - log_m)).sum(-1)
    slope = 0.5 * (log_policy - log_m)
    return Projection(loss, policy * (slope - (policy * slope).sum(-1, keepdim=True)))


def first_order(log_policy: Tensor, log_target: Tensor, kept: Tensor) -> Projection:
    """Policy gradient: c = -A/K, A = (R - mean R)/tau read off a target without the anchor (log w*, centred).

    GRPO, Dr.GRPO, MaxRL and RLOO by the target's temperature. The loss is the surrogate -mean_k A_k log P_k, whose
    gradient is c because A sums to zero.
    """
    count = kept.sum(-1, keepdim=True)
    mean = masked_sum(log_target, kept)[:, None] / count
    coefficient = -torch.where(kept, log_target - mean, 0.0) / count
    return Projection((coefficient * log_policy).sum(-1), coefficient)


def first_order_beta(log_policy: Tensor, log_target: Tensor, kept: Tensor) -> Projection:
    """Control: first_order with each prompt weighted by beta = sum |1/K - w*| / sum |A/K|, w* = softmax(A), so that its
    coefficients add up to what those of the forward KL do at P = 1/K. With binary rewards it is the forward KL there,
    c = -beta A/K with beta = tau E/(1 + p E), E = exp(1/tau) - 1 and p of the rewards 1 (LPO.md, section 3); and later
    it is not, since beta and A stay. What the forward KL has beyond this control is projection, not weighting.
    """
    slope = first_order(log_policy, log_target, kept).coefficient
    flat = 1.0 / kept.sum(-1, keepdim=True).to(log_policy)
    pull = torch.where(kept, flat - masked_log_softmax(log_target, kept).exp(), 0.0)
    total = slope.abs().sum(-1, keepdim=True)
    coefficient = slope * torch.where(total > 0, pull.abs().sum(-1, keepdim=True) / total, 0.0)
    return Projection((coefficient * log_policy).sum(-1), coefficient)


def pointwise(log_policy: Tensor, log_target: Tensor, kept: Tensor) -> Projection:
    """Ablation: c = -w*, weighted likelihood without the listwise normalisation. Not zero-sum; the paper shows that it
    fails. The loss is the cross-entropy -sum w* log P; through the log-ratios' normaliser its gradient would be
    P - w*, so here it is a value only.
    """
    target = log_target.exp()
    return Projection(-(target * log_policy).sum(-1), -target)


DIVERGENCES: dict[str, Divergence] = {
    "forward_kl": forward_kl,
    "reverse_kl": reverse_kl,
    "jensen_shannon": jensen_shannon,
    "first_order": first_order,
    "first_order_beta": first_order_beta,
    "pointwise": pointwise,
}
"""objective.divergence -> function"""

UNANCHORED = frozenset({"first_order", "first_order_beta"})
"""rows that read A_k off a target without the anchor s_t"""


def project(divergence: str, log_ratio: Tensor, log_target: Tensor, *, mask: Tensor | None = None) -> Projection:
    """Project P_theta = softmax(log_ratio) onto the target: loss [P] and coefficient [P, K].

    ``log_ratio`` s_theta [P, K] is raw, not clipped; ``log_target`` is log w* [P, K]. Masked entries have coefficient 0
    whatever stands in them. Finite for |s| <= 300 and for log w* = -inf, which counts as LOG_ZERO.
    """
    if log_ratio.ndim != 2 or log_ratio.shape != log_target.shape:
        raise ValueError(
            f"log_ratio {tuple(log_ratio.shape)} and log_target {tuple(log_target.shape)}: expected the same [P, K]"
        )
    kept = check_mask(log_ratio, mask)
    log_policy = finite_log(masked_log_softmax(log_ratio, kept), kept)
    function = resolve(divergence, DIVERGENCES, "divergence")
    loss, coefficient = function(log_policy, finite_log(log_target, kept), kept)
    if loss.shape != log_ratio.shape[:1] or coefficient.shape != log_ratio.shape:
        raise ValueError(
            f"divergence {divergence!r} returned loss {tuple(loss.shape)} and coefficient {tuple(coefficient.shape)} "
            f"for log_ratio {tuple(log_ratio.shape)}; expected [P] and [P, K]"
        )
    return Projection(loss, torch.where(kept, coefficient, 0.0).detach())
