"""Contexts of an agent's requests: the tokens of earlier calls where its history has them, and the new text behind.

An agent sends its whole history with every request. Where the history begins with that of an earlier call and with the
answer *as it was returned*, the context begins with that call's context and the tokens that were sampled, and only what
follows is made of text. So it holds for tokens that no text is encoded to, for arguments of tools that a client writes
in another way, for thinking that a parser took out and the client therefore never sends, and for a stop string that was
cut off. What the agent changed itself is another history, and is made of text as it stands.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from lpo_ray.agents.contexts.asked import PLAIN, Asked, same_content
from lpo_ray.agents.contexts.chat import Chat, text_of
from lpo_ray.agents.environment import Message
from lpo_ray.errors import DataError
from lpo_ray.policy.tokenizer import ChatStyle, Messages, Tokenizer
from lpo_ray.records import IntArray
from lpo_ray.records.conversations import NO_TOKENS

REWROTE = "the agent rewrote its history"
CHANGED_ANSWER = "the agent changed an answer of the policy"
LEFT_OUT = "the agent left out a part of an answer"
CHANGED_TOOLS = "the agent changed its tools"
ANOTHER = "another conversation of the agent"
CUT = "the agent went on without the stop string that was sampled"


class Placed(NamedTuple):
    """Context of a request."""

    context_ids: IntArray
    """[C]"""
    began: str = ""
    """why it goes on from no earlier answer, or from none of the last ones; empty: it does, or is the first"""
    parent: _Past | None = None
    """the call that was answered, and whose tokens it begins with"""


class Reply(NamedTuple):
    """Answer of the policy as an agent is given it."""

    message: Message
    """with thinking as ``reasoning``, and arguments of tool calls as mappings"""
    text: str
    """without special tokens, and without the stop string"""
    stop: str | None = None
    """text that ended it"""


@dataclass(frozen=True, slots=True)
class Style:
    """How requests become text."""

    chat: ChatStyle
    plain: bool = False
    """messages are their contents, end to end: the model has no chat template"""


class _StyledEncoder:
    """Encoder of one request's messages."""

    def __init__(self, tokenizer: Tokenizer, style: ChatStyle) -> None:
        self._tokenizer, self.style, self.is_plain = tokenizer, style, False

    def encode(self, prompt: str | Messages) -> IntArray:
        text = prompt if isinstance(prompt, str) else self._tokenizer.render(prompt, self.style)
        return self._tokenizer.encode(text)

    def conversation(self, prompt: str | Messages) -> Messages | None:
        return None if isinstance(prompt, str) else prompt


class Prompts:
    """Requests as tokens, by one tokenizer and style."""

    def __init__(self, tokenizer: Tokenizer, style: Style) -> None:
        self.tokenizer, self._style = tokenizer, style
        self._read: dict[str, bool] = {}
        self._chats: OrderedDict[bytes, Chat] = OrderedDict()
        """by tools and variables; each has looked at what the template writes"""

    def whole(self, asked: Asked) -> IntArray:
        """Encode a whole request. Raises DataError when the chat template refuses it."""
        if asked.prompt is not None:
            return self._text(asked.prompt) if isinstance(asked.prompt, str) else np.array(asked.prompt, dtype=np.int64)
        if self._style.plain:
            return self._text(text_of(asked.messages))
        return self._chat(asked).encoder.encode(asked.messages)

    def behind(self, asked: Asked, place: int, reply: IntArray) -> IntArray:
        """Encode what stands behind message number ``place``, an answer that was sampled as ``reply``. DataError."""
        after = asked.messages[place + 1 :]
        if self._style.plain:
            return self.tokenizer.encode(text_of(after))
        answer = asked.messages[place]
        calls = answer.get("tool_calls") or []
        return self.tokenizer.encode(self._chat(asked).behind(asked.messages[:place], reply, calls, after).text)

    def goes_on(self, reply: IntArray) -> IntArray:
        """Return a reply without the token that ended it, for a request that has it go on."""
        return reply[:-1] if len(reply) > 1 and self.tokenizer.is_special(int(reply[-1])) else reply

    def variables(self, wanted: Mapping[str, Any]) -> dict[str, Any]:
        """Choose what the chat template reads of the variables that an agent sets: switches, numbers, texts."""
        return {
            name: value
            for name, value in wanted.items()
            if isinstance(value, bool | int | float | str) and name not in RESERVED and self._reads(name)
        }

    def _reads(self, name: str) -> bool:
        """Whether the chat template reads a variable, which takes milliseconds to find out."""
        if name not in self._read and len(self._read) < MOST_VARIABLES:
            style = replace(self._style.chat, variables={name: ""})
            self._read[name] = not self._style.plain and not self.tokenizer.unknown_variables(style)
        return self._read.get(name, False)

    def _chat(self, asked: Asked) -> Chat:
        name = _digest(_plain([asked.tools, asked.variables]))
        if (chat := self._chats.get(name)) is None:
            style = self._style.chat
            variables = {**style.variables, **asked.variables}
            style = replace(style, tools=asked.tools or style.tools, variables=variables)
            chat = self._chats[name] = Chat(self.tokenizer, _StyledEncoder(self.tokenizer, style))
            if len(self._chats) > MOST_CHATS:
                self._chats.popitem(last=False)
        return chat

    def _text(self, text: str) -> IntArray:
        begin, ids = self.tokenizer.begin_ids, self.tokenizer.encode(text)
        return ids if tuple(ids[: len(begin)]) == begin else np.concatenate([np.array(begin, dtype=np.int64), ids])


