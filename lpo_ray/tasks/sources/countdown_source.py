"""Countdown as a prompt source: problems from the seeded generator."""

from __future__ import annotations

from collections.abc import Sequence

from lpo_ray.errors import DataError
from lpo_ray.records import Prompt
from lpo_ray.tasks.sources.countdown_problems import answer_json, conversation, generate, render
from lpo_ray.tasks.sources.source import PromptEncoder, cycled
from lpo_ray.tasks.sources.split import Split

HELDOUT_SEED = 0
"""held-out problems are the same for every run, so that runs can be compared"""


class CountdownSource:
    """Endless training problems of one seed (or ``num_train`` of them, cycled), and the held-out problems."""

    def __init__(
        self,
        *,
        seed: int,
        counts: Sequence[int],
        template: str,
        examples: int = 0,
        verifier: str,
        encoder: PromptEncoder,
        num_train: int | None,
    ) -> None:
        """``counts``: how many numbers a problem has, each equally often. ``examples``: solved problems that are shown
        as earlier turns in place of ``template``; 0: none.
        """
        self._seed, self._counts, self._template, self._examples = seed, tuple(counts), template, examples
        self._verifier, self._encoder, self._num_train = verifier, encoder, num_train

    def train(self, index: int) -> Prompt:
        """Problem ``index`` of this seed's training split."""
        problem = cycled(self._seed, index, self._num_train)
        return self._prompt(f"train-{index:08d}", self._seed, problem, "train")

    def heldout(self, count: int) -> Sequence[Prompt]:
        """The first ``count`` problems of the held-out split; the same for every seed."""
        return [self._prompt(f"heldout-{number:08d}", HELDOUT_SEED, number, "heldout") for number in range(count)]

    def _prompt(self, prompt_id: str, seed: int, index: int, split: Split) -> Prompt:
        problem = generate(seed, index, split=split, counts=self._counts)
        shown = conversation(problem, self._examples) if self._examples else render(problem, self._template)
        token_ids = self._encoder.encode(shown)
        if len(token_ids) > self._encoder.max_tokens:
            raise DataError(
                f"countdown prompt {prompt_id} has {len(token_ids)} tokens, but the model's context leaves room for "
                f"{self._encoder.max_tokens}; lower sampling.max_tokens"
            )
        return Prompt(prompt_id, token_ids, answer_json(problem), self._verifier)
