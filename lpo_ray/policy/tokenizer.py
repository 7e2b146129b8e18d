"""Tokenizer of a model: text to token ids once, token ids to text for people and verifiers."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import jinja2
import numpy as np
from jinja2 import TemplateError, meta
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from lpo_ray.errors import ConfigError, DataError
from lpo_ray.policy.loading import not_loaded
from lpo_ray.policy.saving import save_tokenizer
from lpo_ray.records import IntArray

Messages = Sequence[Mapping[str, Any]]
"""a conversation; each message has a role and a content, which is text"""
ANSWER = "LPOANSWERLPO"
"""content of a message that is rendered to see what a template puts after it"""


@dataclass(frozen=True, slots=True)
class ChatStyle:
    """Style in which a conversation becomes text: what decides that beside the tokenizer."""

    template: str | None = None
    """a Jinja template; None: the tokenizer's own"""
    variables: Mapping[str, Any] = field(default_factory=dict)
    """further variables of the template, such as enable_thinking"""
    date: datetime = datetime(2024, 7, 26)
    """what a template is told when it asks for the day, so that prompts do not change with it"""
    tools: Sequence[Mapping[str, Any]] = ()
    """JSON schemas of the tools that the model is told of"""


DEFAULT_STYLE = ChatStyle()
_GUARDS = ("a", "0", ".")
"""texts that stand before one that is encoded as the middle of a text: likely one forms no token with it"""

WORD_JOINER = "\u2060"
"""character of no width, between whose neighbours no line is broken"""
_ASKED = [{"role": "user", "content": "?"}]
_ROLES = ("bos", "eos", "pad", "unk", "sep", "cls", "mask")
_TAG = re.compile(r"(\W+?)(/?)(\w[\w-]*)(\W+)")
"""opening or closing tag: <think>, </think>, [THINK], [/THINK]"""


