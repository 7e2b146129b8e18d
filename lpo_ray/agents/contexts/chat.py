"""Chat templates of conversations: the text that one puts behind an answer, and what it leaves out of earlier ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from difflib import SequenceMatcher
from functools import cached_property
from typing import Any, NamedTuple, Protocol

import numpy as np

from lpo_ray.agents.environment import Message
from lpo_ray.agents.tools.calls import PARSERS, parse, parser_for
from lpo_ray.errors import DataError
from lpo_ray.policy.tokenizer import ANSWER, ChatStyle, Messages, Tokenizer
from lpo_ray.records import IntArray

LONGEST_COMPARED = 1000
"""lines of a conversation that are compared, behind those that are equal, and words of those that differ"""
_ASKED: list[Message] = [{"role": "user", "content": "?"}]
_CALLS: Message = {
    "role": "assistant",
    "content": "",
    "tool_calls": [
        {"type": "function", "id": "call00000", "function": {"name": "look_up", "arguments": {"word": "sun"}}}
    ],
}
_RESULT: Message = {"role": "tool", "name": "look_up", "tool_call_id": "call00000", "content": "a star"}
_ANY_ANSWER: Message = {"role": "assistant", "content": "answer"}


class Encoder(Protocol):
    """Encoder of prompts, as tasks have it (``PromptEncoder``)."""

    @property
    def style(self) -> ChatStyle:
        """Style in which messages are rendered."""
        ...

    @property
    def is_plain(self) -> bool:
        """Whether texts are encoded as they are."""
        ...

    def encode(self, prompt: str | Messages) -> IntArray:
        """Encode a text, or messages: [T] token ids. DataError."""
        ...

    def conversation(self, prompt: str | Messages) -> Messages | None:
        """Return the messages that a prompt is rendered from; None: it is encoded as plain text."""
        ...


class Behind(NamedTuple):
    """Text that a chat template puts behind an answer, and the answer as the template takes it."""

    text: str
    """from the end of the answer's turn to where the next answer begins"""
    answer: Message
    """the answer in a form that the template takes with what follows it"""


class Chat:
    """Chat template of a tokenizer, in one style."""

    def __init__(self, tokenizer: Tokenizer, encoder: Encoder) -> None:
        self.tokenizer, self.encoder = tokenizer, encoder

    def behind(self, before: Messages, reply: IntArray, calls: Sequence[Message], messages: Messages) -> Behind:
        """Return what the template puts behind an answer that is ``reply`` in tokens, up to the next one's begin.

        The answer's end is in it unless the reply has one. ``calls``: the reply's tool calls, which some templates want
        to see before a tool's message. Raises DataError when the template refuses the messages.
        """
        answer: Message = {"role": "assistant", "content": self.tokenizer.decode(reply)}
        mark = _mark([*before, *messages])
        try:
            text = self._after(mark, [*before, {"role": "assistant", "content": mark}, *messages])
            if calls:  # a template may refuse only what comes next
                self.tokenizer.render([*before, answer, *messages, _ANY_ANSWER], self.encoder.style)
        except DataError:
            if not calls or not self._end:
                raise
            text = self._end + self._after(mark, [*before, _marked(calls, mark), *messages]).partition(self._end)[2]
            answer = {"role": "assistant", "content": "", "tool_calls": _readable(calls)}
        if not answer["content"].strip() and not calls and not self._takes([*before, answer, *messages]):
            answer = _ANY_ANSWER  # the policy's silence is no fault of the template's, and stays in the tokens
        if self.tokenizer.is_special(int(reply[-1])) and self._end and text.lstrip().startswith(self._end):
            text = text.lstrip()[len(self._end) :]
        return Behind(text, answer)

    def dropped(self, token_ids: IntArray, messages: Messages) -> int:
        """Count tokens of a conversation that the template, given its messages, would have left out or changed."""
        try:
            wanted = self.tokenizer.render(messages, self.encoder.style)
        except DataError:
            return 0
        wanted = self.tokenizer.show(self.tokenizer.encode(wanted))  # with the white space that tokens make of it
        only = _only_in_first(self.tokenizer.show(token_ids), wanted)
        return len(self.tokenizer.encode(only)) if only.strip() else 0

    def parser(self) -> tuple[str, str]:
        """Choose the row of PARSERS that reads a tool call as the template writes it, else one by the template's text.
        Says also what keeps the policy from calling tools; empty where nothing is known to.
        """
        style = self.encoder.style
        guess = parser_for(self.tokenizer.template_text(style))
        try:
            asked = self.tokenizer.render(_ASKED, style)
            if style.tools and self.tokenizer.render(_ASKED, replace(style, tools=())) == asked:
                return guess, "the chat template does not tell the model of its tools"
            written = self.tokenizer.render([*_ASKED, _CALLS, _RESULT], style).removeprefix(asked)
        except DataError:  # it wants more than this
            return guess, ""
        if self._end:
            written = written.partition(self._end)[0]
        wanted = [(call["function"]["name"], call["function"]["arguments"]) for call in _CALLS["tool_calls"]]
        for name in (guess, *PARSERS):
            calls = parse(name, written)[1]
            if [(call["function"]["name"], call["function"]["arguments"]) for call in calls] == wanted:
                return name, ""
        if wanted[0][0] not in written:
            return guess, ""
        return guess, f"the chat template writes calls as {written.strip()!r}, which no parser of ours reads"

    @cached_property
    def _end(self) -> str:
        """Text of the special token that ends the assistant's turn; empty where none does."""
        token = self.tokenizer.end_of_turn(self.encoder.style)
        return "" if token is None else self.tokenizer.show(np.array([token]))

    def _takes(self, messages: Messages) -> bool:
        try:
            self.tokenizer.render(messages, self.encoder.style)
        except DataError:
            return False
        return True

    def _after(self, mark: str, messages: Messages) -> str:
        text = self.tokenizer.render(messages, self.encoder.style)
        if text.count(mark) != 1:
            raise DataError(
                f"the model's chat template shows an assistant's answer {text.count(mark)} times; expected once, so "
                "that what it puts behind the answer can be appended to a conversation"
            )
        return text.partition(mark)[2]


