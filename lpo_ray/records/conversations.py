"""Conversations: where the sampled tokens of a response of several turns stand, and how it went.

Made by the conductor of conversations and by environments. Shapes: S tokens of a segment, C of its context, T sampled
tokens of the response.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import astuple, dataclass, replace
from typing import Any, NamedTuple, cast

import numpy as np

from lpo_ray.records.arrays import BoolArray, IntArray, check_lengths, joined, run_starts
from lpo_ray.verdict import Lack, Verdict

NO_TOKENS = np.zeros(0, dtype=np.int64)


@dataclass(frozen=True, slots=True, eq=False)
class Segment:
    """Tokens behind one context: those that the policy sampled, and between them those that an environment wrote.

    A conversation that only grows is one segment. Another begins where its history was rewritten, as by a chat template
    that drops what was thought in earlier turns.
    """

    token_ids: IntArray
    """[S] all tokens behind the context; the last one was sampled"""
    sampled: BoolArray
    """[S] whether the policy sampled it; what it did not conditions, and is in no loss, norm, clip or mean"""
    context_ids: IntArray | None = None
    """[C] tokens that stand before; None: the group's prompt"""
    began: str = ""
    """why it began; empty for the one with which a response began"""

    def __post_init__(self) -> None:
        check_lengths("segment", len(self.token_ids), sampled=len(self.sampled))
        if self.sampled.dtype != np.bool_:
            raise ValueError(f"a segment's sampled is of dtype {self.sampled.dtype}, expected bool")
        if not len(self.sampled) or not self.sampled[-1]:
            raise ValueError(f"a segment of {len(self.sampled)} tokens ends with one that was not sampled")
        if self.context_ids is not None and not len(self.context_ids):
            raise ValueError("a segment's context has no tokens; expected some, or None for the group's prompt")

    @classmethod
    def answer(cls, token_ids: IntArray) -> Segment:
        """Make the segment of a single answer: it stands behind the prompt, and all of it was sampled."""
        return cls(token_ids, np.ones(len(token_ids), dtype=np.bool_))

    @property
    def num_sampled(self) -> int:
        """Tokens that the policy sampled."""
        return int(np.count_nonzero(self.sampled))

    def standing(self, prompt: IntArray) -> tuple[bool, IntArray]:
        """Say whether it stands behind ``prompt``, and with which tokens of its own before it."""
        if self.context_ids is None:
            return True, NO_TOKENS
        size = len(prompt)
        begins = len(self.context_ids) >= size and np.array_equal(self.context_ids[:size], prompt)
        return begins, self.context_ids[size:] if begins else self.context_ids


@dataclass(frozen=True, slots=True, eq=False)
class Conversation:
    """Record of the turns of a response beside its sampled tokens: where they stand, and how it went."""

    segments: tuple[Segment, ...]
    """in order, as their last turns were sampled; the sampled tokens of all are the response's"""
    turns: tuple[int, ...]
    """sampled tokens of each turn; their sum is T"""
    authors: tuple[str, ...] = ()
    """role of whoever wrote behind each turn: "tool", "user"; one fewer than turns, or as many when it spoke last"""
    verdict: Verdict | None = None
    """of the environment; None: a verifier scores the response"""
    ended: str = "done"
    """why it ended: "done" by environment or agent, "turns", "tokens" (limits), "length" (of one turn)"""
    environment_seconds: float = 0.0
    """time that environment and tools took, or the agent's program, without waiting"""
    moved: int = 0
    """turns drawn by another engine than the turn before, which had the conversation's prefix"""
    redrawn: int = 0
    """draws of turns that were lost with their engine, and made again"""
    dropped: int = 0
    """tokens of earlier turns in the last context that the chat template would have left out"""
    output: str | None = None
    """of an agent's program: what a verifier reads; None: the last turn"""

    def __post_init__(self) -> None:
        sampled = sum(segment.num_sampled for segment in self.segments)
        if sampled != sum(self.turns) or not self.turns or min(self.turns) < 1:
            raise ValueError(f"turns of {self.turns} tokens, but the segments have {sampled} that were sampled")
        if self.authors and len(self.authors) not in (len(self.turns) - 1, len(self.turns)):
            raise ValueError(
                f"{len(self.authors)} authors behind {len(self.turns)} turns; expected one fewer, or one each"
            )

    @property
    def token_ids(self) -> IntArray:
        """[T] tokens that were sampled, of all segments."""
        return np.concatenate([segment.token_ids[segment.sampled] for segment in self.segments])

    @property
    def environment_tokens(self) -> int:
        """Tokens that the environment wrote between those that were sampled."""
        return sum(len(segment.sampled) - segment.num_sampled for segment in self.segments)

    @property
    def context_tokens(self) -> int:
        """Tokens of contexts that are no prompt: histories that were rewritten."""
        return sum(len(segment.context_ids) for segment in self.segments if segment.context_ids is not None)

    @property
    def num_bytes(self) -> int:
        """Bytes held by its arrays."""
        arrays = [
            array for s in self.segments for array in (s.token_ids, s.sampled, s.context_ids) if array is not None
        ]
        return sum(array.nbytes for array in arrays)

    def for_learner(self) -> Conversation:
        """Return what a learner needs to score it."""
        return Conversation(tuple(replace(segment, began="") for segment in self.segments), self.turns)


