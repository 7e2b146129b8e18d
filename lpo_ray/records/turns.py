"""Turns of a conversation, between the one that conducts it, engines and environments."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from lpo_ray.records.arrays import FloatArray, IntArray
from lpo_ray.records.groups import FinishReason, Key, Sampling
from lpo_ray.verdict import Verdict


class ConversationId(NamedTuple):
    """Name of a conversation in the run: one of the K responses of a group."""

    prompt_id: str
    attempt: int
    response: int

    @property
    def key(self) -> Key:
        """Name of its group."""
        return self.prompt_id, self.attempt


@dataclass(frozen=True, slots=True, eq=False)
class TurnRequest:
    """Request for one turn: what an engine needs, whichever it is."""

    conversation: ConversationId
    turn: int
    """0 for the first"""
    context_ids: IntArray
    """[C] all tokens that stand before the turn"""
    sampling: Sampling
    max_tokens: int
    """of this turn: the rest of what the conversation may have, at most ``sampling.max_tokens``"""


@dataclass(frozen=True, slots=True, eq=False)
class Turn:
    """Tokens of one turn, the stop token included, made by an engine. Fields as in ``Response``."""

    token_ids: IntArray
    behaviour_logprobs: FloatArray
    versions: IntArray
    finish_reason: FinishReason


@dataclass(frozen=True, slots=True, eq=False)
class Observation:
    """What an environment made of a turn, in tokens."""

    appended_ids: IntArray | None
    """[A] tokens behind the turn that lead to the next one; None: the history was rewritten, or the end"""
    context_ids: IntArray | None = None
    """[C] the whole context of the next turn when the history was rewritten"""
    began: str = ""
    """why: the template dropped thinking, ..."""
    author: str = ""
    """role of the messages: "tool", "user"; empty: it said nothing"""
    done: bool = False
    verdict: Verdict | None = None
    """with ``done``; None: a verifier scores the response"""
    seconds: float = 0.0
    """time that environment and tools took"""
