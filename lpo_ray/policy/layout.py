"""Layout: where each token of a micro-batch stands in one forward, packed without padding or in padded rows.

Legend: N responses, T positions of the forward, M sampled tokens, R rows of attention, L their width.

A sequence is a segment of a response with what stands before it: all turns of a conversation that only grows, or a
single answer. Tokens that were not sampled have a place in the forward and are never selected from it.

Packed, the forward is one row of all tokens, each with its own position id. Only attention sees sequences, as padded
rows of indices into it (``AttentionRows``), so no linear layer works on a pad. With a shared prompt the segments of a
group stand behind one copy of it, which attends to itself once. A further segment is a row of its own queries, whose
keys are the prompt's and its own. Padded is for models whose attention cannot be replaced.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lpo_ray.records import IntArray, ScoringItem, Segment

BUCKET_SHRINK = 0.8
"""rows of attention below this share of the widest open a narrower bucket"""
MASKED_QUERIES = 512
"""most queries of a row that attends to a shared prompt through a mask, which has a byte for each query and key. A
longer segment has a row of prompt and segment, whose causal attention needs no mask
"""
NOWHERE = np.zeros(0, dtype=np.int64)


@dataclass(frozen=True, slots=True)
class Gather:
    """Indices that take packed tokens into padded rows, and the rows' gradients back."""

    index: Tensor
    """[S] packed position of each entry, row after row and bucket after bucket; pads repeat position 0"""
    owner: Tensor
    """[T] the entry that is the packed token's own"""
    copies: Tensor
    """entries that are further copies of a token"""
    copied: Tensor
    """packed positions of ``copies``"""

    def to(self, device: torch.device) -> Gather:
        """Move all tensors to ``device``."""
        return Gather(*(tensor.to(device) for tensor in (self.index, self.owner, self.copies, self.copied)))


@dataclass(frozen=True, slots=True)
class AttentionBucket:
    """Rows of similar size, attended together."""

    rows: int
    queries: int
    keys: int
    mask: Tensor | None
    """[R, 1, queries, keys], true where a query attends to a key. None: queries are the keys, right-padded, and causal
    attention needs no mask: a token never attends to its right, where the pads are
    """

    def to(self, device: torch.device) -> AttentionBucket:
        """Move all tensors to ``device``."""
        return AttentionBucket(self.rows, self.queries, self.keys, None if self.mask is None else self.mask.to(device))


@dataclass(frozen=True, slots=True)
class AttentionRows:
    """Rows of queries and of keys of a packed forward, in buckets: which token attends to which."""

    queries: Gather
    keys: Gather
    """the same object as ``queries`` where no row is masked"""
    buckets: tuple[AttentionBucket, ...]
    in_place: bool
    """the packed tokens are the rows as they stand: sequences of one length, nothing shared"""
    bounds: Tensor
    """[N + 1] int32, where each sequence begins and the last ends, when nothing is shared; else empty"""
    longest: int
    """tokens of the longest sequence"""

    def to(self, device: torch.device) -> AttentionRows:
        """Move all tensors to ``device``."""
        queries = self.queries.to(device)
        keys = queries if self.keys is self.queries else self.keys.to(device)
        buckets = tuple(bucket.to(device) for bucket in self.buckets)
        return AttentionRows(queries, keys, buckets, self.in_place, self.bounds.to(device), self.longest)


@dataclass(frozen=True, slots=True)
class Layout:
    """Layout of one forward over N responses."""

    token_ids: Tensor
    """[B, T]; B = 1 when packed"""
    position_ids: Tensor
    """[B, T]"""
    attention_mask: Tensor | None
    """[B, T] when padded"""
    rows: AttentionRows | None
    """when packed"""
    select: Tensor
    """[M] position, in the flattened forward, whose output predicts the sampled token"""
    targets: Tensor
    """[M] the sampled token"""
    lengths: tuple[int, ...]
    """[N] sampled tokens of each response; their sum is M"""

    @property
    def padding(self) -> float:
        """Share of the forward's positions that hold no token."""
        if self.attention_mask is None:
            return 0.0
        return 1.0 - float(self.attention_mask.sum()) / self.attention_mask.numel()


