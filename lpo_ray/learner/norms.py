"""Norms of gradients and updates by kind of parameter: they show where training blows up or stands still."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

KINDS = ("embedding", "attention", "mlp", "norm", "head", "other")
_PATTERNS = (
    ("norm", ("norm", "ln_")),
    ("attention", ("attn", "attention")),
    ("mlp", ("mlp", "expert", "feed_forward")),
    ("embedding", ("embed", "wte", "wpe")),
    ("head", ("lm_head",)),
)
"""kind -> parts of a parameter's name; the first match counts"""


def kind_of(name: str) -> str:
    """Classify a parameter by its name."""
    return next((kind for kind, parts in _PATTERNS if any(part in name for part in parts)), "other")


def norms_by_kind(
    tensors: Iterable[tuple[str, Tensor]], sum_over_ranks: Callable[[Tensor], Tensor]
) -> dict[str, float]:
    """Compute the norm of each kind over all ranks' shards, without kinds that have no tensor. All ranks call it."""
    squares = torch.zeros(len(KINDS), dtype=torch.float64)
    for name, tensor in tensors:
        squares[KINDS.index(kind_of(name))] += _square(tensor)
    return _by_kind(sum_over_ranks(squares).sqrt())


def update_ratios(
    shards: Iterable[tuple[str, Tensor, tuple[Tensor, Tensor]]],
    optimiser: torch.optim.AdamW,
    sum_over_ranks: Callable[[Tensor], Tensor],
) -> dict[str, float]:
    """Divide the norm of AdamW's last update by that of the weights, for each kind and over all ranks' shards.

    A shard is a name, the weight after the update, and its two moments. All ranks call it.
    """
    step = int(next(iter(optimiser.state.values()))["step"])
    options = optimiser.param_groups[0]
    squares = torch.zeros(2, len(KINDS), dtype=torch.float64)
    for name, weight, moments in shards:
        update = adamw_update(
            weight, moments, step, lr=options["lr"], betas=options["betas"], eps=options["eps"],
            weight_decay=options["weight_decay"],
        )  # fmt: skip
        squares[:, KINDS.index(kind_of(name))] += torch.stack([_square(update), _square(weight)])
    updates, weights = (_by_kind(norms) for norms in sum_over_ranks(squares).sqrt())
    return {kind: updates.get(kind, 0.0) / value for kind, value in weights.items()}


def _square(tensor: Tensor) -> Tensor:
    return torch.linalg.vector_norm(tensor.float()).double().square().cpu()


def _by_kind(values: Tensor) -> dict[str, float]:
    return {kind: float(value) for kind, value in zip(KINDS, values, strict=True) if value != 0}


def adamw_update(
    weight: Tensor,
    moments: tuple[Tensor, Tensor],
    step: int,
    *,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
) -> Tensor:
    """Compute what AdamW's step number ``step`` added to ``weight``, from the weight after it and its state.

    So no copy of the weights has to be kept. The decay is taken of the new weights, which differ from the old by the
    update itself.
    """
    first, second = moments
    denominator = (second / (1 - betas[1] ** step)).sqrt_().add_(eps)
    update = (first / denominator).mul_(-lr / (1 - betas[0] ** step))
    return update.sub_(weight, alpha=lr * weight_decay) if weight_decay else update
