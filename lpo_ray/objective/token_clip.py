"""Token clips (App. D.3): how one token's log-ratio delta, times its response's coefficient c, enters the loss.

Each function takes delta [N, T] and c [N, 1] and the band [log(1 - low), log(1 + high)]; it returns the per-token loss
[N, T], whose gradient with respect to delta is what the token contributes.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from lpo_ray.common.plugins import resolve

TokenClip = Callable[[Tensor, Tensor, float, float], Tensor]

MAX_LOG_RATIO = 20.0
"""a ratio of 5e8: no useful update is beyond it, and float32 ends at 88"""


def clamp(delta: Tensor, coefficient: Tensor, low: float, high: float) -> Tensor:
    """The paper's literal clip, c clip(delta): no gradient outside the band on either side."""
    return coefficient * delta.clamp(math.log1p(-low), math.log1p(high))


def one_sided(delta: Tensor, coefficient: Tensor, low: float, high: float) -> Tensor:
    """max(c delta, c clip(delta)): a token outside the band keeps its gradient when it points back to the band."""
    return torch.maximum(coefficient * delta, clamp(delta, coefficient, low, high))


def ppo_ratio(delta: Tensor, coefficient: Tensor, low: float, high: float) -> Tensor:
    """max(c r, c clip(r, 1 - low, 1 + high)) with r = exp(delta): PPO's pessimistic clip, for the baselines.

    A delta above MAX_LOG_RATIO counts as MAX_LOG_RATIO and has no gradient: exp would overflow, and the backward pass
    of the branch that was *not* taken would multiply 0 by infinity.
    """
    ratio = delta.clamp(max=MAX_LOG_RATIO).exp()
    return torch.maximum(coefficient * ratio, coefficient * ratio.clamp(1 - low, 1 + high))


def none(delta: Tensor, coefficient: Tensor, low: float, high: float) -> Tensor:
    """No clip: c delta."""
    return coefficient * delta


TOKEN_CLIPS: dict[str, TokenClip] = {"clamp": clamp, "one_sided": one_sided, "ppo_ratio": ppo_ratio, "none": none}
"""objective.token_clip.kind -> function"""


def clipped_token_loss(
    kind: str, token_log_ratio: Tensor, coefficient: Tensor, *, low: float = 0.2, high: float = 0.2
) -> Tensor:
    """Compute the loss of each token [N, T], before the mean, from [N, T] log-ratios and [N] coefficients."""
    if token_log_ratio.ndim != 2 or coefficient.shape != token_log_ratio.shape[:1]:
        raise ValueError(
            f"token_log_ratio {tuple(token_log_ratio.shape)} and coefficient {tuple(coefficient.shape)}: "
            "expected [N, T] and [N]"
        )
    if not (0 <= low < 1 and high >= 0):
        raise ValueError(f"the band is 1 - {low!r} to 1 + {high!r}; expected low in [0, 1) and high of 0 or more")
    loss = resolve(kind, TOKEN_CLIPS, "token_clip")(token_log_ratio, coefficient.detach()[:, None], low, high)
    if loss.shape != token_log_ratio.shape:
        raise ValueError(
            f"token_clip {kind!r} returned {tuple(loss.shape)} for token_log_ratio {tuple(token_log_ratio.shape)}; "
            "expected the same [N, T]"
        )
    return loss
