"""A conversation in tokens, append-only: what an engine sampled is never tokenised again.

The next context is context + sampled tokens + tokens of what the template puts behind an answer, found by rendering
with a mark in its place. So a context keeps what a template would have rewritten, such as the thinking of earlier
turns: the policy sees what it sampled, and ``Appended.dropped`` counts what the template would not have shown it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lpo_ray.agents.contexts.chat import Chat, text_of
from lpo_ray.agents.environment import Message
from lpo_ray.policy.tokenizer import Messages, Tokenizer
from lpo_ray.records import IntArray


@dataclass(frozen=True, slots=True, eq=False)
class Appended:
    """Tokens that follow a turn."""

    token_ids: IntArray
    """[A]"""
    dropped: int = 0
    """tokens of earlier turns that the template would have left out"""


class Transcript:
    """One conversation: its tokens, and its messages where a chat template renders them."""

    def __init__(self, chat: Chat, token_ids: IntArray, messages: Messages | None) -> None:
        """``token_ids``: the first context; ``messages``: what it was rendered from, None for plain text."""
        self._chat, self.token_ids = chat, token_ids
        self._messages = None if messages is None else list(messages)

    @classmethod
    def of(cls, chat: Chat, messages: Sequence[Message], *, is_plain: bool) -> Transcript:
        """Begin with messages that are not encoded yet. Raises DataError."""
        if is_plain:
            return cls(chat, chat.encoder.encode(text_of(messages)), None)
        return cls(chat, chat.encoder.encode(list(messages)), chat.encoder.conversation(list(messages)))

    @property
    def is_plain(self) -> bool:
        """Whether it is plain text, without a chat template."""
        return self._messages is None

    def append(self, reply: IntArray, calls: Sequence[Message], messages: Sequence[Message]) -> Appended:
        """Append a turn, and what was said behind it; returns the tokens of the latter.

        ``calls``: the tool calls in the turn. Special tokens in the messages are no special tokens where a template
        renders them: a tool may repeat what the policy wrote. Raises DataError when the template refuses the messages.
        """
        tokenizer = self._chat.tokenizer
        if self._messages is None:
            added = tokenizer.encode_behind(text_of(messages), int(reply[-1]))
            self.token_ids = np.concatenate([self.token_ids, reply, added])
            return Appended(added)
        messages = [_as_said(message, tokenizer) for message in messages]
        behind = self._chat.behind(self._messages, reply, calls, messages)
        added = tokenizer.encode_behind(behind.text, int(reply[-1]))
        self._messages += [behind.answer, *messages]
        self.token_ids = np.concatenate([self.token_ids, reply, added])
        return Appended(added, self._chat.dropped(self.token_ids, self._messages))

    def rewrite(self, messages: Sequence[Message]) -> IntArray:
        """Begin again with other messages; returns the new context. Raises DataError."""
        new = Transcript.of(self._chat, messages, is_plain=self._messages is None)
        self.token_ids, self._messages = new.token_ids, new._messages
        return self.token_ids


def _as_said(message: Message, tokenizer: Tokenizer) -> Message:
    """Return a message whose texts have no special tokens."""
    return {name: tokenizer.as_said(value) if isinstance(value, str) else value for name, value in message.items()}
