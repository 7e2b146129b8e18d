"""Micro-batches and updates: the groups of a step over forwards and ranks. Made by packing, read by the learner."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Generic

from lpo_ray.records.arrays import FloatArray
from lpo_ray.records.groups import G, Key, TargetGroup


@dataclass(frozen=True, slots=True, eq=False)
class Piece(Generic[G]):
    """Responses of one group in one micro-batch: all of them, or some of a group that was split."""

    item: G
    responses: tuple[int, ...]
    """their indices in the group, ascending"""

    @property
    def is_whole(self) -> bool:
        """Whether the piece has all responses of its group."""
        return len(self.responses) == len(self.item.group.responses)


@dataclass(frozen=True, slots=True, eq=False)
class MicroBatch(Generic[G]):
    """Pieces of one forward. It may be empty: every rank runs the same number of forwards."""

    pieces: tuple[Piece[G], ...]

    @property
    def is_split(self) -> bool:
        """Whether a group of this micro-batch has responses in another one."""
        return not all(piece.is_whole for piece in self.pieces)


def for_one_rank(share: Sequence[MicroBatch[G]]) -> tuple[MicroBatch[G], ...]:
    """Return a rank's share as it travels there: of a group that is split it holds no response of another rank."""
    pieces = [piece for micro_batch in share for piece in micro_batch.pieces]
    held: dict[Key, set[int]] = {}
    for piece in pieces:
        held.setdefault(piece.item.group.key, set()).update(piece.responses)
    whole = {piece.item.group.key: piece.item for piece in pieces}
    items = {key: item.for_learner(held[key]) for key, item in whole.items()}
    return tuple(
        MicroBatch(tuple(Piece(items[piece.item.group.key], piece.responses) for piece in micro_batch.pieces))
        for micro_batch in share
    )


@dataclass(frozen=True, slots=True, eq=False)
class Update:
    """One optimiser update: micro-batches per rank and the denominators of the whole update."""

    shares: tuple[tuple[MicroBatch[TargetGroup], ...], ...]
    """[rank][i]; every rank has the same number. In the copy that travels to a rank the others' are empty"""
    split: Mapping[Key, FloatArray]
    """groups with responses in several micro-batches, of any rank -> s_t of their anchor [K]"""
    split_passes: int
    """micro-batches with a part of a group, of the rank that has the most"""
    num_prompts: int
    """over all ranks and micro-batches: the loss is divided by this, never by a local count"""
    num_tokens: int
    """sampled tokens over all ranks and micro-batches"""
    tokens_by_rank: tuple[int, ...]
    """positions of the forwards of each rank"""

    def for_rank(self, rank: int) -> Update:
        """Return what ``rank`` needs of it."""
        mine = for_one_rank(self.shares[rank])
        shares = tuple(mine if number == rank else () for number in range(len(self.shares)))
        return replace(self, shares=shares)

    @property
    def imbalance(self) -> float:
        """Share of the ranks' time spent waiting for the rank with the most tokens, if all are equally fast."""
        return 1.0 - sum(self.tokens_by_rank) / (len(self.tokens_by_rank) * max(self.tokens_by_rank))


@dataclass(frozen=True, slots=True, eq=False)
class TrainBatch:
    """All updates of one step."""

    step: int
    updates: tuple[Update, ...]
    learning_rate: float

    def for_rank(self, rank: int) -> TrainBatch:
        """Return what ``rank`` needs of it."""
        return replace(self, updates=tuple(update.for_rank(rank) for update in self.updates))
