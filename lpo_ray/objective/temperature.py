"""Target temperatures tau: centring cancels in the softmax, so each known method is one tau (LPO.md, section 1)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lpo_ray.objective.simplex import check_mask, masked_sum
from lpo_ray.plugins import resolve

Temperature = Callable[[Tensor, Tensor, int], Tensor]
"""rewards [P, K], kept [P, K], ddof -> the statistic [P], before the floor is added"""


def group_std(rewards: Tensor, kept: Tensor, ddof: int) -> Tensor:
    """Standard deviation of each group's rewards: GRPO, DAPO, CISPO, GSPO."""
    count = kept.sum(-1)
    centred = _centred(rewards, kept)
    return (masked_sum(centred**2, kept) / (count - ddof).clamp(min=1)).sqrt()


def group_mean(rewards: Tensor, kept: Tensor, ddof: int) -> Tensor:
    """Mean reward of each group: MaxRL. A mean of 0 or less has no target but P_t itself: tau = infinity."""
    mean = masked_sum(rewards, kept) / kept.sum(-1)
    return torch.where(mean > 0, mean, torch.inf)


def one(rewards: Tensor, kept: Tensor, ddof: int) -> Tensor:
    """1: Dr.GRPO, ReMax, RLOO."""
    return torch.ones_like(rewards[:, 0])


def batch_std(rewards: Tensor, kept: Tensor, ddof: int) -> Tensor:
    """Standard deviation over the batch of group-centred rewards, one for all prompts: REINFORCE++ with baseline."""
    centred = _centred(rewards, kept)[kept]
    spread = ((centred - centred.mean()) ** 2).sum() / max(centred.numel() - ddof, 1)
    return spread.sqrt().expand(len(rewards))


TEMPERATURES: dict[str, Temperature] = {
    "group_std": group_std,
    "group_mean": group_mean,
    "one": one,
    "batch_std": batch_std,
}
"""objective.target_temperature -> statistic; a number is a constant tau"""

EXACT = frozenset({"one"})
"""rows to which no floor is added"""


def target_temperature(
    rewards: Tensor, rule: str | float, *, ddof: int = 0, floor: float = 1e-6, mask: Tensor | None = None
) -> Tensor:
    """[P, K] rewards -> [P] tau = statistic + floor (a constant, and ``one``, as they are).

    ``rule`` is a row of TEMPERATURES, "package.module:function", or a positive number.
    """
    if rewards.ndim != 2:
        raise ValueError(f"rewards have shape {tuple(rewards.shape)}; expected [P, K]")
    if not rewards.is_floating_point():
        raise ValueError(f"rewards are {rewards.dtype}; expected floating point, in which tau = 0.5 is not 0")
    kept = check_mask(rewards, mask)
    if not isinstance(rule, str):
        if not rule > 0:
            raise ValueError(f"target temperature is {rule!r}; expected a number above 0")
        return torch.full_like(rewards[:, 0], float(rule))
    statistic = resolve(rule, TEMPERATURES, "target_temperature")(rewards, kept, ddof)
    return statistic if rule in EXACT else statistic + floor


def _centred(rewards: Tensor, kept: Tensor) -> Tensor:
    mean = masked_sum(rewards, kept) / kept.sum(-1)
    return torch.where(kept, rewards - mean[:, None], 0.0)