RESERVED = frozenset((
    "messages", "conversation", "tools", "documents", "chat_template", "add_generation_prompt", "tokenize",
    "continue_final_message", "bos_token", "eos_token", "pad_token", "unk_token", "strftime_now", "raise_exception",
    "padding", "truncation", "max_length", "return_tensors", "return_dict", "return_assistant_tokens_mask",
    "tokenizer_kwargs",
))  # fmt: skip
"""variables of a chat template that an agent does not set"""
MOST_CHATS = 64
"""sets of tools and variables that are remembered"""
MOST_VARIABLES = 1000
"""names that are looked for in a chat template"""


@dataclass(frozen=True, slots=True, eq=False)
class _Past:
    """A call that was answered."""

    parent: _Past | None
    """whose tokens its context begins with"""
    context_ids: IntArray
    """behind those of the parent"""
    reply: IntArray
    returned: Reply
    prompt: str | None = None
    """of a text completion"""

    def all_ids(self) -> list[IntArray]:
        """Return context and reply, in pieces."""
        pieces: list[IntArray] = []
        past: _Past | None = self
        while past is not None:
            pieces += [past.reply, past.context_ids]
            past = past.parent
        return pieces[::-1]


class _Found(NamedTuple):
    """Where a request goes on."""

    past: _Past | None
    kept: list[IntArray]
    """tokens of it that the context begins with"""
    added: IntArray
    """tokens behind them"""
    began: str


