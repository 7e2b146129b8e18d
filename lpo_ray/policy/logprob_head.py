"""Log-prob head: log-prob and entropy of tokens from hidden states, without holding [tokens, vocabulary] logits.

Legend: M tokens, H hidden size, V vocabulary.

The head works in chunks of tokens. It keeps the log-sum-exp of a chunk's fp32 logits and drops the logits; the backward
pass computes them again. That costs one more product with the head and saves several copies of [M, V]. Liger's fused
linear losses do the same for cross-entropy, but reduce over tokens in the forward pass. A listwise coefficient is known
only after the log-probs of all K responses, so the chunks have to come twice.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable

CHUNK_ELEMENTS = 1 << 24
"""logits of one chunk: 64 MiB in fp32. In half precision it is twice that: there, adding a chunk's gradient to that of
the weight goes through a temporary of the weight's size, so fewer chunks are faster"""
GPU_CHUNK_TOKENS = 4096
"""tokens of one chunk on a GPU, where adding a chunk's gradient to that of the weight takes as long as the product
itself at a few hundred tokens. At a vocabulary of 152,000 their logits are 2.3 GiB in fp32
"""


@dataclass(frozen=True, slots=True)
class LogitShape:
    """Arithmetic from head and hidden state to logits: ``z = scale (W h + b)``, then ``cap tanh(z / cap)``."""

    scale: float = 1.0
    """Cohere's logit_scale, Granite's 1 / logits_scaling, Falcon-H1's lm_head_multiplier"""
    cap: float | None = None
    """Gemma 2's final_logit_softcapping"""


class _ChunkedScores(torch.autograd.Function):
    """Function of hidden [M, H], weight [V, H], bias [V] or None, targets [M] -> log-prob [M] and entropy [M], without
    its gradient.
    """

    @staticmethod
    def forward(
        ctx: FunctionCtx,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        shape: LogitShape,
        temperature: float,
        chunk: int,
    ) -> tuple[Tensor, Tensor]:
        exact = torch.promote_types(hidden.dtype, torch.float32)
        logprobs = torch.empty(len(hidden), dtype=exact, device=hidden.device)
        entropy, normaliser = torch.empty_like(logprobs), torch.empty_like(logprobs)
        buffers = _Buffers(hidden, weight, exact, chunk)
        probabilities = torch.empty_like(buffers.wide)
        for start in range(0, len(hidden), chunk):
            part = slice(start, start + chunk)
            shifted = _over(temperature, buffers.logits(hidden[part], weight, bias, shape))
            normaliser[part] = total = shifted.logsumexp(-1)
            shifted.sub_(total[:, None])
            logprobs[part] = shifted.gather(1, targets[part, None])[:, 0]
            entropy[part] = -torch.linalg.vecdot(torch.exp(shifted, out=probabilities[: len(shifted)]), shifted)
        ctx.save_for_backward(hidden, weight, bias, targets, normaliser)  # pyright: ignore[reportArgumentType]
        ctx.shape, ctx.temperature, ctx.chunk = shape, temperature, chunk  # type: ignore[attr-defined]
        ctx.mark_non_differentiable(entropy)
        return logprobs, entropy

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: FunctionCtx, gradient: Tensor, _: Tensor
    ) -> tuple[Tensor, Tensor | None, Tensor | None, None, None, None, None]:
        hidden, weight, bias, targets, normaliser = ctx.saved_tensors  # type: ignore[attr-defined]
        shape, temperature, chunk = ctx.shape, ctx.temperature, ctx.chunk  # type: ignore[attr-defined]
        to_hidden = torch.empty_like(hidden)
        _, trains_weight, trains_bias, *_ = ctx.needs_input_grad  # type: ignore[attr-defined] - a frozen head has none
        to_weight = torch.zeros_like(weight, dtype=normaliser.dtype) if trains_weight else None
        to_bias = torch.zeros_like(bias, dtype=normaliser.dtype) if trains_bias else None
        narrow_weight = None if to_weight is None or weight.dtype == to_weight.dtype else torch.empty_like(weight)
        buffers = _Buffers(hidden, weight, normaliser.dtype, chunk)
        for start in range(0, len(hidden), chunk):
            part = slice(start, start + chunk)
            slope = (gradient[part] * (shape.scale / temperature))[:, None]
            wide = buffers.logits(hidden[part], weight, bias, shape)
            steepness = None if shape.cap is None else 1.0 - (wide / shape.cap).square_()  # of the tanh
            _over(temperature, wide).sub_(normaliser[part, None]).exp_().mul_(-slope)
            wide.scatter_add_(1, targets[part, None], slope)
            if steepness is not None:
                wide.mul_(steepness)
            if to_bias is not None:
                to_bias += wide.sum(0)
            to_logits = buffers.narrowed(wide)
            torch.mm(to_logits, weight, out=to_hidden[part])
            if to_weight is None:
                continue
            if narrow_weight is None:
                to_weight.addmm_(to_logits.T, hidden[part])
            else:
                to_weight += torch.mm(to_logits.T, hidden[part], out=narrow_weight)
        narrow_bias = None if bias is None or to_bias is None else to_bias.to(bias.dtype)
        narrow = None if to_weight is None else to_weight.to(weight.dtype)
        return to_hidden, narrow, narrow_bias, None, None, None, None


