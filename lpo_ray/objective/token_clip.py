"""Token clips (App. D.3): how one token's log-ratio delta, times its response's coefficient c, enters the loss.

Each function takes delta [N, T] and c [N, 1] and the band [log(1 - low), log(1 + high)]; it returns the per-token loss
[N, T], whose gradient with respect to delta is what the token contributes.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from lpo_ray.plugins import resolve

TokenClip = Callable[[Tensor, Tensor, float, float], Tensor]


def clamp(delta: Tensor, coefficient: Tensor, low: float, high: float) -> Tensor:
    """C clip(delta), literally as the paper says: no gradient outside the band on either side."""
    return coefficient * delta.clamp(math.log1p(-low), math.log1p(high))


def one_sided(delta: Tensor, coefficient: Tensor, low: float, high: float) -> Tensor:
    """max(c delta, c clip(delta)): a token outside the band keeps its gradient when it points back to the band."""
    return torch.maximum(coefficient * delta, clamp(delta, coefficient, low, high))


def ppo_ratio(delta: Tensor, coefficient: Tensor, low: float, high: float) -> Tensor:
    """max(c r, c clip(r, 1 - low, 1 + high)) with r = exp(delta): PPO's pessimistic clip, for the baselines."""
    ratio = delta.exp()
    return torch.maximum(coefficient * ratio, coefficient * ratio.clamp(1 - low, 1 + high))


def none(delta: Tensor, coefficient: Tensor, low: float, high: float) -> Tensor:
    """C delta: no clip."""
    return coefficient * delta


TOKEN_CLIPS: dict[str, TokenClip] = {"clamp": clamp, "one_sided": one_sided, "ppo_ratio": ppo_ratio, "none": none}
"""objective.token_clip.kind -> function"""


def clipped_token_loss(
    kind: str, token_log_ratio: Tensor, coefficient: Tensor, *, low: float = 0.2, high: float = 0.2
) -> Tensor:
    """[N, T] token log-ratios and [N] coefficients -> [N, T] loss per token, before the mean over tokens."""
    if token_log_ratio.ndim != 2 or coefficient.shape != token_log_ratio.shape[:1]:
        raise ValueError(
            f"token_log_ratio {tuple(token_log_ratio.shape)} and coefficient {tuple(coefficient.shape)}: "
            "expected [N, T] and [N]"
        )
    return resolve(kind, TOKEN_CLIPS, "token_clip")(token_log_ratio, coefficient.detach()[:, None], low, high)
