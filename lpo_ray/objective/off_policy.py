"""Groups that older weights, or an engine that differs from the learner, have sampled: how much of such a group is left
to learn from, and how much of its anchor to believe. P groups, K responses, N rows, T tokens.

The listwise simplex over s_t = log pi_t - log pi_b is self-normalised importance sampling. When pi_b has drifted from
pi_t a few responses carry all of the weight, and the group then says what they say, with the noise of so few.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lpo_ray.objective.simplex import check_mask, masked_log_softmax, masked_sum

HALVINGS = 60
"""of [0, 1]: to the last bit of fp64"""
SLACK = 1e-12
"""relative: K equal weights do not sum to exactly K"""


def effective_sample_size(log_ratio: Tensor, *, mask: Tensor | None = None) -> Tensor:
    """[P, K] s_t -> [P] 1 / sum P_t^2 with P_t = softmax(s_t): how many of the K responses carry the weight (Kish,
    "Survey Sampling", 1965), in [1, K].
    """
    if log_ratio.ndim != 2:
        raise ValueError(f"log_ratio has shape {tuple(log_ratio.shape)}; expected [P, K]")
    kept = check_mask(log_ratio, mask)
    return 1.0 / masked_sum(masked_log_softmax(log_ratio, kept).exp() ** 2, kept)


def temper(log_ratio: Tensor, least: Tensor, *, mask: Tensor | None = None) -> Tensor:
    """[P] the largest lambda in [0, 1] whose softmax(lambda s_t) has an effective sample size of at least ``least``;
    in fp64. ``log_ratio`` is s_t [P, K], ``least`` [P] is at most K.

    lambda s_t is the log-ratio of pi_t to the geometric mixture pi_b^lambda pi_t^(1 - lambda), up to a constant. The
    effective sample size falls as lambda grows (d log sum P^2 / d lambda = 2 (E under P^2 of s - E under P of s) >= 0),
    so halving finds it. A group that has enough keeps lambda = 1; one response is one of one, and keeps it too.
    """
    kept = check_mask(log_ratio, mask)
    if least.shape != log_ratio.shape[:1] or bool((least > kept.sum(-1)).any()):
        raise ValueError(
            f"least is {least.tolist()} for groups of {kept.sum(-1).tolist()} responses; expected [P], at most K each"
        )
    s_t, wanted = log_ratio.double(), least.double() * (1 - SLACK)
    enough = effective_sample_size(s_t, mask=kept) >= wanted
    low, high = torch.zeros_like(wanted), torch.ones_like(wanted)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        reached = effective_sample_size(middle[:, None] * s_t, mask=kept) >= wanted
        low, high = torch.where(reached, middle, low), torch.where(reached, high, middle)
    return torch.where(enough, 1.0, low)


def truncated_importance(log_ratio: Tensor, cap: float) -> Tensor:
    """[N, T] log pi_old - log pi_engine of sampled tokens -> [N, T] min(pi_old / pi_engine, cap), constants.

    Truncated importance sampling (Ionides, 2008) of the token, as the baselines use it against the mismatch of engine
    and learner (Yao et al., "Your Efficient RL Framework Secretly Brings You Off-Policy RL Training", 2025). ``cap`` of
    1 or more: below it tokens on which the two agree would be scaled down too.
    """
    if not cap >= 1.0:
        raise ValueError(f"cap is {cap!r}; expected a number of 1 or more")
    return log_ratio.detach().clamp(max=math.log(cap)).exp()
