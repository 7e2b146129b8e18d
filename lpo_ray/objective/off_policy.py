"""Off-policy groups, sampled by older weights or by an engine that differs from the learner: how much they still say.

Legend: P groups, K responses, N rows, T tokens. The listwise simplex over s_t = log pi_t - log pi_b is self-normalised
importance sampling. When pi_b has drifted from pi_t, a few responses carry all of the weight. The group then says what
they say, with the noise of so few.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lpo_ray.objective.simplex import check_mask, masked_log_softmax, masked_sum

HALVINGS = 60
"""halvings of [0, 1]: to the last bit of fp64"""
SLACK = 1e-12
"""relative tolerance: K equal weights do not sum to exactly K"""


def effective_sample_size(log_ratio: Tensor, *, mask: Tensor | None = None) -> Tensor:
    """Compute how many of the K responses carry the weight: [P, K] s_t -> [P] 1 / sum P_t^2, P_t = softmax(s_t).

    It is in [1, K] (Kish, "Survey Sampling", 1965).
    """
    if log_ratio.ndim != 2:
        raise ValueError(f"log_ratio has shape {tuple(log_ratio.shape)}; expected [P, K]")
    kept = check_mask(log_ratio, mask)
    return 1.0 / masked_sum(masked_log_softmax(log_ratio, kept).exp() ** 2, kept)


def temper(log_ratio: Tensor, least: Tensor, *, mask: Tensor | None = None) -> Tensor:
    """Find the largest lambda in [0, 1] [P] whose softmax(lambda s_t) has an effective sample size of ``least``.

    ``log_ratio`` is s_t [P, K], ``least`` [P] is at most K; the result is in fp64.

    lambda s_t is the log-ratio of pi_t to the geometric mixture pi_b^lambda pi_t^(1 - lambda), up to a constant. The
    effective sample size falls as lambda grows (d log sum P^2 / d lambda = 2 (E under P^2 of s - E under P of s) >= 0),
    so halving finds it. A group that has enough keeps lambda = 1, and so does a group of one response.
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
    """Compute importance weights: [N, T] log pi_old - log pi_engine -> [N, T] min(pi_old / pi_engine, cap), constants.

    Truncated importance sampling (Ionides, 2008) of the token, as the baselines use it against the mismatch of engine
    and learner (Yao et al., "Your Efficient RL Framework Secretly Brings You Off-Policy RL Training", 2025). ``cap`` of
    1 or more: below it tokens on which the two agree would be scaled down too.
    """
    if not cap >= 1.0:
        raise ValueError(f"cap is {cap!r}; expected a number of 1 or more")
    return log_ratio.detach().clamp(max=math.log(cap)).exp()