class History:
    """The calls of one session that were answered."""

    def __init__(self, prompts: Prompts) -> None:
        self._prompts = prompts
        self._answered: dict[bytes, list[_Past]] = {}
        """by the digest of a history that ends with the answer"""
        self._asked: set[bytes] = set()
        """digests of histories that were asked"""
        self._roots: set[bytes] = set()
        """digests of first messages, with and without tools"""
        self._texts: list[_Past] = []

    def place(self, asked: Asked) -> Placed:
        """Find the context of a request. Raises DataError when the chat template refuses it."""
        found = self._found(asked)
        return Placed(np.concatenate([*found.kept, found.added]), found.began, found.past)

    def remember(
        self, asked: Asked, context_ids: IntArray, reply: IntArray, returned: Reply, parent: _Past | None = None
    ) -> None:
        """Remember what a request was answered, with the context that it was given. Once for each.

        ``parent``: see Placed; what the context does not begin with is none.
        """
        before = NO_TOKENS if parent is None else np.concatenate(parent.all_ids())
        if not np.array_equal(context_ids[: len(before)], before):
            parent, before = None, before[:0]
        prompt = asked.prompt if isinstance(asked.prompt, str) else None
        past = _Past(parent, context_ids[len(before) :].copy(), reply, returned, prompt)
        if asked.prompt is not None:
            self._texts.append(past)
            return
        chain = self._chain(asked)
        self._asked.add(chain[-1])
        self._roots.update(_roots(asked))
        for message in _as_sent_back(returned):
            self._answered.setdefault(_step(chain[-1], message), []).append(past)

    def _found(self, asked: Asked) -> _Found:
        try:
            return self._in_text(asked) if asked.prompt is not None else self._in_messages(asked)
        except DataError as error:  # the template refuses the part, or does not show it
            return _Found(None, [], self._prompts.whole(asked), f"{REWROTE}: {error}"[:200])

    def _in_messages(self, asked: Asked) -> _Found:
        chain, messages = self._chain(asked), asked.messages
        answers = [place for place, message in enumerate(messages) if message["role"] == "assistant"]
        for place in reversed(answers):
            past = self._past(chain[place + 1], messages[place])
            if past is None:
                continue
            kept = past.all_ids()
            if place == len(messages) - 1:
                added, kept[-1] = NO_TOKENS, self._prompts.goes_on(past.reply)
            else:
                added = self._prompts.behind(asked, place, past.reply)
            return _Found(past, kept, added, self._reason(asked, chain) if place != answers[-1] else "")
        return _Found(None, [], self._prompts.whole(asked), self._reason(asked, chain))

    def _in_text(self, asked: Asked) -> _Found:
        prompt = asked.prompt
        if not isinstance(prompt, str):
            return _Found(None, [], self._prompts.whole(asked), "")
        tokenizer = self._prompts.tokenizer
        best: tuple[int, _Found] = (-1, _Found(None, [], NO_TOKENS, ANOTHER if self._texts else ""))
        for past in self._texts:
            if past.prompt is None:
                continue
            text, kept = past.prompt + past.returned.text, past.all_ids()
            full = past.prompt + tokenizer.decode_plain(past.reply)
            if past.returned.stop is not None and prompt.startswith(full) and len(full) > best[0]:
                best = (len(full), _Found(past, kept, tokenizer.encode(prompt[len(full) :]), ""))
            elif prompt.startswith(text) and len(text) > best[0]:
                if past.returned.stop is not None:
                    kept[-1] = _within(tokenizer, past.reply, past.returned.text)
                    seen = past.prompt + tokenizer.decode_plain(kept[-1])
                    best = (len(text), _Found(past, kept, tokenizer.encode(prompt[len(seen) :]), CUT))
                else:
                    rest = tokenizer.encode(prompt[len(text) :])
                    kept[-1] = past.reply if len(rest) else self._prompts.goes_on(past.reply)
                    best = (len(text), _Found(past, kept, rest, ""))
        found = best[1]
        return found if found.past is not None else found._replace(added=self._prompts.whole(asked))

    def _past(self, digest: bytes, message: Message) -> _Past | None:
        """Return the first answer that was returned as this message."""
        sent = message.get("reasoning")
        for past in self._answered.get(digest, ()):
            if sent in (None, "", past.returned.message.get("reasoning")):
                return past
        return None

    def _chain(self, asked: Asked) -> list[bytes]:
        """Return the digests of the history's beginnings, from that without a message on."""
        chain = [_digest(_plain([asked.tools, asked.variables]))]
        for message in asked.messages:
            digest = _step(chain[-1], message)
            if message.get("reasoning") and self._past(digest, message) is None:
                digest = _digest(digest + _plain(message["reasoning"]))
            chain.append(digest)
        return chain

    def _reason(self, asked: Asked, chain: Sequence[bytes]) -> str:
        """Say why the last answers in a history are not kept."""
        if not self._asked:
            return ""
        for place, message in enumerate(asked.messages):
            if message["role"] != "assistant" or self._past(chain[place + 1], message) is not None:
                continue
            if chain[place] not in self._asked:
                break
            said = message.get("content") or ""
            known = (each.returned.message for key in self._answered for each in self._answered[key])
            return LEFT_OUT if any(said and said in _all_of(each) for each in known) else CHANGED_ANSWER
        with_tools, without = _roots(asked)
        if with_tools in self._roots:
            return REWROTE if any(m["role"] == "assistant" for m in asked.messages) else ANOTHER
        return CHANGED_TOOLS if without in self._roots else ANOTHER


def _as_sent_back(returned: Reply) -> list[Message]:
    """List the messages that an agent may make of an answer: some put the stop string back."""
    message = returned.message
    if returned.stop is None or message.get("tool_calls"):
        return [message]
    return [message, {**message, "content": (message.get("content") or "") + returned.stop}]


def _all_of(message: Message) -> str:
    return f"{message.get('reasoning') or ''}{message.get('content') or ''}"


def _within(tokenizer: Tokenizer, reply: IntArray, text: str) -> IntArray:
    """Return the longest beginning of a reply whose text is a beginning of ``text``."""
    size = len(reply)
    while size and not text.startswith(tokenizer.decode_plain(reply[:size])):
        size -= 1
    return reply[:size]


def _roots(asked: Asked) -> tuple[bytes, bytes]:
    first = _plain(same_content(asked.messages[0]) if asked.messages else "")
    return _digest(_plain([asked.tools, asked.variables]) + first), _digest(first)


def _step(before: bytes, message: Message) -> bytes:
    return _digest(before + _plain(same_content(message)))


def _plain(value: Any) -> bytes:  # noqa: ANN401 - plain values
    return PLAIN.encode(value).encode()


def _digest(value: bytes) -> bytes:
    return hashlib.blake2b(value, digest_size=16).digest()
