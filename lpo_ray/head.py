"""Log-prob and entropy of tokens from hidden states, without ever holding [tokens, vocabulary] logits.

Legend: M tokens, H hidden size, V vocabulary.

The head works in chunks of tokens: logits of one chunk in fp32, their log-sum-exp, and they are gone; the backward pass
computes them again. It costs one more product with the head and saves several copies of [M, V]. Liger's fused linear
losses do the same for cross-entropy, but reduce over tokens in the forward pass; a listwise coefficient is known only
after the log-probs of all K responses, so the chunks have to come twice.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable

CHUNK_ELEMENTS = 1 << 24
"""logits of one chunk: 64 MiB in fp32"""


class _ChunkedScores(torch.autograd.Function):
    """hidden [M, H], weight [V, H], targets [M] -> log-prob [M] and entropy [M]; entropy has no gradient."""

    @staticmethod
    def forward(
        ctx: FunctionCtx, hidden: Tensor, weight: Tensor, targets: Tensor, scale: float, chunk: int
    ) -> tuple[Tensor, Tensor]:
        exact = torch.promote_types(hidden.dtype, torch.float32)
        logprobs = torch.empty(len(hidden), dtype=exact, device=hidden.device)
        entropy, normaliser = torch.empty_like(logprobs), torch.empty_like(logprobs)
        for start in range(0, len(hidden), chunk):
            part = slice(start, start + chunk)
            logits = _logits(hidden[part], weight, scale, exact)
            total = normaliser[part] = logits.logsumexp(-1)
            logprobs[part] = logits.gather(1, targets[part, None])[:, 0] - total
            probabilities = (logits - total[:, None]).exp_()
            entropy[part] = total - torch.linalg.vecdot(probabilities, logits)
        ctx.save_for_backward(hidden, weight, targets, normaliser)
        ctx.scale, ctx.chunk = scale, chunk  # type: ignore[attr-defined]
        ctx.mark_non_differentiable(entropy)
        return logprobs, entropy

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: FunctionCtx, gradient: Tensor, _: Tensor
    ) -> tuple[Tensor, Tensor, None, None, None]:
        hidden, weight, targets, normaliser = ctx.saved_tensors  # type: ignore[attr-defined]
        scale, chunk = ctx.scale, ctx.chunk  # type: ignore[attr-defined]
        to_hidden = torch.empty_like(hidden)
        to_weight = torch.zeros_like(weight, dtype=normaliser.dtype)
        for start in range(0, len(hidden), chunk):
            part = slice(start, start + chunk)
            slope = (gradient[part] * scale)[:, None]
            to_logits = _logits(hidden[part], weight, scale, normaliser.dtype)
            to_logits = to_logits.sub_(normaliser[part, None]).exp_().mul_(-slope)
            to_logits.scatter_add_(1, targets[part, None], slope)
            narrow = to_logits.to(hidden.dtype)
            torch.mm(narrow, weight, out=to_hidden[part])
            if narrow.dtype == to_weight.dtype:
                to_weight.addmm_(narrow.T, hidden[part])
            else:
                to_weight += narrow.T @ hidden[part]
        return to_hidden, to_weight.to(weight.dtype), None, None, None


def _logits(hidden: Tensor, weight: Tensor, scale: float, dtype: torch.dtype) -> Tensor:
    logits = (hidden @ weight.T).to(dtype)
    return logits if scale == 1.0 else logits.mul_(scale)


class ScoringHead(nn.Module):
    """Holds the model's output weight; a module of its own, so that ZeRO-3 gathers the weight around its call."""

    def __init__(self, weight: nn.Parameter) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, hidden: Tensor, targets: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        """[M] log-prob of ``targets`` and [M] entropy, at the sampling temperature, from hidden [M, H]."""
        chunk = max(1, CHUNK_ELEMENTS // len(self.weight))
        return _ChunkedScores.apply(hidden, self.weight, targets, 1.0 / temperature, chunk)
