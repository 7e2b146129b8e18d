"""Where prompts come from. A source is random-access: prompt number i of a run is the same at every call, so a run
resumes from a number and two runs with one seed see the same prompts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from lpo_ray.errors import DataError
from lpo_ray.records import IntArray, Prompt
from lpo_ray.tokenizer import Tokenizer


class PromptSource(Protocol):
    """Training prompts by number, and held-out prompts."""

    def train(self, index: int) -> Prompt:
        """Training prompt number ``index`` of the run (0, 1, ...), without end. Its id sorts in this order."""
        ...

    def heldout(self, count: int) -> Sequence[Prompt]:
        """The first ``count`` held-out prompts; none of them is ever a training prompt."""
        ...


class PromptEncoder:
    """Text to the token ids the engine is given, through the plain text or the tokenizer's chat template."""

    def __init__(self, tokenizer: Tokenizer, template: str, max_tokens: int) -> None:
        """``max_tokens``: the longest prompt that leaves room for a response."""
        if template not in ("plain", "chat"):
            raise DataError(f"task.template is {template!r}; expected plain or chat")
        if template == "chat" and not tokenizer.has_chat_template:
            raise DataError(
                "task.template=chat, but the model's tokenizer has no chat template; use task.template=plain"
            )
        self.encode = tokenizer.encode_chat if template == "chat" else tokenizer.encode
        self.max_tokens = max_tokens


def epoch_order(seed: int, epoch: int, size: int) -> IntArray:
    """The order of ``size`` rows in ``epoch``: a permutation of its own for each (seed, epoch)."""
    return np.random.default_rng([seed, epoch]).permutation(size)