class SegmentShape(NamedTuple):
    """A segment without its tokens, as plain values."""

    context: int | None
    """tokens of its context; None: the prompt"""
    runs: tuple[int, ...]
    """tokens in a row that were not sampled, then that were, and so on; the first may be 0"""
    began: str


class ConversationShape(NamedTuple):
    """A conversation without its tokens, as plain values. Fields as in ``Conversation``."""

    segments: tuple[SegmentShape, ...]
    turns: tuple[int, ...]
    authors: tuple[str, ...]
    verdict: tuple[float | None, str, Lack | None] | None
    ended: str
    environment_seconds: float
    moved: int = 0
    redrawn: int = 0
    dropped: int = 0
    output: str | None = None

    @classmethod
    def of_plain(cls, plain: Sequence[Any]) -> ConversationShape:
        """Make it from what JSON made of one; those of earlier versions are shorter."""
        segments, turns, authors, verdict, ended, *rest = plain
        shapes = tuple(SegmentShape(context, tuple(runs), began) for context, runs, began in segments)
        return cls(shapes, tuple(turns), tuple(authors), verdict and (*verdict,), ended, *rest)


def take_apart(conversation: Conversation) -> tuple[ConversationShape, list[IntArray]]:
    """Return the conversation without its tokens, and those of its tokens that were not sampled: of each segment the
    context, if it has one of its own, and what stands between the sampled ones.
    """
    shapes: list[SegmentShape] = []
    others: list[IntArray] = []
    for segment in conversation.segments:
        starts = run_starts(segment.sampled)
        runs = [end - start for start, end in itertools.pairwise([*starts, len(segment.sampled)])]
        context = segment.context_ids
        shapes.append(SegmentShape(
            None if context is None else len(context), (*((0,) if segment.sampled[0] else ()), *runs), segment.began
        ))  # fmt: skip
        others += [*([] if context is None else [context]), segment.token_ids[~segment.sampled]]
    verdict = None if conversation.verdict is None else astuple(conversation.verdict)
    shape = ConversationShape(
        tuple(shapes), conversation.turns, conversation.authors, cast("Any", verdict), conversation.ended,
        conversation.environment_seconds, conversation.moved, conversation.redrawn, conversation.dropped,
        conversation.output,
    )  # fmt: skip
    return shape, others


def put_together(shape: ConversationShape, sampled: IntArray, others: IntArray) -> tuple[Conversation, int]:
    """Make the conversation that ``take_apart`` was given, from the tokens that were ``sampled`` and from ``others``,
    which begin with its own. Returns how many of those are its own, too.
    """
    segments: list[Segment] = []
    used = at = 0
    for context, runs, began in shape.segments:
        context_ids = None if context is None else others[used : used + context]
        used += context or 0
        mask = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
        token_ids = np.empty(len(mask), dtype=np.int64)
        of_policy = int(np.count_nonzero(mask))
        token_ids[mask] = sampled[at : at + of_policy]
        token_ids[~mask] = others[used : used + len(mask) - of_policy]
        at += of_policy
        used += len(mask) - of_policy
        segments.append(Segment(token_ids, mask, context_ids, began))
    verdict = None if shape.verdict is None else Verdict(*shape.verdict)
    made = Conversation(tuple(segments), shape.turns, shape.authors, verdict, *shape[4:])
    return made, used


class ConversationColumns(NamedTuple):
    """Conversations of a group, apart from the tokens that were sampled."""

    shapes: tuple[ConversationShape | None, ...]
    """[K]; None: that response is a single answer"""
    others: IntArray
    """tokens that were not sampled, of all conversations end to end"""

    @classmethod
    def of(cls, conversations: Sequence[Conversation | None]) -> ConversationColumns | None:
        """Make the columns of [K] conversations. None: there is none."""
        if all(conversation is None for conversation in conversations):
            return None
        parts = [None if conversation is None else take_apart(conversation) for conversation in conversations]
        others = [array for part in parts if part is not None for array in part[1]]
        return cls(tuple(part and part[0] for part in parts), joined(others))

    def conversations(self, sampled: Sequence[IntArray]) -> list[Conversation | None]:
        """Make the conversations; ``sampled``: [K] sampled tokens of each response."""
        found: list[Conversation | None] = []
        at = 0
        for shape, token_ids in zip(self.shapes, sampled, strict=True):
            conversation, used = (None, 0) if shape is None else put_together(shape, token_ids, self.others[at:])
            found.append(conversation)
            at += used
        return found
