"""Where prompts come from. A source is random-access: prompt number i of a run is the same at every call, so a run
resumes from a number and two runs with one seed see the same prompts.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from hashlib import blake2b
from typing import Literal, NamedTuple

import numpy as np

from lpo_ray.errors import DataError, UnusableRow
from lpo_ray.interfaces import PromptSource
from lpo_ray.policy.tokenizer import ChatStyle, Messages, Tokenizer
from lpo_ray.records import IntArray, Prompt
from lpo_ray.tasks.prompt_form import PromptForm, no_system_prompt

Split = Literal["train", "heldout"]
DEFAULT_FORM = PromptForm()
TRIES = 100
"""training prompts that are looked at for each that is wanted"""
HEAD_CHARACTERS = 64
"""characters for each token that a prompt may have, after which a text is most likely too long"""
HELDOUT_SEED = 0
"""seed of the held-out problems of generators: the same for every run, so that runs can be compared"""


class Rendered(NamedTuple):
    """A prompt as text, and the tokens that stand before those of the text."""

    text: str
    begin: tuple[int, ...]
    """tokens that the tokenizer puts before a text that no chat template has rendered"""


class PromptEncoder:
    """Encoder from a prompt to the token ids that the engine is given: text as it is or as the user's turn, messages
    through the chat template whatever task.template says.
    """

    def __init__(self, tokenizer: Tokenizer, template: str, max_tokens: int, form: PromptForm = DEFAULT_FORM) -> None:
        """``max_tokens``: the longest prompt that leaves room for a response."""
        if template not in ("plain", "chat"):
            raise DataError(f"task.template is {template!r}; expected plain or chat")
        if template == "chat" and not tokenizer.has_template(form.style):
            raise DataError(
                "task.template=chat, but the model's tokenizer has no chat template; use task.template=plain, or name "
                "a file of one as task.chat_template"
            )
        if unknown := tokenizer.unknown_variables(form.style):
            raise DataError(
                f"task.chat_template_kwargs has {', '.join(unknown)}, which the chat template does not read; expected "
                "variables of it"
            )
        self._tokenizer, self._template, self._form, self.max_tokens = tokenizer, template, form, max_tokens
        self.uses_chat_template = template == "chat"
        """whether a prompt went through the chat template, or every one will"""

    def encode(self, prompt: str | Messages) -> IntArray:
        """Encode a prompt: [T] token ids. DataError for messages that cannot be rendered."""
        return self.encode_many([self.render(prompt)])[0]

    def encode_many(self, rendered: Sequence[Rendered]) -> list[IntArray]:
        """Encode prompts that ``render`` made, together. A text that brings its own beginning gets no second."""
        rows = self._tokenizer.encode_many([prompt.text for prompt in rendered])
        return [
            row
            if tuple(row[: len(prompt.begin)]) == prompt.begin
            else np.concatenate([np.asarray(prompt.begin, dtype=np.int64), row])
            for prompt, row in zip(rendered, rows, strict=True)
        ]

    def count_many(self, rendered: Sequence[Rendered]) -> list[int]:
        """Count the tokens of prompts. Of a text that is far too long only the beginning is encoded: its count is a
        lower bound, above ``max_tokens``.
        """
        head = HEAD_CHARACTERS * max(self.max_tokens, 1)
        counts = [len(row) for row in self.encode_many([Rendered(text[:head], begin) for text, begin in rendered])]
        unsure = [
            place
            for place, prompt in enumerate(rendered)
            if len(prompt.text) > head and counts[place] <= 2 * self.max_tokens  # the cut may change the last tokens
        ]
        for place in unsure:
            counts[place] = len(self.encode_many([rendered[place]])[0])
        return counts

    def render(self, prompt: str | Messages) -> Rendered:
        """Render the text whose tokens the engine is given. DataError for messages that cannot be rendered."""
        form, messages = self._form, self.conversation(prompt)
        if isinstance(prompt, str) and messages is None:
            if form.system_prompt is not None:
                raise no_system_prompt(prompt)
            return Rendered(form.text(prompt), self._tokenizer.begin_ids)
        assert messages is not None
        self.uses_chat_template = True
        return Rendered(self._tokenizer.render(messages, form.style), ())

    def conversation(self, prompt: str | Messages) -> Messages | None:
        """Return the messages that a prompt is rendered from; None: it is encoded as plain text."""
        if isinstance(prompt, str):
            return None if self.is_plain else self._form.conversation([{"role": "user", "content": prompt}])
        return self._form.conversation(prompt)

    @property
    def is_plain(self) -> bool:
        """Whether texts are encoded as they are."""
        return self._template == "plain"

    @property
    def style(self) -> ChatStyle:
        """Style in which messages are rendered."""
        return self._form.style

    @property
    def end_of_turn(self) -> int | None:
        """Token that ends the assistant's turn in the chat template; None where no prompt uses one."""
        return self._tokenizer.end_of_turn(self._form.style) if self.uses_chat_template else None


def first_usable(source: PromptSource, count: int) -> list[Prompt]:
    """Make the first ``count`` training prompts that can be scored. Looks at TRIES times as many; DataError when none
    of these can.
    """
    found: list[Prompt] = []
    reason = ""
    for index in range(TRIES * count):
        try:
            found.append(source.train(index))
        except UnusableRow as unusable:
            reason = str(unusable)
        if len(found) == count:
            break
    if not found:
        raise DataError(f"none of the first {TRIES * count} training prompts can be used; the last: {reason}")
    return found


def cycled(seed: int, index: int, num_train: int | None) -> int:
    """Choose which problem of a generator training prompt ``index`` is: itself, or with ``num_train`` one of so many,
    each epoch in an order of its own.
    """
    if not num_train:
        return index
    epoch, position = divmod(index, num_train)
    return int(epoch_order(seed, epoch, num_train)[position])


@lru_cache(maxsize=2)  # a step's prompts may be of two epochs; made again for each prompt it would take the most time
def epoch_order(seed: int, epoch: int, size: int) -> IntArray:
    """Return the order of ``size`` rows in ``epoch``: a permutation of its own for each (seed, epoch). Read-only."""
    order = np.random.default_rng([seed, epoch]).permutation(size)
    order.setflags(write=False)
    return order


def split_of(problem: str, task: str, share: int) -> Split:
    """Decide where a generated problem belongs by the problem itself, whatever seed made it: one in ``share`` problems
    of a task is held out. ``task``: at most 16 bytes.
    """
    digest = blake2b(problem.encode(), digest_size=8, person=task.encode()).digest()
    return "heldout" if int.from_bytes(digest, "big") % share == 0 else "train"
