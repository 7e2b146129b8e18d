"""Prompts of a generator: training problems of one seed without end, or ``num_train`` in epochs, and held-out ones."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from typing_extensions import override

from lpo_ray.errors import DataError
from lpo_ray.interfaces import PromptSource
from lpo_ray.policy.tokenizer import Messages
from lpo_ray.records import IntArray, Prompt
from lpo_ray.tasks.sources.source import HELDOUT_SEED, PromptEncoder, Split, cycled


class GeneratedSource(PromptSource, ABC):
    """PromptSource of a generator with random access: a problem is known by seed, split and number."""

    def __init__(self, seed: int, num_train: int | None) -> None:
        self._seed, self._num_train = seed, num_train

    @override
    def train(self, index: int) -> Prompt:
        problem = cycled(self._seed, index, self._num_train)
        return self._prompt(f"train-{index:08d}", self._seed, "train", problem)

    @override
    def heldout(self, count: int) -> Sequence[Prompt]:
        """Make the first ``count`` problems of the held-out split; the same for every seed."""
        return [self._prompt(f"heldout-{number:08d}", HELDOUT_SEED, "heldout", number) for number in range(count)]

    @abstractmethod
    def _prompt(self, prompt_id: str, seed: int, split: Split, problem: int) -> Prompt:
        """Make problem number ``problem`` of ``seed`` in ``split``."""


def encoded(encoder: PromptEncoder, shown: str | Messages, task: str, prompt_id: str, remedy: str) -> IntArray:
    """Encode a generated prompt, [T]. Raises DataError, with what to lower, when it leaves no room for a response."""
    token_ids = encoder.encode(shown)
    if len(token_ids) > encoder.max_tokens:
        raise DataError(
            f"{task} prompt {prompt_id} has {len(token_ids)} tokens, but the model's context leaves room for "
            f"{encoder.max_tokens}; lower {remedy}"
        )
    return token_ids
