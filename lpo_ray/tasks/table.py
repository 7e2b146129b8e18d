"""Tasks by name: where prompts come from, and what checks responses. A new one is a file here and a row of TASKS."""

from __future__ import annotations

from dataclasses import replace

from lpo_ray.agents.tools.calls import PARSERS
from lpo_ray.common.plugins import UnknownName, resolve
from lpo_ray.config.conversations import is_conversation
from lpo_ray.config.ranges import LARGEST
from lpo_ray.config.schema import TaskConfig
from lpo_ray.errors import ConfigError
from lpo_ray.tasks.arithmetic_tool import ARITHMETIC_TOOL
from lpo_ray.tasks.countdown import COUNTDOWN, COUNTDOWN_TURNS
from lpo_ray.tasks.dataset import CODE, DATASET, GEOMETRY, MATH
from lpo_ray.tasks.prompt_form import form_of
from lpo_ray.tasks.reasoning_gym import REASONING_GYM
from lpo_ray.tasks.task import Task, variant_of
from lpo_ray.tasks.token_reversal import TOKEN_REVERSAL
from lpo_ray.verifiers.table import VERIFIERS

TASKS: dict[str, Task] = {
    "countdown": COUNTDOWN,
    "countdown_turns": COUNTDOWN_TURNS,
    "arithmetic_tool": ARITHMETIC_TOOL,
    "math": MATH,
    "code": CODE,
    "geometry": GEOMETRY,
    "token_reversal": TOKEN_REVERSAL,
    "reasoning_gym": REASONING_GYM,
    "dataset": DATASET,
}
"""task.name -> task"""


def task_named(name: str) -> Task:
    """Return a row of TASKS, or what the function that "package.module:function" names returns. ConfigError."""
    base, variant = name.partition(":")[0], variant_of(name)
    if base in TASKS:
        task = TASKS[base]
        if task.takes_variant != bool(variant):
            expected = f"{base}:NAME" if task.takes_variant else base
            raise ConfigError(f"task.name is {name!r}; expected {expected}")
        return task
    try:
        made = resolve(name, {key: lambda task=task: task for key, task in TASKS.items()}, "task.name")()
    except UnknownName as error:
        raise ConfigError(str(error)) from error
    if not isinstance(made, Task):
        raise ConfigError(f"task.name is {name!r}, which returned a {type(made).__name__}; expected a Task")
    return made


def check_task(task: TaskConfig, num_heldout: int) -> None:
    """Check that the task is known, its files are there and its settings are its own. ConfigError otherwise."""
    found = task_named(task.name)
    if task.num_train is not None and not 1 <= task.num_train <= LARGEST:
        raise ConfigError(f"task.num_train is {task.num_train}; expected 1 to {LARGEST:,}, or null for all")
    if task.tool_parser not in ("auto", *PARSERS):
        raise ConfigError(f"task.tool_parser is {task.tool_parser!r}; expected auto or one of {', '.join(PARSERS)}")
    form_of(task)
    found.check(task, num_heldout)


def with_environment(task: TaskConfig) -> TaskConfig:
    """Fill in the task's own environment and tools where none are set. Raises ConfigError for an unknown task."""
    own = task_named(task.name)
    if is_conversation(task) or (own.environment is None and not own.tools):
        return task
    return replace(task, environment=own.environment, tools=list(own.tools))


def verifier_of(task: TaskConfig) -> str:
    """Return what checks the responses: task.verifier, or the task's own. ConfigError when it has none."""
    name = task.verifier or task_named(task.name).verifier
    if name is None:
        asked = " (asked where the environment has no verdict)" if is_conversation(task) else ""
        raise ConfigError(
            f"task.name={task.name} has no verifier of its own{asked}; set task.verifier to one of "
            f"{', '.join(VERIFIERS)}, or to 'module:function'"
        )
    return name
