"""Countdown (LPO paper): reach a target from 3 or 4 numbers. Problems come from a seeded generator."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from typing_extensions import override

from lpo_ray.config.schema import TaskConfig
from lpo_ray.errors import ConfigError
from lpo_ray.records import Prompt
from lpo_ray.tasks.sources.countdown_problems import EXAMPLES, answer_json, conversation, generate, render
from lpo_ray.tasks.sources.generated import GeneratedSource, encoded
from lpo_ray.tasks.sources.source import PromptEncoder, Split
from lpo_ray.tasks.task import SourceContext, Task, known_only, refused

OPTIONS = {"examples": f"solved problems shown as earlier turns, 0 to {len(EXAMPLES)}; needs task.template=chat"}


class CountdownSource(GeneratedSource):
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
        super().__init__(seed, num_train)
        self._counts, self._template, self._examples = tuple(counts), template, examples
        self._verifier, self._encoder = verifier, encoder

    @override
    def _prompt(self, prompt_id: str, seed: int, split: Split, problem: int) -> Prompt:
        made = generate(seed, problem, split=split, counts=self._counts)
        shown = conversation(made, self._examples) if self._examples else render(made, self._template)
        token_ids = encoded(self._encoder, shown, "countdown", prompt_id, "sampling.max_tokens")
        row = {"prompt": shown, "template": self._template}
        return Prompt(prompt_id, token_ids, answer_json(made), self._verifier, row)


def _make(task: TaskConfig, given: SourceContext) -> CountdownSource:
    return CountdownSource(
        seed=given.seed,
        counts=task.counts,
        template=task.template,
        examples=task.options.get("examples", 0),
        verifier=given.verifier,
        encoder=given.encoder,
        num_train=task.num_train,
    )


def _check(task: TaskConfig, num_heldout: int) -> None:
    known_only(task.options, OPTIONS, task.name)
    examples = task.options.get("examples", 0)
    if type(examples) is not int or not 0 <= examples <= len(EXAMPLES):
        raise refused("examples", examples, f"a whole number from 0 to {len(EXAMPLES)}")
    if examples and task.template != "chat":
        raise ConfigError(
            f"task.options.examples is {examples} with task.template={task.template}; earlier turns need a chat "
            "template: set task.template=chat, and a model.path that has one"
        )
    if not task.counts or any(count not in (3, 4) for count in task.counts):
        raise ConfigError(f"task.counts is {task.counts}; expected a list of 3 and 4, as in [3, 4]")


COUNTDOWN = Task(
    name="countdown",
    about="reach a target with every number exactly once by + - * /; reward 1, 0.1 for a well-formed expression, or 0",
    verifier="countdown",
    make=_make,
    check=_check,
    recommended={"task.template": "chat", "sampling.max_tokens": 1024},
)
COUNTDOWN_TURNS = replace(
    COUNTDOWN,
    name="countdown_turns",
    about="countdown in up to three tries: a wrong expression is answered with its value; reward of the last try",
    environment="countdown_turns",
    recommended={"task.template": "chat", "sampling.max_tokens": 512, "sampling.max_turns": 3},
)