def chunk_tokens(vocabulary: int, element_size: int, *, on_gpu: bool) -> int:
    """Count the tokens whose logits are held at once. ``element_size``: bytes of an element of the model."""
    if on_gpu:
        return GPU_CHUNK_TOKENS
    return max(1, CHUNK_ELEMENTS * (2 if element_size == 2 else 1) // vocabulary)


def _over(temperature: float, logits: Tensor) -> Tensor:
    return logits if temperature == 1.0 else logits.mul_(1.0 / temperature)


class _Buffers:
    """Buffers for the logits of one chunk, in the width of the scores and in that of the model.

    Each chunk uses them again: having the kernel map 64 MiB for every temporary took longer than the arithmetic.
    """

    def __init__(self, hidden: Tensor, weight: Tensor, exact: torch.dtype, chunk: int) -> None:
        shape = (min(chunk, len(hidden)), len(weight))
        self.wide = hidden.new_empty(shape, dtype=exact)
        self._narrow = self.wide if hidden.dtype == exact else hidden.new_empty(shape)

    def logits(self, hidden: Tensor, weight: Tensor, bias: Tensor | None, shape: LogitShape) -> Tensor:
        """Compute [rows, V] logits; valid until the next call."""
        narrow, wide = self._narrow[: len(hidden)], self.wide[: len(hidden)]
        torch.mm(hidden, weight.T, out=narrow)
        if self._narrow is not self.wide:
            wide.copy_(narrow)
        if bias is not None:
            wide.add_(bias)
        if shape.scale != 1.0:
            wide.mul_(shape.scale)
        return wide if shape.cap is None else wide.div_(shape.cap).tanh_().mul_(shape.cap)

    def narrowed(self, wide: Tensor) -> Tensor:
        """Cast ``wide`` to the model's width."""
        return wide if self._narrow is self.wide else self._narrow[: len(wide)].copy_(wide)


class ScoringHead(nn.Module):
    """Output head of the model, in a module of its own so that ZeRO-3 gathers its weights around the call."""

    def __init__(self, weight: nn.Parameter, bias: nn.Parameter | None = None, shape: LogitShape | None = None) -> None:
        super().__init__()
        self.weight, self.bias = weight, bias
        self._shape = shape or LogitShape()

    def forward(self, hidden: Tensor, targets: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        """Compute [M] log-prob of ``targets`` and [M] entropy at the sampling temperature from hidden [M, H]."""
        chunk = chunk_tokens(len(self.weight), hidden.element_size(), on_gpu=hidden.device.type != "cpu")
        return _ChunkedScores.apply(hidden, self.weight, self.bias, targets, self._shape, temperature, chunk)
