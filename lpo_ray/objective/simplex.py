"""Response simplex: K responses of one prompt as a distribution. P prompts, K responses, N rows, T tokens."""

from __future__ import annotations

import torch
from torch import Tensor

LOG_ZERO = -1e15
"""log 0 as arithmetic can bear it: far below what rewards over the smallest tau reach, its square finite in fp32"""


def response_log_ratio(token_log_ratio: Tensor, mask: Tensor, length_norm: str = "mean") -> Tensor:
    """Reduce [N, T] token log-ratios to [N] response log-ratios s: mean (LPO, Eq. 3) or sum (TPO) over tokens.

    A row without tokens has s = 0.
    """
    if token_log_ratio.shape != mask.shape or token_log_ratio.ndim != 2:
        raise ValueError(
            f"token_log_ratio {tuple(token_log_ratio.shape)} and mask {tuple(mask.shape)}: expected [N, T]"
        )
    kept = mask.to(token_log_ratio.dtype)
    total = torch.where(mask.bool(), token_log_ratio, 0.0).sum(-1)
    if length_norm == "sum":
        return total
    if length_norm == "mean":
        return total / kept.sum(-1).clamp(min=1.0)
    raise ValueError(f"length_norm is {length_norm!r}; expected mean or sum")


def listwise(log_ratio: Tensor, *, mask: Tensor | None = None) -> Tensor:
    """Compute log P_theta [P, K], the listwise policy softmax(s) (Eq. 4) of log-ratios s. Masked entries are -inf."""
    if log_ratio.ndim != 2:
        raise ValueError(f"log_ratio has shape {tuple(log_ratio.shape)}; expected [P, K]")
    kept = check_mask(log_ratio, mask)
    return masked_log_softmax(log_ratio, kept)


def check_mask(values: Tensor, mask: Tensor | None) -> Tensor:
    """Return the bool mask of ``values`` [P, K], all true when None. Every group needs at least one response."""
    if mask is None:
        return torch.ones_like(values, dtype=torch.bool)
    if mask.shape != values.shape:
        raise ValueError(
            f"mask has shape {tuple(mask.shape)}, values have {tuple(values.shape)}; expected the same [P, K]"
        )
    if not bool(mask.any(-1).all()):
        raise ValueError("a group has no response: its mask is all false")
    return mask.bool()


def masked_log_softmax(logits: Tensor, kept: Tensor) -> Tensor:
    """Compute the log softmax over the kept entries; -inf elsewhere, without NaN in value or gradient."""
    filled = torch.where(kept, logits, torch.finfo(logits.dtype).min)
    return torch.where(kept, filled.log_softmax(-1), -torch.inf)


def masked_sum(values: Tensor, kept: Tensor) -> Tensor:
    """Add up the kept entries of each row, [P]; whatever stands in the others, NaN included, does not matter."""
    return torch.where(kept, values, 0.0).sum(-1)


def finite_log(log_values: Tensor, kept: Tensor) -> Tensor:
    """Put masked and underflowed log-probs at LOG_ZERO: their exp is 0, and 0 * log 0 is 0, never NaN."""
    return torch.where(kept, log_values.clamp(min=LOG_ZERO), LOG_ZERO)
