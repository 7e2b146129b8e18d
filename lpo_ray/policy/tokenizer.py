"""Tokenizer of a model: text to token ids once, token ids to text for people and verifiers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
from jinja2 import TemplateError
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from lpo_ray.errors import ConfigError, DataError
from lpo_ray.policy.loading import not_loaded
from lpo_ray.policy.saving import save_tokenizer
from lpo_ray.records import IntArray

Messages = Sequence[Mapping[str, Any]]
"""a conversation; each message has a role and a content, which is text"""


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

    @property
    def has_chat_template(self) -> bool:
        """Whether the tokenizer has a chat template, which ``render`` needs."""
        return self._tokenizer.chat_template is not None

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

    def encode_chat(self, text: str) -> IntArray:
        """Encode ``text`` as the user's turn, with the prompt for the assistant's -> [T] token ids."""
        return self.encode_messages([{"role": "user", "content": text}])

    def encode_messages(self, messages: Messages) -> IntArray:
        """Encode a conversation through the chat template (``render``) -> [T] token ids."""
        return self.encode(self.render(messages))

    def render(self, messages: Messages) -> str:
        """Render a conversation through the chat template, with the prompt for the assistant's turn.

        When the last message is the assistant's, the response continues it. Raises DataError without a template, or
        when the template refuses the messages.
        """
        if not self.has_chat_template:
            raise DataError(
                "the prompt is messages, but the model's tokenizer has no chat template to render them with; expected "
                "prompts that are text, or a model.path with a chat template"
            )
        continues = messages[-1]["role"] == "assistant"
        try:
            rendered = self._tokenizer.apply_chat_template(
                [dict(message) for message in messages],
                add_generation_prompt=not continues,
                continue_final_message=continues,
                tokenize=False,
            )
        except (TemplateError, ValueError, TypeError, KeyError) as error:  # templates are programs, and check little
            raise DataError(
                f"the model's chat template refuses the messages: {type(error).__name__}: {error}"
            ) from error
        return cast("str", rendered)

    def decode(self, token_ids: IntArray) -> str:
        """Turn token ids into text without special tokens."""
        return cast("str", self._tokenizer.decode(token_ids, skip_special_tokens=True))

    def show(self, token_ids: IntArray) -> str:
        """Turn token ids into text with special tokens: what the model sees."""
        return cast("str", self._tokenizer.decode(token_ids, skip_special_tokens=False))

    def save(self, folder: Path) -> None:
        """Write the tokenizer beside a model, as it was read."""
        save_tokenizer(self._tokenizer, folder)

    def _required(self, name: str) -> int:
        value = getattr(self._tokenizer, name)
        if value is None:
            raise ConfigError(f"the model's tokenizer has no {name}; responses could not end")
        return int(value)
