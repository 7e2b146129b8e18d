"""The transcript of a response, in tokens: where the turns of a conversation stand, and the calls of an agent.

A turn is sampled behind a context. It goes on from the longest segment whose tokens its context begins with, unless
another turn goes on from there at the moment; otherwise it opens a segment. So every sampled token is in exactly one
segment, as it was sampled, and a context elsewhere.
```
 segment 0  [prompt] turn 0 | tool | turn 1 | tool | turn 3
 segment 1  [prompt  turn 0   tool   turn 1   user] turn 2      a branch: beside turn 3, from the same place
 segment 2  [rewritten history] turn 4
```
A turn that fails leaves nothing. Segments of a response are in the order in which their last turns were sampled: the
last turn of the last segment is what the policy said in the end.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace

import numpy as np

from lpo_ray.records import (
    Conversation,
    ConversationId,
    IntArray,
    Prompt,
    PromptGroup,
    Response,
    Sampling,
    Segment,
    Turn,
    joined,
)
from lpo_ray.verdict import Verdict

BRANCHED = "another turn went on from the same place"


class _OpenSegment:
    """A segment that grows."""

    def __init__(self, context_ids: IntArray, began: str) -> None:
        self.context_ids, self.began = context_ids, began
        self.all_ids = context_ids
        """the context and what stands behind it"""
        self.turns: list[tuple[Turn, str]] = []
        """with who wrote what stands before each"""
        self.taken = False
        """a turn is being sampled behind it"""
        self.number = -1
        """of its last turn, in the order in which the response's turns were sampled"""
        self._sampled: list[np.ndarray] = []

    def add(self, number: int, context_ids: IntArray, turn: Turn, author: str) -> None:
        """Append a turn, behind what was written before it."""
        self.number = number
        between = len(context_ids) - len(self.all_ids)
        self._sampled += [np.zeros(between, dtype=np.bool_), np.ones(len(turn.token_ids), dtype=np.bool_)]
        self.all_ids = np.concatenate([context_ids, turn.token_ids])
        self.turns.append((turn, author))

    @property
    def num_moved(self) -> int:
        """Turns drawn by another engine than the turn before."""
        return sum(turn.engine != before.engine for (before, _), (turn, _) in itertools.pairwise(self.turns))

    def begins(self, context_ids: IntArray) -> bool:
        """Whether ``context_ids`` begins with its tokens."""
        size = len(self.all_ids)
        return size <= len(context_ids) and np.array_equal(self.all_ids, context_ids[:size])

    def closed(self, prompt_ids: IntArray) -> Segment:
        """Make the segment of a group whose prompt is ``prompt_ids``."""
        context = self.context_ids
        return Segment(
            self.all_ids[len(context) :],
            np.concatenate(self._sampled),
            None if np.array_equal(context, prompt_ids) else context,
            self.began,
        )


@dataclass(frozen=True, slots=True, eq=False)
class Place:
    """Place of a turn that is being sampled."""

    segment: _OpenSegment
    context_ids: IntArray
    """[C] all that stands before the turn"""
    engine: int | None
    """number of the one that drew the turn before it in its segment, or else the last one; None: none did"""


@dataclass(frozen=True, slots=True)
class Ending:
    """How a response ended. Fields as in ``Conversation``."""

    ended: str
    verdict: Verdict | None = None
    output: str | None = None
    environment_seconds: float = 0.0
    author: str = ""
    """who spoke behind the last turn; empty: nobody"""
    dropped: int = 0


class Transcript:
    """Transcript of one response."""

    def __init__(self) -> None:
        self._segments: list[_OpenSegment] = []
        self.last: Turn | None = None
        """turn that was sampled last; None: there is none"""

    @property
    def num_turns(self) -> int:
        """Turns so far."""
        return sum(len(segment.turns) for segment in self._segments)

    @property
    def first_context(self) -> IntArray:
        """Context that it began with, [C]. There must be a turn."""
        return next(segment.context_ids for segment in self._segments if segment.turns)

    def asked(self, context_ids: IntArray, began: str = "") -> Place:
        """Find the place of a turn behind ``context_ids``. It is taken until ``said`` or ``failed``.

        ``began``: why a segment begins here, if one does.
        """
        matching = [segment for segment in self._segments if segment.begins(context_ids)]
        free = [segment for segment in matching if not segment.taken]
        if free:
            segment = max(free, key=lambda segment: len(segment.all_ids))
        else:
            segment = _OpenSegment(context_ids, (began or BRANCHED) if self._segments else "")
            self._segments.append(segment)
        segment.taken = True
        before = segment.turns[-1][0] if segment.turns else self.last
        return Place(segment, context_ids, None if before is None else before.engine)

    def said(self, place: Place, turn: Turn, author: str = "") -> None:
        """Append the turn that was sampled at a place. ``author``: who wrote the message before it."""
        place.segment.add(self.num_turns, place.context_ids, turn, author)
        place.segment.taken = False
        self.last = turn

    def failed(self, place: Place) -> None:
        """Give up a place at which nothing was sampled."""
        place.segment.taken = False
        if not place.segment.turns:
            self._segments.remove(place.segment)

    def response(self, prompt_ids: IntArray, ending: Ending) -> Response:
        """Make the response of a group whose prompt is ``prompt_ids``. There must be a turn."""
        opened = [segment for segment in self._segments if segment.turns]
        opened[0].began = ""
        segments = sorted(opened, key=lambda segment: segment.number)
        turns = [turn for segment in segments for turn, _ in segment.turns]
        authors = [author for segment in segments for _, author in segment.turns][1:]
        conversation = Conversation(
            tuple(segment.closed(prompt_ids) for segment in segments),
            tuple(len(turn.token_ids) for turn in turns),
            (*authors, *([ending.author] if ending.author else [])),
            ending.verdict,
            ending.ended,
            ending.environment_seconds,
            sum(segment.num_moved for segment in segments),
            sum(turn.redrawn for turn in turns),
            ending.dropped,
            ending.output,
        )
        return Response(
            joined([turn.token_ids for turn in turns]),
            joined([turn.behaviour_logprobs for turn in turns]),
            joined([turn.versions for turn in turns]),
            "stop" if ending.ended == "done" else "length",
            conversation,
        )


Conduct = Callable[[ConversationId], Awaitable[tuple[Transcript, Ending]]]


async def side_by_side(prompt: Prompt, sampling: Sampling, attempt: int, conduct: Conduct) -> PromptGroup:
    """Conduct the K conversations of a group. The group's prompt is the context that the first one began with.

    When one fails the others are cancelled, and all have ended when this returns.
    """
    names = [ConversationId(prompt.prompt_id, attempt, k) for k in range(sampling.group_size)]
    tasks = [asyncio.ensure_future(conduct(name)) for name in names]
    try:
        found = await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
    first = found[0][0].first_context
    if not np.array_equal(first, prompt.token_ids):
        prompt = replace(prompt, token_ids=first)
    responses = tuple(transcript.response(first, ending) for transcript, ending in found)
    return PromptGroup(prompt, attempt, responses)
