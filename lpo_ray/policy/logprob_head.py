"""Log-prob head: log-prob and entropy of tokens from hidden states, without holding [tokens, vocabulary] logits.

Legend: M tokens, H hidden size, V vocabulary.

The head works in chunks of tokens. It keeps the log-sum-exp of a chunk's fp32 logits and drops the logits; the backward
pass computes them again. That costs one more product with the head and saves several copies of [M, V]. Liger's fused
linear losses do the same for cross-entropy, but reduce over tokens in the forward pass. A listwise coefficient is known
only after the log-probs of all K responses, so the chunks have to come twice.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable

CHUNK_ELEMENTS = 1 << 24
"""logits of one chunk: 64 MiB in fp32. In half precision it is twice that: there, adding a chunk's gradient to that of
the weight goes through a temporary of the weight's size, so fewer chunks are faster"""


class _ChunkedScores(torch.autograd.Function):
    """Function of hidden [M, H], weight [V, H], targets [M] -> log-prob [M] and entropy [M], without its gradient."""

    @staticmethod
    def forward(
        ctx: FunctionCtx, hidden: Tensor, weight: Tensor, targets: Tensor, scale: float, chunk: int
    ) -> tuple[Tensor, Tensor]:
        exact = torch.promote_types(hidden.dtype, torch.float32)
        logprobs = torch.empty(len(hidden), dtype=exact, device=hidden.device)
        entropy, normaliser = torch.empty_like(logprobs), torch.empty_like(logprobs)
        buffers = _Buffers(hidden, weight, exact, chunk)
        probabilities = torch.empty_like(buffers.wide)
        for start in range(0, len(hidden), chunk):
            part = slice(start, start + chunk)
            shifted = buffers.logits(hidden[part], weight, scale)
            normaliser[part] = total = shifted.logsumexp(-1)
            shifted.sub_(total[:, None])
            logprobs[part] = shifted.gather(1, targets[part, None])[:, 0]
            entropy[part] = -torch.linalg.vecdot(torch.exp(shifted, out=probabilities[: len(shifted)]), shifted)
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
        narrow_weight = None if weight.dtype == to_weight.dtype else torch.empty_like(weight)
        buffers = _Buffers(hidden, weight, normaliser.dtype, chunk)
        for start in range(0, len(hidden), chunk):
            part = slice(start, start + chunk)
            slope = (gradient[part] * scale)[:, None]
            wide = buffers.logits(hidden[part], weight, scale)
            wide.sub_(normaliser[part, None]).exp_().mul_(-slope).scatter_add_(1, targets[part, None], slope)
            to_logits = buffers.narrowed(wide)
            torch.mm(to_logits, weight, out=to_hidden[part])
            if narrow_weight is None:
                to_weight.addmm_(to_logits.T, hidden[part])
            else:
                to_weight += torch.mm(to_logits.T, hidden[part], out=narrow_weight)
        return to_hidden, to_weight.to(weight.dtype), None, None, None


class _Buffers:
    """Buffers for the logits of one chunk, in the width of the scores and in that of the model.

    Each chunk uses them again: having the kernel map 64 MiB for every temporary took longer than the arithmetic.
    """

    def __init__(self, hidden: Tensor, weight: Tensor, exact: torch.dtype, chunk: int) -> None:
        shape = (min(chunk, len(hidden)), len(weight))
        self.wide = hidden.new_empty(shape, dtype=exact)
        self._narrow = self.wide if hidden.dtype == exact else hidden.new_empty(shape)

    def logits(self, hidden: Tensor, weight: Tensor, scale: float) -> Tensor:
        """Compute [rows, V] logits over the temperature; valid until the next call."""
        narrow, wide = self._narrow[: len(hidden)], self.wide[: len(hidden)]
        torch.mm(hidden, weight.T, out=narrow)
        if self._narrow is not self.wide:
            wide.copy_(narrow)
        return wide if scale == 1.0 else wide.mul_(scale)

    def narrowed(self, wide: Tensor) -> Tensor:
        """Cast ``wide`` to the model's width."""
        return wide if self._narrow is self.wide else self._narrow[: len(wide)].copy_(wide)


class ScoringHead(nn.Module):
    """Output weight of the model, in a module of its own so that ZeRO-3 gathers it around the call."""

    def __init__(self, weight: nn.Parameter) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, hidden: Tensor, targets: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        """Compute [M] log-prob of ``targets`` and [M] entropy at the sampling temperature from hidden [M, H]."""
        elements = CHUNK_ELEMENTS * (2 if hidden.element_size() == 2 else 1)
        chunk = max(1, elements // len(self.weight))
        return _ChunkedScores.apply(hidden, self.weight, targets, 1.0 / temperature, chunk)
