"""Token reversal (TPO, arXiv 2604.06159): say H random symbols of a vocabulary of V backwards.

A benchmark of optimisers, not of models: its one setting that matters is H, with which a reward at the end becomes rare
(V^-H of random responses have it). TPO takes V = 2, H = 7 to 10, K = 8, 100 prompts a step, and its model knows the V
symbols only, so that a response has H of them. Here it knows more, so sampling.max_tokens is to be H, or 2 H - 1 with a
separator, in tokens of the model.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from lpo_ray.common.seeds import derive_seed
from lpo_ray.config.schema import TaskConfig
from lpo_ray.errors import DataError
from lpo_ray.records import Prompt
from lpo_ray.tasks.sources.generated import encoded
from lpo_ray.tasks.sources.source import HELDOUT_SEED, PromptEncoder, cycled, split_of
from lpo_ray.tasks.task import SourceContext, Task, known_only, refused

SYMBOLS = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
HELDOUT_SHARE = 8
"""one sequence in so many is held out. TPO holds none out"""
MAX_DRAWS = 100_000
"""draws for one prompt, and for all held-out ones"""
OPTIONS = {
    "lengths": "H, a list of which each is equally often, such as [7]",
    "vocabulary": f"V, 2 to {len(SYMBOLS)}",
    "separator": "between symbols, such as ' ' for tokenizers that join them",
}


@dataclass(frozen=True, slots=True)
class Settings:
    """Options of this task, as task.options has them."""

    lengths: tuple[int, ...] = (7,)
    vocabulary: int = 2
    separator: str = ""


class TokenReversalSource:
    """Endless sequences of one seed (or ``num_train`` of them, cycled), and the held-out sequences.

    Train and held-out are disjoint whatever the seeds: where a sequence belongs is decided by the sequence.
    """

    def __init__(
        self, *, seed: int, settings: Settings, verifier: str, encoder: PromptEncoder, num_train: int | None
    ) -> None:
        self._seed, self._settings, self._verifier = seed, settings, verifier
        self._encoder, self._num_train = encoder, num_train

    def train(self, index: int) -> Prompt:
        """Make sequence ``index`` of this seed's training split."""
        number = cycled(self._seed, index, self._num_train)
        rng = random.Random(derive_seed(self._seed, "token_reversal", "train", number))
        for _ in range(MAX_DRAWS):
            if split_of(symbols := self._drawn(rng), "token_reversal", HELDOUT_SHARE) == "train":
                return self._prompt(f"train-{index:08d}", symbols)
        raise DataError(
            f"{MAX_DRAWS} draws gave no training sequence with task.options {self._settings}; expected more"
        )

    def heldout(self, count: int) -> Sequence[Prompt]:
        """Make the first ``count`` different held-out sequences, the same for every seed. DataError when there are
        fewer.
        """
        rng = random.Random(derive_seed(HELDOUT_SEED, "token_reversal", "heldout"))
        found: dict[str, None] = {}
        for _ in range(MAX_DRAWS):
            if len(found) == count:
                break
            if split_of(symbols := self._drawn(rng), "token_reversal", HELDOUT_SHARE) == "heldout":
                found[symbols] = None
        if len(found) < count:
            raise DataError(
                f"evaluation.num_prompts is {count}, but {MAX_DRAWS} draws gave {len(found)} different held-out "
                f"sequences (1 in {HELDOUT_SHARE} is one); lower it, or raise task.options.lengths or vocabulary"
            )
        return [self._prompt(f"heldout-{number:08d}", symbols) for number, symbols in enumerate(found)]

    def _drawn(self, rng: random.Random) -> str:
        length = rng.choice(self._settings.lengths)
        return "".join(rng.choices(SYMBOLS[: self._settings.vocabulary], k=length))

    def _prompt(self, prompt_id: str, symbols: str) -> Prompt:
        join = self._settings.separator.join
        text = f"{join(symbols)}>"
        remedy = "task.options.lengths or sampling.max_tokens"
        token_ids = encoded(self._encoder, text, "token_reversal", prompt_id, remedy)
        return Prompt(prompt_id, token_ids, join(reversed(symbols)), self._verifier, {"prompt": text})


def _settings(task: TaskConfig) -> Settings:
    """Parse task.options. Raises ConfigError."""
    known_only(task.options, OPTIONS, "token_reversal")
    found = Settings(**{**task.options, "lengths": tuple(_list(task.options.get("lengths", [7])))})
    if not found.lengths or any(type(length) is not int or not 1 <= length <= 1000 for length in found.lengths):
        raise refused("lengths", task.options["lengths"], "a list of numbers from 1 to 1000, such as [7]")
    if type(found.vocabulary) is not int or not 2 <= found.vocabulary <= len(SYMBOLS):
        raise refused("vocabulary", found.vocabulary, f"2 to {len(SYMBOLS)}")
    if not isinstance(found.separator, str) or found.separator.strip():
        raise refused("separator", found.separator, "spaces or nothing, which the verifier does not look at")
    return found


def _list(value: object) -> list[int]:
    if not isinstance(value, list):
        raise refused("lengths", value, "a list of numbers from 1 to 1000, such as [7]")
    return value


def _make(task: TaskConfig, given: SourceContext) -> TokenReversalSource:
    return TokenReversalSource(
        seed=given.seed,
        settings=_settings(task),
        verifier=given.verifier,
        encoder=given.encoder,
        num_train=task.num_train,
    )


def _check(task: TaskConfig, num_heldout: int) -> None:
    _settings(task)


TOKEN_REVERSAL = Task(
    name="token_reversal",
    about="say the prompt's symbols backwards; reward 1 for all of them, else 0",
    verifier="token_reversal",
    make=_make,
    check=_check,
    recommended={"sampling.group_size": 8, "pipeline.groups_per_step": 100, "objective.length_norm": "sum"},
)
