"""Reasoning Gym: over a hundred generators of problems, each with its own scorer. ``task.name=reasoning_gym:NAME`` is
one of them, and task.options are its options.

Random access: entry k of a block is entry k of a dataset that is made with a seed of its own, derived from (run seed,
generator, split, draw, block). Train and held-out are disjoint by construction, whatever the seeds: where a question
belongs is decided by its text, and draws of the other split are passed over.
"""

from __future__ import annotations

import difflib
import weakref
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import fields
from typing import TYPE_CHECKING

from typing_extensions import override

from lpo_ray.common.seeds import derive_seed
from lpo_ray.config.schema import TaskConfig
from lpo_ray.errors import ConfigError, DataError
from lpo_ray.records import Prompt
from lpo_ray.tasks.gym_process import ORDERED_BY_HASH, GeneratorProcess, RemoteDataset
from lpo_ray.tasks.sources.generated import GeneratedSource
from lpo_ray.tasks.sources.source import PromptEncoder, Split, split_of
from lpo_ray.tasks.task import SourceContext, Task, variant_of
from lpo_ray.verifiers.reasoning_gym import made_dataset

if TYPE_CHECKING:
    from reasoning_gym.dataset import ProceduralDataset

    Dataset = ProceduralDataset | RemoteDataset

INSTRUCTION = "\n\nGive the final answer between <answer> and </answer>."
HELDOUT_SHARE = 4
"""one question in so many is held out; with more, held-out ones take as many draws, and some generators are slow"""
MAX_DRAWS = 1000
"""draws for one problem; a generator that has hardly any question of a split is refused instead of searched for ever"""
BLOCK = 64
"""entries of one seed; some generators make all entries of a dataset when it is made"""
KEPT_BLOCKS = 32
_REFUSALS = (AssertionError, AttributeError, ValueError, TypeError, KeyError)
"""how the library's configurations say what they do not take"""


class ReasoningGymSource(GeneratedSource):
    """Endless training problems of one generator (or ``num_train`` of them, cycled), and its held-out problems."""

    def __init__(
        self,
        *,
        seed: int,
        name: str,
        options: Mapping[str, object],
        verifier: str,
        encoder: PromptEncoder,
        num_train: int | None,
    ) -> None:
        """``name``: of the generator; ``options``: fields of its configuration other than seed and size.

        Raises ConfigError for a name or options that the generator does not have.
        """
        super().__init__(seed, num_train)
        self._name, self._options, self._verifier, self._encoder = name, dict(options), verifier, encoder
        self._blocks: OrderedDict[int, Dataset] = OrderedDict()
        self._process: GeneratorProcess | None = None
        _check(name, self._options)
        self._block(0)

    @override
    def _prompt(self, prompt_id: str, seed: int, split: Split, problem: int) -> Prompt:
        """Take the first draw for ``problem`` that is of ``split`` and leaves room for a response."""
        block, number = divmod(problem, BLOCK)
        too_long = 0
        for draw in range(MAX_DRAWS):
            entry = self._block(derive_seed(seed, "reasoning_gym", self._name, split, draw, block) % 2**32)[number]
            if split_of_question(entry["question"]) != split:
                continue
            text = entry["question"] + INSTRUCTION
            token_ids = self._encoder.encode(text)
            if len(token_ids) > self._encoder.max_tokens:
                too_long += 1
                continue
            row = {"prompt": text, "dataset": self._name, "options": self._options, "entry": entry}
            return Prompt(prompt_id, token_ids, str(entry["answer"] or ""), self._verifier, row)
        why = f"{too_long} were longer than the {self._encoder.max_tokens} tokens that leave room for a response" * (
            too_long > 0
        )
        raise DataError(
            f"task.name=reasoning_gym:{self._name}: {MAX_DRAWS} draws gave no {split} problem{': ' * bool(why)}{why}. "
            "Expected more different or shorter questions: change its options, or lower sampling.max_tokens"
        )

    def _block(self, seed: int) -> Dataset:
        """Return the BLOCK entries of one seed; those asked for lately are kept."""
        if seed not in self._blocks:
            self._blocks[seed] = self._made(seed)
            if len(self._blocks) > KEPT_BLOCKS:
                self._blocks.popitem(last=False)
        self._blocks.move_to_end(seed)
        return self._blocks[seed]

    def _made(self, seed: int) -> Dataset:
        settings = {**self._options, "seed": seed, "size": BLOCK}
        if self._process is not None:
            return RemoteDataset(self._process, self._name, settings)
        try:
            made = made_dataset(self._name, settings)
        except _REFUSALS as error:
            raise ConfigError(
                f"task.name=reasoning_gym:{self._name} with options {self._options} was refused: {error}; expected "
                f"values that {self._name} takes"
            ) from error
        if self._name not in ORDERED_BY_HASH:
            return made
        self._process = GeneratorProcess()
        weakref.finalize(self, self._process.close)
        return RemoteDataset(self._process, self._name, settings)


def generators() -> list[str]:
    """List the names of all generators."""
    from reasoning_gym.factory import DATASETS

    return sorted(DATASETS)


def split_of_question(question: str) -> Split:
    """Decide where a question belongs, whatever the spaces between its words."""
    return split_of(" ".join(question.split()), "reasoning_gym", HELDOUT_SHARE)


def _check(name: str, options: Mapping[str, object]) -> None:
    known = generators()
    if name not in known:
        close = difflib.get_close_matches(name, known, n=5, cutoff=0.4)
        hint = f"such as {', '.join(close)}" if close else f"one of {', '.join(known)}"
        raise ConfigError(f"task.name is 'reasoning_gym:{name}', which is no generator; expected {hint}")
    from reasoning_gym.factory import DATASETS

    taken = [field.name for field in fields(DATASETS[name][1]) if field.name not in ("seed", "size")]
    unknown = sorted(set(options) - set(taken))
    if unknown:
        raise ConfigError(
            f"task.name=reasoning_gym:{name} has no option {', '.join(unknown)}; expected among {', '.join(taken)}"
        )


def _make(task: TaskConfig, given: SourceContext) -> ReasoningGymSource:
    try:
        return ReasoningGymSource(
            seed=given.seed,
            name=variant_of(task.name),
            options=task.options,
            verifier=given.verifier,
            encoder=given.encoder,
            num_train=task.num_train,
        )
    except ImportError as error:
        raise ConfigError(f"task.name is {task.name!r}, which needs `pip install reasoning-gym`: {error}") from error


REASONING_GYM = Task(
    name="reasoning_gym",
    about="problems of one of Reasoning Gym's generators; reward by the generator's own scorer, 0 to 1",
    verifier="reasoning_gym",
    make=_make,
    recommended={"task.template": "chat", "sampling.max_tokens": 1024},
    takes_variant=True,
)
