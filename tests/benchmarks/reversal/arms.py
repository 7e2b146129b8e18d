"""What is compared: points of lpo-ray's grid, and TPO's and its baselines' published forms from the same functions.

Legend: P groups, K responses, N = P K, T tokens. All have tau = the group's standard deviation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lpo_ray.learner.loss import k3
from lpo_ray.objective import (
    DIVERGENCES,
    clipped_token_loss,
    gibbs_target,
    project,
    response_log_ratio,
    target_temperature,
)

HORIZONS = (7, 8, 9, 10)


@dataclass(frozen=True, slots=True)
class Arm:
    """A divergence, what its simplex is made of, and its clip."""

    title: str
    divergence: str
    length_norm: Literal["mean", "sum"]
    clip: str
    clip_unit: Literal["token", "response"] = "token"
    """response: one ratio for all of it, as in TPO's GRPO"""
    logits: Literal["ratio", "logprob"] = "ratio"
    """logprob: not divided by the behaviour, which then stands in the target's anchor, as in TPO"""
    snapshot_kl: float = 0.0
    """weight of k3 of KL(policy || the policy that sampled), of ``clip_unit``s, as in TPO's GRPO"""
    published: tuple[float | None, ...] = ()
    """exact-match error in % at HORIZONS, TPO's Table 3, prompt-matched; None: more than 95"""

    @property
    def first_order(self) -> bool:
        """The coefficients are those of the rewards alone."""
        return self.divergence.startswith("first_order")

    @property
    def pulls_back(self) -> bool:
        """A group of equal rewards has a gradient once the policy has moved from where it was sampled."""
        return not self.first_order or self.snapshot_kl > 0


_ALL = {
    "tpo": Arm(
        "TPO as published", "forward_kl", "sum", "none", logits="logprob", published=(6.9, 8.6, 6.1, 7.4)
    ),
    "lpo_sum": Arm("LPO forward KL, sum", "forward_kl", "sum", "clamp"),
    "lpo_mean": Arm("LPO forward KL, mean (the paper's)", "forward_kl", "mean", "clamp"),
    "grpo_kl": Arm(
        "GRPO with KL to the snapshot, as published", "first_order", "sum", "ppo_ratio", "response",
        snapshot_kl=0.04, published=(14.5, 27.6, 30.0, 50.4),
    ),
    "grpo": Arm("GRPO, token ratios, mean", "first_order", "mean", "ppo_ratio"),
    "grpo_beta": Arm("GRPO x beta(n), token ratios, mean", "first_order_beta", "mean", "ppo_ratio"),
    "reverse_sum": Arm("LPO reverse KL, sum", "reverse_kl", "sum", "clamp"),
    "lpo_sum_free": Arm("LPO forward KL, sum, no clip", "forward_kl", "sum", "none"),
    "lpo_sum_back": Arm("LPO forward KL, sum, one-sided clip", "forward_kl", "sum", "one_sided"),
    "lpo_mean_back": Arm("LPO forward KL, mean, one-sided clip", "forward_kl", "mean", "one_sided"),
    "reverse_mean": Arm("LPO reverse KL, mean", "reverse_kl", "mean", "clamp"),
    "grpo_no_kl": Arm(
        "GRPO without KL, as published", "first_order", "sum", "ppo_ratio", "response",
        published=(66.6, 92.5, None, None),
    ),
}  # fmt: skip
ARMS = {name: arm for name, arm in _ALL.items() if arm.divergence in DIVERGENCES}
"""in the order in which they run; those whose divergence this version has"""

PUBLISHED_ONLY = {"PPO (single responses)": (12.0, 26.3, 90.6, None)}
"""not run: a value for each token, which is not of this grid"""


def coefficients(arm: Arm, log_scores: Tensor, old_scores: Tensor, rewards: Tensor) -> Tensor:
    """[P, K] response logits now and at the snapshot, and rewards -> [P, K] c_k, in fp64."""
    tau = target_temperature(rewards.double(), "group_std")
    log_target = gibbs_target(rewards.double(), tau, None if arm.first_order else old_scores.double())
    return project(arm.divergence, log_scores.double(), log_target).coefficient


def moves(arm: Arm, rewards: Tensor, behaviour: Tensor) -> Tensor:
    """[P] which groups have a gradient at the snapshot itself; ``behaviour`` [P, K, T]."""
    scores = _scores(arm, behaviour.flatten(0, 1), behaviour.flatten(0, 1)).view_as(rewards)
    return (coefficients(arm, scores, scores, rewards).abs() > 1e-12).any(-1)


def loss(arm: Arm, logprobs: Tensor, behaviour: Tensor, rewards: Tensor) -> Tensor:
    """[N, T] log-probs with gradient, [P, K, T] those at the snapshot, [P, K] rewards -> sum over the groups."""
    before = behaviour.flatten(0, 1)
    now, old = (_scores(arm, values, before).view_as(rewards) for values in (logprobs.detach(), before))
    coefficient = coefficients(arm, now, old, rewards).flatten().to(logprobs)
    delta = logprobs - before
    if arm.clip_unit == "response":
        delta = delta.sum(-1, keepdim=True)
    mask = torch.ones_like(delta, dtype=torch.bool)
    total = response_log_ratio(clipped_token_loss(arm.clip, delta, coefficient), mask, arm.length_norm).sum()
    if arm.snapshot_kl:
        total = total + arm.snapshot_kl / rewards.shape[1] * response_log_ratio(k3(-delta), mask, "mean").sum()
    return total


def _scores(arm: Arm, logprobs: Tensor, behaviour: Tensor) -> Tensor:
    """[N] response logits."""
    values = logprobs if arm.logits == "logprob" else logprobs - behaviour
    return response_log_ratio(values, torch.ones_like(values, dtype=torch.bool), arm.length_norm)
