"""Micro-batches and updates: how the groups of a step are laid out over forwards and ranks. Made by packing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic

from lpo_ray.records.groups import G, TargetGroup


@dataclass(frozen=True, slots=True, eq=False)
class Piece(Generic[G]):
    """Responses of one group that stand in one micro-batch: all of them, or some of a group that was split."""

    item: G
    responses: tuple[int, ...]
    """their indices in the group, ascending"""

    @property
    def is_whole(self) -> bool:
        """Whether all responses of the group are here."""
        return len(self.responses) == len(self.item.group.responses)


@dataclass(frozen=True, slots=True, eq=False)
class MicroBatch(Generic[G]):
    """Pieces of one forward. May be empty: every rank runs the same number of forwards."""

    pieces: tuple[Piece[G], ...]

    @property
    def is_split(self) -> bool:
        """Whether a group here has responses elsewhere."""
        return not all(piece.is_whole for piece in self.pieces)


@dataclass(frozen=True, slots=True, eq=False)
class Update:
    """One optimiser update: micro-batches per rank and the denominators of the whole update."""

    shares: tuple[tuple[MicroBatch[TargetGroup], ...], ...]
    """[rank][i]; every rank has the same number"""
    num_prompts: int
    """over all ranks and micro-batches: the loss is divided by this, never by a local count"""
    num_tokens: int
    """response tokens over all ranks and micro-batches"""
    tokens_by_rank: tuple[int, ...]
    """tokens of the forwards of each rank"""

    @property
    def imbalance(self) -> float:
        """Share of the ranks' time that is spent waiting for the rank with the most tokens, if all are as fast."""
        return 1.0 - sum(self.tokens_by_rank) / (len(self.tokens_by_rank) * max(self.tokens_by_rank))


@dataclass(frozen=True, slots=True, eq=False)
class TrainBatch:
    """All updates of one step. Made by packing, read by the learner."""

    step: int
    updates: tuple[Update, ...]
    learning_rate: float
