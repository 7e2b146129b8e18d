"""The canonical form of what an agent asks: what decides about the answer, and nothing else.

Two requests are the same when their canonical forms are: messages, tools, variables of the chat template, and how long
the answer may be. By which API they came, whether the answer is streamed, headers and names are of no account. Requests
that differ in their ``seed`` only are different: so an agent asks several answers to one history.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from lpo_ray.agents.environment import Message

Calls = Literal["none", "one", "many"]
"""how many tool calls of an answer are given to the agent as such"""
PLAIN = json.JSONEncoder(ensure_ascii=False, sort_keys=True, separators=(",", ":"))
"""writes equal plain values alike"""


@dataclass(frozen=True, slots=True, eq=False)
class Asked:
    """A request in canonical form: a conversation, or a text or tokens that go on."""

    messages: Sequence[Message] = ()
    """contents are texts, arguments of tool calls are mappings"""
    prompt: str | Sequence[int] | None = None
    """of a text completion; None: ``messages``"""
    tools: Sequence[Mapping[str, Any]] = ()
    """JSON schemas"""
    variables: Mapping[str, Any] = field(default_factory=dict)
    """of the chat template"""
    max_tokens: int | None = None
    """of the answer; None: as many as there is room for"""
    stop: tuple[str, ...] = ()
    seed: int | None = None
    calls: Calls = "many"

    def to_bytes(self) -> bytes:
        """Write it, the same for equal requests. Raises UnicodeEncodeError for half a character."""
        text = PLAIN.encode({each.name: getattr(self, each.name) for each in fields(self)})
        return zlib.compress(text.encode(), 1)

    @classmethod
    def from_bytes(cls, value: bytes) -> Asked:
        """Read what ``to_bytes`` wrote."""
        found = json.loads(zlib.decompress(value))
        return cls(**{**found, "stop": tuple(found["stop"])})

    @property
    def author(self) -> str:
        """Role of whoever wrote the last message."""
        return str(self.messages[-1]["role"]) if self.messages else "user"


def same_content(message: Message) -> Any:  # noqa: ANN401 - plain values
    """Return what has to be equal for two messages to be the same: not what names a tool call, and not thinking."""
    calls = [
        (call["function"]["name"], call["function"].get("arguments") or {}) for call in message.get("tool_calls") or ()
    ]
    return [message["role"], message.get("content") or "", message.get("name") or "", calls]
