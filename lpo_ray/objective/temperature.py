"""Target temperatures tau: centring cancels in the softmax, so each known method is one tau (LPO.md, section 1)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lpo_ray.common.plugins import resolve
from lpo_ray.objective.simplex import check_mask, masked_log_softmax, masked_sum

LOG_TAU = (-4.6, 6.9)
"""logs of the smallest and largest tau that ``effective`` tries, 0.01 and 1000 times the largest centred reward"""
HALVINGS = 40
"""halvings of LOG_TAU: to 1e-11 of tau"""

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


def effective(share: float) -> Temperature:
    """Make the statistic with which the target's effective size 1 / sum w^2, w = softmax(R/tau), is ``share`` of K.

    So a prompt on which one response of eight is right is pulled as softly as one on which five are. Where the best
    responses alone are more than that share, tau is the smallest that is tried. Equal rewards get infinity: at any tau
    they have every response.
    """

    def temperature(rewards: Tensor, kept: Tensor, ddof: int) -> Tensor:
        centred = _centred(rewards, kept)
        spread = centred.abs().amax(-1)
        unit = torch.where(spread[:, None] > 0, centred / spread[:, None], 0.0).double()
        wanted = share * kept.sum(-1)
        low, high = torch.full_like(wanted, LOG_TAU[0]), torch.full_like(wanted, LOG_TAU[1])
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            weights = masked_log_softmax(unit / middle.exp()[:, None], kept).exp()
            enough = 1.0 / masked_sum(weights**2, kept) >= wanted
            low, high = torch.where(enough, low, middle), torch.where(enough, middle, high)
        return torch.where(spread > 0, spread * high.exp().to(rewards), torch.inf)

    return temperature


TEMPERATURES: dict[str, Temperature] = {
    "group_std": group_std,
    "group_mean": group_mean,
    "one": one,
    "batch_std": batch_std,
    "effective_25": effective(0.25),
    "effective_50": effective(0.5),
    "effective_75": effective(0.75),
}
"""objective.target_temperature -> statistic; a number is a constant tau, effective_N aims at N % of K"""

EXACT = frozenset({"one"})
"""rows to which no floor is added"""


def target_temperature(
    rewards: Tensor, rule: str | float, *, ddof: int = 0, floor: float = 1e-6, mask: Tensor | None = None
) -> Tensor:
    """Compute tau [P] = statistic + floor from rewards [P, K]; constants and ``one`` get no floor.

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