def lay_out(bundles: Sequence[ScoringItem], *, packed: bool, share_prompt: bool) -> Layout:
    """Lay out all responses of ``bundles`` in order. No bundle gives a forward over one token and no response.

    ``share_prompt`` needs ``packed``.
    """
    if share_prompt and not packed:
        raise ValueError("share_prompt=True with packed=False; one copy of a prompt needs the packed layout")
    if not bundles:
        bundles = [(np.zeros(1, dtype=np.int64), ())]
    return _packed(bundles, share_prompt) if packed else _padded(bundles)


def _padded(bundles: Sequence[ScoringItem]) -> Layout:
    sequences: list[IntArray] = []
    sampled: list[IntArray] = []
    for prompt, segment in _segments(bundles):
        context = prompt if segment.context_ids is None else segment.context_ids
        sequences.append(np.concatenate([context, segment.token_ids]))
        sampled.append(len(context) + segment.sampled.nonzero()[0])
    sequences = sequences or [bundles[0][0]]
    width = max(len(sequence) for sequence in sequences)
    token_ids = np.zeros((len(sequences), width), dtype=np.int64)
    mask = np.zeros_like(token_ids)
    for row, sequence in enumerate(sequences):
        token_ids[row, : len(sequence)] = sequence
        mask[row, : len(sequence)] = 1
    return Layout(
        token_ids=torch.from_numpy(token_ids),
        position_ids=torch.arange(width).expand(len(sequences), width),
        attention_mask=torch.from_numpy(mask),
        rows=None,
        select=_joined([row * width + at - 1 for row, at in enumerate(sampled)]),
        targets=_targets(bundles),
        lengths=_lengths(bundles),
    )


def _packed(bundles: Sequence[ScoringItem], share_prompt: bool) -> Layout:
    tokens: list[IntArray] = []
    positions: list[IntArray] = []
    select: list[IntArray] = []
    rows: list[_Row] = []
    end = 0

    def append(part: IntArray, first_position: int) -> IntArray:
        nonlocal end
        tokens.append(part)
        positions.append(np.arange(first_position, first_position + len(part)))
        end += len(part)
        return np.arange(end - len(part), end)

    for prompt, responses in bundles:
        shared: IntArray | None = None
        for segment in (segment for segments in responses for segment in segments):
            behind, context = segment.standing(prompt)
            further = behind and shared is not None
            before = NOWHERE
            if behind:
                before = append(prompt, 0) if shared is None else shared
                shared = before if share_prompt else None
            behind_it = np.concatenate([context, segment.token_ids]) if len(context) else segment.token_ids
            own = append(behind_it, len(before))
            masked = further and len(own) < len(prompt) and len(own) <= MASKED_QUERIES
            keys = np.concatenate([before, own])
            rows.append(_Row(keys, len(own) if masked else None))
            select.append(keys[len(keys) - len(segment.sampled) - 1 + segment.sampled.nonzero()[0]])
        if not responses:
            rows.append(_Row(append(prompt, 0), None))
    return Layout(
        token_ids=_joined(tokens)[None],
        position_ids=_joined(positions)[None],
        attention_mask=None,
        rows=_attention_rows(rows, end),
        select=_joined(select),
        targets=_targets(bundles),
        lengths=_lengths(bundles),
    )


def _segments(bundles: Sequence[ScoringItem]) -> Iterator[tuple[IntArray, Segment]]:
    """Each segment with its prompt, in order."""
    return ((prompt, segment) for prompt, responses in bundles for segments in responses for segment in segments)


def _targets(bundles: Sequence[ScoringItem]) -> Tensor:
    return _joined([segment.token_ids[segment.sampled] for _, segment in _segments(bundles)])


def _lengths(bundles: Sequence[ScoringItem]) -> tuple[int, ...]:
    return tuple(sum(segment.num_sampled for segment in segments) for _, responses in bundles for segments in responses)


