"""Countdown (LPO paper): reach a target from 3 or 4 numbers. Problems come from a seeded generator."""

from __future__ import annotations

from lpo_ray.config.schema import TaskConfig
from lpo_ray.errors import ConfigError
from lpo_ray.tasks.options import known_only, refused
from lpo_ray.tasks.sources.countdown_problems import EXAMPLES
from lpo_ray.tasks.sources.countdown_source import CountdownSource
from lpo_ray.tasks.task import SourceContext, Task

OPTIONS = {"examples": f"solved problems shown as earlier turns, 0 to {len(EXAMPLES)}; needs task.template=chat"}


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
    known_only(task.options, OPTIONS, "countdown")
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
