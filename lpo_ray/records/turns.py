"""Turns of a conversation, between the one that conducts it, engines and environments."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from lpo_ray.common.seeds import derive_seed
from lpo_ray.records.arrays import FloatArray, IntArray
from lpo_ray.records.groups import FinishReason, Key, Response, Sampling
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
    engine: int | None = None
    """number of the one that drew the turn before, which has the conversation's prefix; None: none has"""
    stop: tuple[str, ...] = ()
    """texts at which the turn ends, beside the end of the model's own turns: only agents ask for some"""
    draw: int = 0
    """how often it was drawn before, by engines that were lost meanwhile; each draw has a seed of its own"""

    def seed(self, part: int = 0) -> int:
        """Derive the seed of a part of the turn: another follows where new weights interrupt it. The first draw of the
        first turn has the seeds of a single answer.
        """
        name = [*self.conversation, *(["turn", self.turn, self.draw] if self.turn or self.draw else [])]
        return derive_seed(self.sampling.seed, *name, *([part] if part else []))


@dataclass(frozen=True, slots=True, eq=False)
class Turn:
    """Tokens of one turn, the stop token included, made by an engine. Fields as in ``Response``."""

    token_ids: IntArray
    behaviour_logprobs: FloatArray
    versions: IntArray
    finish_reason: FinishReason
    engine: int | None = None
    """number of the one that drew it; None: there is but one"""
    redrawn: int = 0
    """times that it was drawn before, by engines that were lost"""

    def as_response(self) -> Response:
        """Make the response that is this turn alone."""
        return Response(self.token_ids, self.behaviour_logprobs, self.versions, self.finish_reason)


@dataclass(frozen=True, slots=True, eq=False)
class Observation:
    """Answer of an environment to a turn, in tokens."""

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
    """of the conversation as it stands: it counts when the conversation ends here, by ``done`` or at a limit. None: a
    verifier scores the response
    """
    seconds: float = 0.0
    """time that environment and tools took"""
    dropped: int = 0
    """tokens of earlier turns that stand in the next context, and that the chat template would have left out"""