class Tokenizer:
    """Typed shell around a Hugging Face tokenizer."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer

    @classmethod
    def load(cls, path: str, *, trust_remote_code: bool = False) -> Tokenizer:
        """Load the tokenizer of a model folder.

        Raises ConfigError when there is none, or when it brings code of its own that is not trusted.
        """
        try:
            return cls(AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code))
        except (OSError, ValueError) as error:
            raise not_loaded(path, "tokenizer", error) from error

    def __len__(self) -> int:
        """Count the tokens of the vocabulary, added ones included."""
        return len(self._tokenizer)

    @property
    def highest_id(self) -> int:
        """Highest token id that ``encode`` may return: ids may have gaps."""
        return max(self._tokenizer.get_vocab().values())

    @property
    def eos_token_id(self) -> int:
        """Token that ends a response."""
        return self._required("eos_token_id")

    @property
    def pad_token_id(self) -> int:
        """Token that fills batches; the end token where a model has none."""
        pad = self._tokenizer.pad_token_id
        return self.eos_token_id if pad is None else int(cast("int", pad))

    def encode(self, text: str) -> IntArray:
        """Turn text into [T] token ids, without special tokens."""
        return np.asarray(self._tokenizer(text, add_special_tokens=False)["input_ids"], dtype=np.int64)

    def encode_many(self, texts: Sequence[str]) -> list[IntArray]:
        """Encode many texts together: several times as fast where the tokenizer has threads."""
        if not texts:
            return []
        found = self._tokenizer(
            list(texts), add_special_tokens=False, return_attention_mask=False, return_token_type_ids=False
        )
        rows = found["input_ids"]
        return [np.asarray(row, dtype=np.int64) for row in cast("list[list[int]]", rows)]

    def encode_behind(self, text: str, before: int) -> IntArray:
        """Turn text into [T] token ids as it stands behind the token ``before``. At the beginning of a text some
        tokenizers put a space, and some special tokens take the white space behind them away.
        """
        special = [self.show(np.array([before]))] if self.is_special(before) else []
        for guard in (*special, *_GUARDS):
            head, whole = self.encode(guard), self.encode(guard + text)
            if len(head) and np.array_equal(whole[: len(head)], head):
                return whole[len(head) :]
        return self.encode(text)

    @cached_property
    def begin_ids(self) -> tuple[int, ...]:
        """Tokens that the tokenizer puts before every text, such as <bos> of Llama 3 and Gemma; () when it puts none.
        Chat templates bring their own.
        """
        for text in ("a", "1", " "):
            bare = self.encode(text).tolist()
            whole = cast("list[int]", self._tokenizer(text)["input_ids"])
            places = [place for place in range(len(whole)) if whole[place : place + len(bare)] == bare]
            if bare and places:
                return tuple(whole[: places[0]])
        return ()

    def has_template(self, style: ChatStyle = DEFAULT_STYLE) -> bool:
        """Whether conversations can be rendered in this style, which ``render`` needs."""
        return style.template is not None or self._tokenizer.chat_template is not None

    def template_text(self, style: ChatStyle = DEFAULT_STYLE) -> str | None:
        """Return the chat template of this style, as it is used with the style's tools; None without one."""
        if style.template is not None:
            return style.template
        try:
            return str(self._tokenizer.get_chat_template(tools=[dict(tool) for tool in style.tools] or None))
        except ValueError:
            return None

    def unknown_variables(self, style: ChatStyle) -> list[str]:
        """List the variables of ``style`` that its template does not read."""
        try:
            text = style.template or str(self._tokenizer.get_chat_template())
            tree = jinja2.Environment(extensions=["jinja2.ext.loopcontrols"], autoescape=False).parse(text)
        except (TemplateError, ValueError):  # it has statements of transformers' own, or is none
            return []
        return sorted(set(style.variables) - meta.find_undeclared_variables(tree))

    def end_of_turn(self, style: ChatStyle) -> int | None:
        """Find the special token that the template puts after what the assistant says; None when there is none."""
        try:
            turn = [*_ASKED, {"role": "assistant", "content": ANSWER}]
            text = self._rendered(turn, style, continues=False, add_generation_prompt=False)
        except (TemplateError, ValueError, TypeError, KeyError):
            return None
        after = text.rpartition(ANSWER)[2].lstrip()
        token = next(iter(self.encode(after).tolist()), None)
        added = self._tokenizer.added_tokens_decoder.get(token) if token is not None else None
        return token if added is not None and added.special else None

    def render(self, messages: Messages, style: ChatStyle = DEFAULT_STYLE) -> str:
        """Render a conversation through the chat template, with the prompt for the assistant's turn.

        When the last message is the assistant's, the response continues it. Raises DataError without a template, or
        when the template refuses the messages.
        """
        if not self.has_template(style):
            raise DataError(
                "the prompt is messages, but the model's tokenizer has no chat template to render them with; expected "
                "prompts that are text, a model.path with a chat template, or a file of one as task.chat_template"
            )
        continues = messages[-1]["role"] == "assistant"
        try:
            return self._rendered(messages, style, continues=continues, add_generation_prompt=not continues)
        except (TemplateError, ValueError, TypeError, KeyError) as error:  # templates are programs, and check little
            raise DataError(
                f"the model's chat template refuses the messages: {type(error).__name__}: {error}"
            ) from error

    def _rendered(self, messages: Messages, style: ChatStyle, *, continues: bool, add_generation_prompt: bool) -> str:
        found = self._tokenizer.apply_chat_template(
            [dict(message) for message in messages],
            chat_template=style.template,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continues,
            tokenize=False,
            tools=[dict(tool) for tool in style.tools] or None,
            **{"strftime_now": style.date.strftime, **style.variables},
        )
        return cast("str", found)

    def decode(self, token_ids: IntArray) -> str:
        """Turn token ids into text for people and verifiers: without special tokens, but with those that are tags.

        Tags come in pairs, such as <think> and </think>: they are part of what the model says. What begins or ends a
        text or a turn is not, whatever it looks like.
        """
        if self._tags.isdisjoint(token_ids.tolist()):
            return self.decode_plain(token_ids)
        return self.show(token_ids[~np.isin(token_ids, list(self._special - self._tags))])

    def decode_plain(self, token_ids: IntArray) -> str:
        """Turn token ids into text without any special token."""
        return cast("str", self._tokenizer.decode(token_ids, skip_special_tokens=True))

    def show(self, token_ids: IntArray) -> str:
        """Turn token ids into text with special tokens: what the model sees."""
        return cast("str", self._tokenizer.decode(token_ids, skip_special_tokens=False))

    def is_special(self, token_id: int) -> bool:
        """Whether a token is special: no text that a model says."""
        return token_id in self._special

    def as_said(self, text: str) -> str:
        """Return text that somebody says, in which no special token but tags is one: a word joiner, which is not seen,
        stands behind its first character. So nobody can end a turn or begin another by what he says.
        """
        return self._unsaid.sub(lambda found: f"{found[0][0]}{WORD_JOINER}{found[0][1:]}", text)

    @cached_property
    def _unsaid(self) -> re.Pattern[str]:
        """Pattern of the special tokens that are no tags, of more than one character; the longest is found first."""
        names = [self.show(np.array([number])).strip() for number in self._special - self._tags]
        names = sorted((name for name in names if len(name) > 1), key=len, reverse=True)
        return re.compile("|".join(map(re.escape, names)) or r"(?!)")

    @cached_property
    def _special(self) -> frozenset[int]:
        """Ids of all special tokens."""
        added = self._tokenizer.added_tokens_decoder.items()
        return frozenset(self._tokenizer.all_special_ids) | {number for number, token in added if token.special}

    @cached_property
    def _tags(self) -> frozenset[int]:
        """Ids of the special tokens that are tags: neither their name nor their partner's has a role in the text."""
        names = {cast("str", self._tokenizer.convert_ids_to_tokens(number)): number for number in self._special}
        roles = [getattr(self._tokenizer, f"{role}_token", None) for role in _ROLES]
        turn = self._user_turn() if self.has_template() else ""
        found = {name for name in names if name not in roles and name not in turn}
        return frozenset(names[name] for name in found if _partner(name) in found)

    def _user_turn(self) -> str:
        """Render a user's turn alone: the tokens in it divide turns. The prompt for the assistant's may open a tag."""
        try:
            return self._rendered(_ASKED, DEFAULT_STYLE, continues=False, add_generation_prompt=False)
        except (TemplateError, ValueError, TypeError, KeyError):  # it wants more than this, and says nothing of them
            return ""

    def save(self, folder: Path) -> None:
        """Write the tokenizer beside a model, as it was read."""
        save_tokenizer(self._tokenizer, folder)

    def _required(self, name: str) -> int:
        value = getattr(self._tokenizer, name)
        if value is None:
            raise ConfigError(f"the model's tokenizer has no {name}; responses could not end")
        return int(value)


def _partner(tag: str) -> str | None:
    """Return the tag that closes or opens ``tag``; None for what is no tag."""
    parts = _TAG.fullmatch(tag)
    return None if parts is None else f"{parts[1]}{'' if parts[2] else '/'}{parts[3]}{parts[4]}"