@dataclass(frozen=True, slots=True)
class _Row:
    """Row of attention: the packed positions of one sequence."""

    keys: IntArray
    masked: int | None
    """how many of the last keys are queries behind a mask; None: all are queries, without a mask"""

    @property
    def kind(self) -> int:
        """Kind of the row; a bucket has one: numbers of masked queries between two powers of two."""
        return 0 if self.masked is None else self.masked.bit_length()


def _attention_rows(rows: Sequence[_Row], num_tokens: int) -> AttentionRows:
    """Cut rows into buckets, the widest of a kind first."""
    ordered = sorted(rows, key=lambda row: (row.kind, -len(row.keys)))
    grouped: list[list[_Row]] = []
    for row in ordered:
        of = grouped[-1][0] if grouped else None
        if of is None or row.kind != of.kind or len(row.keys) < BUCKET_SHRINK * len(of.keys):
            grouped.append([])
        grouped[-1].append(row)
    buckets = [_masked_bucket(bucket) if bucket[0].kind else _causal_bucket(bucket) for bucket in grouped]
    queries = _gather([entries for _, entries, _ in buckets], num_tokens)
    masked = any(bucket.mask is not None for bucket, _, _ in buckets)
    keys = _gather([entries for _, _, entries in buckets], num_tokens) if masked else queries
    shared = masked or len(queries.copies) > 0
    return AttentionRows(
        queries=queries,
        keys=keys,
        buckets=tuple(bucket for bucket, _, _ in buckets),
        in_place=not masked and np.array_equal(queries.index.numpy(), np.arange(num_tokens)),
        bounds=torch.tensor([] if shared else np.cumsum([0, *(len(row.keys) for row in rows)]), dtype=torch.int32),
        longest=max(len(row.keys) for row in rows),
    )


def _causal_bucket(rows: Sequence[_Row]) -> tuple[AttentionBucket, IntArray, IntArray]:
    """Make the bucket and its queries and keys, which are the same, right-padded with -1."""
    width = len(rows[0].keys)
    entries = np.full((len(rows), width), -1, dtype=np.int64)
    for number, row in enumerate(rows):
        entries[number, : len(row.keys)] = row.keys
    return AttentionBucket(len(rows), width, width, None), entries.reshape(-1), entries.reshape(-1)


def _masked_bucket(rows: Sequence[_Row]) -> tuple[AttentionBucket, IntArray, IntArray]:
    """Make the bucket and its queries and keys, left-padded with -1: every row's last query stands at its last key.

    Every query sees a key, even a pad's query: a row of nothing but -inf would be NaN. For a row has more keys than
    twice its queries, which are at least half of the bucket's.
    """
    num_queries, num_keys = max(row.masked or 0 for row in rows), len(rows[0].keys)
    queries = np.full((len(rows), num_queries), -1, dtype=np.int64)
    keys = np.full((len(rows), num_keys), -1, dtype=np.int64)
    for number, row in enumerate(rows):
        assert row.masked is not None
        queries[number, num_queries - row.masked :] = row.keys[len(row.keys) - row.masked :]
        keys[number, num_keys - len(row.keys) :] = row.keys
    causal = torch.ones(num_queries, num_keys, dtype=torch.bool).tril(num_keys - num_queries)
    mask = causal & torch.from_numpy(keys >= 0)[:, None, None, :]
    return AttentionBucket(len(rows), num_queries, num_keys, mask), queries.reshape(-1), keys.reshape(-1)


def _gather(parts: Sequence[IntArray], num_tokens: int) -> Gather:
    """Make the indices from entries that are packed positions, or -1 for a pad."""
    entries = np.concatenate(parts)
    real = np.flatnonzero(entries >= 0)
    _, first = np.unique(entries[real], return_index=True)
    owner = real[first]
    assert len(owner) == num_tokens, "a packed token stands in no row of attention"
    copies = np.setdiff1d(real, owner)
    tensors = (np.maximum(entries, 0), owner, copies, entries[copies])
    return Gather(*(torch.from_numpy(array) for array in tensors))


def _joined(parts: Sequence[IntArray]) -> Tensor:
    return torch.from_numpy(np.concatenate(parts)) if parts else torch.zeros(0, dtype=torch.long)
