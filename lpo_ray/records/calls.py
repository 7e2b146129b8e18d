"""Calls of agents: what a program asked the policy through the endpoint, and what it was answered.

An agent is a program that knows a chat endpoint and nothing else. Its session is one of the K responses of a group.
Made by the endpoint; conducted by ``rollout/agents.py``. Shapes: C tokens of a context.
"""

from __future__ import annotations

from dataclasses import dataclass

from lpo_ray.records.arrays import IntArray
from lpo_ray.records.turns import Turn
from lpo_ray.verdict import Verdict


@dataclass(frozen=True, slots=True, eq=False)
class Call:
    """One request of an agent for tokens, as an engine needs it."""

    number: int
    """counted in its session from 0, in the order in which calls arrived; calls of one session may overlap"""
    context_ids: IntArray
    """[C] all tokens that stand before the answer; they begin with those of an earlier call and its answer where the
    request's history does
    """
    request: bytes
    """what was asked, in a canonical form: a request that is repeated has the same, and gets the recorded answer"""
    max_tokens: int | None = None
    """that the agent asked for; None: as many as the run allows"""
    stop: tuple[str, ...] = ()
    """texts at which the answer ends"""
    began: str = ""
    """why no earlier call's tokens could be kept: "the agent rewrote its history"; empty: none had to be given up"""
    author: str = ""
    """role of whoever wrote the last message of the request: "user", "tool" """


@dataclass(frozen=True, slots=True, eq=False)
class Answered:
    """A call and the policy's answer, as they are recorded. Never made up: every token of it was sampled."""

    call: Call
    turn: Turn


@dataclass(frozen=True, slots=True)
class Refusal:
    """Answer to a call that gets no tokens: a limit of the session was reached."""

    kind: str
    """"turns" or "tokens": which limit; see Conversation.ended"""
    reason: str
    """for the agent, with the limit's number and its setting"""


@dataclass(frozen=True, slots=True)
class Finished:
    """End of an agent's program."""

    verdict: Verdict | None
    """its own; None: a verifier scores ``output``"""
    output: str | None
    """what a verifier reads: standard output of a command, the text that a function returned; None: the last answer"""
    last_lines: str = ""
    """what it printed last, for the user"""
