"""The policy of TPO's token reversal (arXiv 2604.06159): a causal transformer of 100,000 parameters.

Legend: N sequences, T tokens, S tokens before them, D width, H heads, E width of a head, V vocabulary.

Their published code runs it in Flax. What is there and not in the paper is kept, since the optimiser sees shapes: it
orthogonalises what has two dimensions (embeddings, feed-forward, head, and the biases [E, H] of query, key and value)
and leaves the rest, the attention's matrices among it, to Adam. Matrices are [out, in], embeddings too.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Cache = list[tuple[Tensor, Tensor]]
"""for each layer keys and values [N, H, S, E]"""

TRUNCATED_STD = 0.87962566103423978
"""of a standard normal that ends at 2 and -2"""


@dataclass(frozen=True, slots=True)
class Shape:
    """The defaults are those of the code; the paper's text says 4 heads."""

    context: int
    """tokens at most, 2 H of the task"""
    vocabulary: int = 2
    width: int = 64
    heads: int = 2
    layers: int = 2
    feed_forward: int = 4
    """its width over ``width``"""


class Policy(nn.Module):
    """Pre-norm: LayerNorm, attention, LayerNorm, GELU (tanh) in each layer; LayerNorm and a head at the end."""

    def __init__(self, shape: Shape, generator: torch.Generator) -> None:
        super().__init__()
        width, inner = shape.width, shape.feed_forward * shape.width
        self.shape = shape
        self.tokens = _normal((width, shape.vocabulary), 1 / math.sqrt(width), generator)
        self.positions = _normal((width, shape.context), 0.02, generator)
        self.layers = nn.ModuleList(_Layer(width, inner, shape.heads, generator) for _ in range(shape.layers))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.head = _lecun((shape.vocabulary, width), width, generator)
        self.head_bias = nn.Parameter(torch.zeros(shape.vocabulary))

    def forward(self, tokens: Tensor, past: Cache | None = None) -> tuple[Tensor, Cache]:
        """[N, T] tokens after those of ``past`` -> [N, T, V] logits of the next ones, and keys and values of S + T."""
        start = past[0][0].shape[2] if past else 0
        length = tokens.shape[1]
        hidden = F.embedding(tokens, self.tokens.T) + self.positions.T[start : start + length]
        sees = torch.ones(length, start + length, dtype=torch.bool, device=tokens.device).tril(start)
        cache = []
        for number, layer in enumerate(self.layers):
            hidden, present = layer(hidden, past[number] if past else None, sees)
            cache.append(present)
        return F.linear(self.norm(hidden), self.head, self.head_bias), cache


class _Layer(nn.Module):
    def __init__(self, width: int, inner: int, heads: int, generator: torch.Generator) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.qkv = _lecun((3, width, width), width, generator)
        self.qkv_bias = nn.ParameterList(torch.zeros(width // heads, heads) for _ in range(3))
        self.out, self.out_bias = _lecun((1, width, width), width, generator), nn.Parameter(torch.zeros(width))
        self.up, self.up_bias = _lecun((inner, width), width, generator), nn.Parameter(torch.zeros(inner))
        self.down, self.down_bias = _lecun((width, inner), inner, generator), nn.Parameter(torch.zeros(width))

    def forward(
        self, hidden: Tensor, past: tuple[Tensor, Tensor] | None, sees: Tensor
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        rows, length, width = hidden.shape
        bias = torch.cat([bias.T.reshape(-1) for bias in self.qkv_bias])
        qkv = F.linear(self.norm1(hidden), self.qkv.reshape(3 * width, width), bias)
        query, key, value = qkv.view(rows, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        if past is not None:
            key, value = torch.cat([past[0], key], 2), torch.cat([past[1], value], 2)
        scores = (query @ key.transpose(-1, -2)) / math.sqrt(query.shape[-1])
        mixed = scores.masked_fill(~sees, -torch.inf).softmax(-1) @ value
        hidden = hidden + F.linear(mixed.transpose(1, 2).reshape(rows, length, width), self.out[0], self.out_bias)
        inner = F.gelu(F.linear(self.norm2(hidden), self.up, self.up_bias), approximate="tanh")
        return hidden + F.linear(inner, self.down, self.down_bias), (key, value)


def response_logprobs(policy: Policy, prompts: Tensor, owner: Tensor, responses: Tensor) -> Tensor:
    """[N, T] log-probs of ``responses`` [N, T], each after the prompt [S] at ``owner`` [N] of ``prompts`` [P, S].

    A prompt runs once, whatever the number of its responses.
    """
    logits, cache = policy(prompts)
    logits = logits[owner, -1:]
    if responses.shape[1] > 1:
        after = [(key[owner], value[owner]) for key, value in cache]
        logits = torch.cat([logits, policy(responses[:, :-1], after)[0]], 1)
    return logits.log_softmax(-1).gather(-1, responses[..., None])[..., 0]


def _normal(shape: tuple[int, ...], std: float, generator: torch.Generator) -> nn.Parameter:
    return nn.Parameter(torch.randn(shape, generator=generator) * std)


def _lecun(shape: tuple[int, ...], inputs: int, generator: torch.Generator) -> nn.Parameter:
    std = 1 / math.sqrt(inputs) / TRUNCATED_STD
    return nn.Parameter(nn.init.trunc_normal_(torch.empty(shape), 0, std, -2 * std, 2 * std, generator=generator))
