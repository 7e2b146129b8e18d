"""Conversations as responses: the K of a group side by side, turn by turn, between engine and environment.

```
 open ──▶ context ──▶ engine: turn ──▶ environment: reply ──┬─ more ──▶ context, a segment goes on or begins
              ▲                                             │
              └─────────────────────────────────────────────┤
                                                            └─ done, or a limit ──▶ end ──▶ Response
```
What the engine sampled is kept as its ids and never tokenised again: the next context is context + turn + what the
environment wrote. A group is complete, or lost as a whole with the reason of its first conversation that was; every
environment that was opened is told its end, whatever happens.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from typing_extensions import override

from lpo_ray.errors import Unscored
from lpo_ray.interfaces import Environments, RolloutEngine, TurnEngine
from lpo_ray.records import (
    Conversation,
    ConversationId,
    IntArray,
    Observation,
    Prompt,
    PromptGroup,
    Response,
    Sampling,
    Segment,
    Turn,
    TurnRequest,
    joined,
)


class ConversationRollout(RolloutEngine):
    """RolloutEngine whose responses are conversations."""

    def __init__(self, engine: TurnEngine, environments: Environments, most_tokens: int) -> None:
        """``most_tokens``: of context and turn together that an engine has room for."""
        self._engine, self._environments, self._most_tokens = engine, environments, most_tokens

    @override
    async def sample(self, prompt: Prompt, sampling: Sampling, attempt: int) -> PromptGroup:
        """Conduct ``sampling.group_size`` conversations. Their prompt is the context that the first one began with."""
        names = [ConversationId(prompt.prompt_id, attempt, k) for k in range(sampling.group_size)]
        tasks = [asyncio.ensure_future(self._conducted(name, prompt, sampling)) for name in names]
        try:
            transcripts = await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)  # the environments of all have been told
        first = transcripts[0].first_context
        if not np.array_equal(first, prompt.token_ids):
            prompt = replace(prompt, token_ids=first)
        return PromptGroup(prompt, attempt, tuple(each.response(first) for each in transcripts))

    async def _conducted(self, name: ConversationId, prompt: Prompt, sampling: Sampling) -> Transcript:
        limit = min(self._most_tokens, sampling.max_conversation_tokens or self._most_tokens)
        try:
            context = await self._environments.open(name, prompt)
            if not 0 < len(context) < limit:
                reason = f"its first context has {len(context)} tokens; expected 1 to {limit - 1}"
                raise Unscored(*name.key, f"conversation {name.response}: {reason}")
            transcript, engine = Transcript(context), None
            while not transcript.ended:
                room = limit - len(transcript.context_ids)
                request = TurnRequest(
                    name, transcript.num_turns, transcript.context_ids, sampling, min(room, sampling.max_tokens), engine
                )
                turn = await self._engine.turn(request)
                engine = turn.engine
                transcript.said(turn)
                observation = await self._environments.reply(name, turn)
                transcript.observed(observation)
                transcript.ended = _end(transcript, observation, request, turn, limit)
                if not transcript.ended and not _leads_on(observation):
                    reason = "its environment is not done, and says nothing"
                    raise Unscored(*name.key, f"conversation {name.response}: {reason}")
            return transcript
        finally:
            await self._environments.end(name)


def _end(transcript: Transcript, observation: Observation, request: TurnRequest, turn: Turn, limit: int) -> str:
    """Say why the conversation ends here, as ``Conversation.ended``; empty: it goes on."""
    if turn.finish_reason == "length":
        return "length" if request.max_tokens == request.sampling.max_tokens else "tokens"
    if observation.done:
        return "done"
    if transcript.num_turns >= request.sampling.max_turns:
        return "turns"
    return "tokens" if len(transcript.context_ids) >= limit else ""


def _leads_on(observation: Observation) -> bool:
    return observation.appended_ids is not None or observation.context_ids is not None


class _OpenSegment:
    """A segment that grows."""

    def __init__(self, context_ids: IntArray, began: str) -> None:
        self.context_ids, self.began = context_ids, began
        self._pieces: list[tuple[IntArray, bool]] = []
        """tokens, and whether the policy sampled them"""

    def add(self, token_ids: IntArray, *, sampled: bool) -> None:
        self._pieces.append((token_ids, sampled))

    @property
    def all_ids(self) -> IntArray:
        """The context and what stands behind it."""
        return np.concatenate([self.context_ids, *(ids for ids, _ in self._pieces)])

    def closed(self, prompt_ids: IntArray) -> Segment | None:
        """Make the segment up to its last sampled token; None: it has none."""
        pieces = list(self._pieces)
        while pieces and not pieces[-1][1]:
            pieces.pop()
        if not pieces:
            return None
        return Segment(
            np.concatenate([ids for ids, _ in pieces]),
            np.concatenate([np.full(len(ids), sampled) for ids, sampled in pieces]),
            None if np.array_equal(self.context_ids, prompt_ids) else self.context_ids,
            self.began,
        )


class Transcript:
    """Transcript of one conversation, in tokens."""

    def __init__(self, context_ids: IntArray) -> None:
        """``context_ids``: what the first turn is given."""
        self.first_context = context_ids
        self.context_ids = context_ids
        """[C] what the next turn is given"""
        self.ended = ""
        """see Conversation.ended; empty: it goes on"""
        self._segments = [_OpenSegment(context_ids, "")]
        self._turns: list[Turn] = []
        self._observations: list[Observation] = []

    @property
    def num_turns(self) -> int:
        """Turns so far."""
        return len(self._turns)

    def said(self, turn: Turn) -> None:
        """Append what the policy sampled behind the context."""
        self._turns.append(turn)
        self._segments[-1].add(turn.token_ids, sampled=True)

    def observed(self, observation: Observation) -> None:
        """Append what the environment made of it, or begin a segment where it rewrote what stands before."""
        self._observations.append(observation)
        segment, appended, context = self._segments[-1], observation.appended_ids, observation.context_ids
        if appended is None and context is not None:
            before = segment.all_ids
            if np.array_equal(context[: len(before)], before):  # it only grew, after all
                appended = context[len(before) :]
            else:
                self._segments.append(_OpenSegment(context, observation.began or "the environment rewrote its history"))
        if appended is not None:
            segment.add(appended, sampled=False)
        self.context_ids = self._segments[-1].all_ids

    def response(self, prompt_ids: IntArray) -> Response:
        """Make the response of a group whose prompt is ``prompt_ids``."""
        found = (segment.closed(prompt_ids) for segment in self._segments)
        last = self._observations[-1]
        conversation = Conversation(
            tuple(segment for segment in found if segment is not None),
            tuple(len(turn.token_ids) for turn in self._turns),
            _authors(self._observations),
            last.verdict,
            self.ended,
            sum(each.seconds for each in self._observations),
            sum(turn.engine != before.engine for before, turn in itertools.pairwise(self._turns)),
            sum(turn.redrawn for turn in self._turns),
            max(each.dropped for each in self._observations),
        )
        return Response(
            joined([turn.token_ids for turn in self._turns]),
            joined([turn.behaviour_logprobs for turn in self._turns]),
            joined([turn.versions for turn in self._turns]),
            "stop" if self.ended == "done" else "length",
            conversation,
        )


def _authors(observations: Sequence[Observation]) -> tuple[str, ...]:
    """Name who wrote behind each turn; behind the last one only if something was written."""
    names = [each.author for each in observations]
    return tuple(names if names[-1] else names[:-1])
