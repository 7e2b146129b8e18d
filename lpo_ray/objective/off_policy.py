"""Groups that other weights than pi_t have sampled. The listwise softmax over s_t is self-normalised importance sampling:
P_t = softmax(s_t) are the normalised weights, and 1 / sum P_t^2 says how many responses they are worth.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lpo_ray.objective.simplex import listwise

HALVINGS = 60
"""of [0, 1]: below the spacing of float64"""


def effective_sample_size(log_ratio: Tensor) -> float:
    """1 / sum P_t^2 in [1, K] of one group's s_t [K] (Kish); K when on-policy."""
    if log_ratio.ndim != 1:
        raise ValueError(f"log_ratio has shape {tuple(log_ratio.shape)}; expected [K]")
    return float(1.0 / listwise(log_ratio[None].double()).exp().square().sum())


def temper(log_ratio: Tensor, least: float) -> float:
    """The largest lambda in [0, 1] with an effective sample size of lambda s_t of at least ``least``; s_t is [K].

    The effective sample size falls as lambda grows (softmax(lambda s) has inverse temperature lambda), from K at 0; so
    bisection finds it. The group then counts as sampled from the geometric mixture pi_b^lambda pi_t^(1 - lambda).
    ValueError when ``least`` is more than K.
    """
    if least > len(log_ratio):
        raise ValueError(f"least is {least}, of {len(log_ratio)} responses; expected at most as many")
    if effective_sample_size(log_ratio) >= least:
        return 1.0
    low, high = 0.0, 1.0
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        if effective_sample_size(middle * log_ratio.double()) >= least:
            low = middle
        else:
            high = middle
    return low


def importance_weights(behaviour: Tensor, engine: Tensor, cap: float) -> Tensor:
    """[N, T] token-level truncated importance weights min(pi_old / pi_engine, cap), without gradient (TIS; Yao et al.,
    "Your efficient RL framework secretly brings you off-policy RL training", 2025).
    """
    limit = torch.tensor(cap, dtype=torch.float64).log().item()
    return (behaviour - engine).detach().clamp(max=limit).exp()