def _mark(messages: Messages) -> str:
    """Return a text that no message has."""
    said = "".join(str(message) for message in messages)
    mark = ANSWER
    while mark in said:
        mark += "X"
    return mark


def _marked(calls: Sequence[Message], mark: str) -> Message:
    """Make an answer with as many calls, of which the last one's argument is the mark."""
    made = [{**call, "function": {"name": "tool", "arguments": {"argument": ""}}} for call in calls]
    made[-1]["function"] = {"name": "tool", "arguments": {"argument": mark}}
    return {"role": "assistant", "content": "", "tool_calls": made}


def _readable(calls: Sequence[Message]) -> list[Message]:
    """Return calls whose arguments are mappings, as templates want them."""
    found = []
    for call in calls:
        arguments = call["function"]["arguments"]
        readable = arguments if isinstance(arguments, Mapping) else {"text": str(arguments)}
        found.append({**call, "function": {**call["function"], "arguments": readable}})
    return found


def _only_in_first(first: str, second: str) -> str:
    """Return what ``first`` has and ``second`` has not, but for white space: whole lines, and words of others."""
    one, other = first.splitlines(keepends=True), second.splitlines(keepends=True)
    start = 0
    while start < min(len(one), len(other)) and one[start] == other[start]:
        start += 1
    one, other = one[start : start + LONGEST_COMPARED], other[start : start + LONGEST_COMPARED]
    found = []
    for kind, a, b, c, d in SequenceMatcher(None, one, other, autojunk=False).get_opcodes():
        if kind == "delete":
            found += one[a:b]
        elif kind == "replace":
            found += _words_only_in_first("".join(one[a:b]), "".join(other[c:d]))
    return "".join(found)


def _words_only_in_first(first: str, second: str) -> list[str]:
    one, other = first.split()[:LONGEST_COMPARED], second.split()[:LONGEST_COMPARED]
    blocks = SequenceMatcher(None, one, other).get_opcodes()
    return [f"{word} " for kind, a, b, _, _ in blocks if kind in ("delete", "replace") for word in one[a:b]]


def text_of(messages: Sequence[Mapping[str, Any]]) -> str:
    """Write messages as plain text: their contents, verbatim."""
    return "".join(message["content"] for message in messages)
