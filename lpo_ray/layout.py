"""Where each token of a micro-batch stands in one forward: packed without padding, or padded rows.

Legend: N responses, T positions of the forward, M response tokens, R rows of attention, L their width.

Packed, the forward is one row of all tokens, each with its own position id; only attention sees sequences, as padded
rows of indices into it (``AttentionRows``), so that no linear layer ever works on a pad. With a shared prompt the K
responses of a group stand behind one copy of it. Padded is for models whose attention cannot be replaced.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lpo_ray.records import IntArray

Bundle = tuple[IntArray, Sequence[IntArray]]
"""a prompt and some of its responses"""
BUCKET_SHRINK = 0.8
"""rows of attention below this share of the widest open a narrower bucket"""


@dataclass(frozen=True, slots=True)
class AttentionRows:
    """Sequences of a packed forward, right-padded into buckets of similar length. Causal attention needs no mask then:
    a token never looks to its right, where the pads are.
    """

    index: Tensor
    """[sum R L] packed position of each row's token, bucket after bucket; pads repeat position 0"""
    shapes: tuple[tuple[int, int], ...]
    """(R, L) of each bucket"""
    owner: Tensor
    """[T] the entry of ``index`` whose attention output is the packed token's own"""
    copies: Tensor
    """entries of ``index`` that are further copies of a shared prompt's tokens"""
    copied: Tensor
    """their packed positions"""
    in_place: bool
    """the packed tokens are the rows as they stand: sequences of one length, nothing shared"""
    bounds: Tensor
    """[N + 1] int32, where each sequence begins and the last ends, when nothing is shared; else empty"""
    longest: int
    """tokens of the longest sequence"""

    def to(self, device: torch.device) -> AttentionRows:
        """On ``device``."""
        tensors = (self.index, self.owner, self.copies, self.copied, self.bounds)
        index, owner, copies, copied, bounds = (tensor.to(device) for tensor in tensors)
        return AttentionRows(index, self.shapes, owner, copies, copied, self.in_place, bounds, self.longest)


@dataclass(frozen=True, slots=True)
class Layout:
    """One forward over N responses."""

    token_ids: Tensor
    """[B, T]; B = 1 when packed"""
    position_ids: Tensor
    """[B, T]"""
    attention_mask: Tensor | None
    """[B, T] when padded"""
    rows: AttentionRows | None
    """when packed"""
    select: Tensor
    """[M] position, in the flattened forward, whose output predicts the response token"""
    targets: Tensor
    """[M] the response token"""
    lengths: tuple[int, ...]
    """[N] tokens of each response; their sum is M"""

    @property
    def padding(self) -> float:
        """Share of the forward's positions that hold no token."""
        if self.attention_mask is None:
            return 0.0
        return 1.0 - float(self.attention_mask.sum()) / self.attention_mask.numel()


def lay_out(bundles: Sequence[Bundle], *, packed: bool, share_prompt: bool) -> Layout:
    """Lay out all responses of ``bundles`` in order. No bundle at all gives a forward over one token and no response.

    ``share_prompt`` needs ``packed``.
    """
    if share_prompt and not packed:
        raise ValueError("share_prompt=True with packed=False; one copy of a prompt needs the packed layout")
    if not bundles:
        bundles = [(np.zeros(1, dtype=np.int64), ())]
    return _packed(bundles, share_prompt) if packed else _padded(bundles)


def _padded(bundles: Sequence[Bundle]) -> Layout:
    sequences = [np.concatenate([prompt, r]) for prompt, responses in bundles for r in responses] or [bundles[0][0]]
    starts = [len(prompt) for prompt, responses in bundles for _ in responses]
    width = max(len(sequence) for sequence in sequences)
    token_ids = np.zeros((len(sequences), width), dtype=np.int64)
    mask = np.zeros_like(token_ids)
    for row, sequence in enumerate(sequences):
        token_ids[row, : len(sequence)] = sequence
        mask[row, : len(sequence)] = 1
    select = [row * width + np.arange(at - 1, len(sequences[row]) - 1) for row, at in enumerate(starts)]
    return Layout(
        token_ids=torch.from_numpy(token_ids),
        position_ids=torch.arange(width).expand(len(sequences), width),
        attention_mask=torch.from_numpy(mask),
        rows=None,
        select=_joined(select),
        targets=_joined([r for _, responses in bundles for r in responses]),
        lengths=tuple(len(r) for _, responses in bundles for r in responses),
    )


def _packed(bundles: Sequence[Bundle], share_prompt: bool) -> Layout:
    tokens: list[IntArray] = []
    positions: list[IntArray] = []
    select: list[IntArray] = []
    rows: list[IntArray] = []
    end = 0

    def append(part: IntArray, first_position: int) -> IntArray:
        nonlocal end
        tokens.append(part)
        positions.append(np.arange(first_position, first_position + len(part)))
        end += len(part)
        return np.arange(end - len(part), end)

    for prompt, responses in bundles:
        at_prompt = append(prompt, 0) if share_prompt or not responses else None
        for response in responses:
            before = append(prompt, 0) if at_prompt is None else at_prompt
            own = append(response, len(prompt))
            rows.append(np.concatenate([before, own]))
            select.append(np.concatenate([before[-1:], own[:-1]]))
        if not responses:
            assert at_prompt is not None
            rows.append(at_prompt)
    return Layout(
        token_ids=_joined(tokens)[None],
        position_ids=_joined(positions)[None],
        attention_mask=None,
        rows=_attention_rows(rows, end),
        select=_joined(select),
        targets=_joined([r for _, responses in bundles for r in responses]),
        lengths=tuple(len(r) for _, responses in bundles for r in responses),
    )


def _attention_rows(rows: Sequence[IntArray], num_tokens: int) -> AttentionRows:
    """Rows of packed positions, widest first, cut into buckets."""
    ordered = sorted(rows, key=len, reverse=True)
    buckets: list[list[IntArray]] = []
    for row in ordered:
        if not buckets or len(row) < BUCKET_SHRINK * len(buckets[-1][0]):
            buckets.append([])
        buckets[-1].append(row)
    parts: list[IntArray] = []
    for bucket in buckets:
        padded = np.full((len(bucket), len(bucket[0])), -1, dtype=np.int64)
        for number, row in enumerate(bucket):
            padded[number, : len(row)] = row
        parts.append(padded.reshape(-1))
    entries = np.concatenate(parts)
    real = np.flatnonzero(entries >= 0)
    _, first = np.unique(entries[real], return_index=True)
    owner = real[first]
    assert len(owner) == num_tokens, "a packed token stands in no row of attention"
    copies = np.setdiff1d(real, owner)
    return AttentionRows(
        index=torch.from_numpy(np.maximum(entries, 0)),
        shapes=tuple((len(bucket), len(bucket[0])) for bucket in buckets),
        owner=torch.from_numpy(owner),
        copies=torch.from_numpy(copies),
        copied=torch.from_numpy(entries[copies]),
        in_place=np.array_equal(entries, np.arange(num_tokens)),
        bounds=torch.tensor([] if len(copies) else np.cumsum([0, *map(len, rows)]), dtype=torch.int32),
        longest=len(ordered[0]),
    )


def _joined(parts: Sequence[IntArray]) -> Tensor:
    return torch.from_numpy(np.concatenate(parts)) if parts else torch.zeros(0, dtype=torch.long)
