"""Reasoning Gym: ``task.name=reasoning_gym:NAME`` is one of its generators, task.options are the generator's."""

from __future__ import annotations

from lpo_ray.config.schema import TaskConfig
from lpo_ray.errors import ConfigError
from lpo_ray.interfaces import PromptSource
from lpo_ray.tasks.task import SourceContext, Task, variant_of


def _make(task: TaskConfig, given: SourceContext) -> PromptSource:
    try:
        from lpo_ray.tasks.reasoning_gym import ReasoningGymSource
    except ImportError as error:
        raise ConfigError(f"task.name is {task.name!r}, which needs `pip install reasoning-gym`: {error}") from error
    return ReasoningGymSource(
        seed=given.seed,
        name=variant_of(task.name),
        options=task.options,
        verifier=given.verifier,
        encoder=given.encoder,
        num_train=task.num_train,
    )


REASONING_GYM = Task(
    name="reasoning_gym",
    about="problems of one of Reasoning Gym's generators; reward by the generator's own scorer, 0 to 1",
    verifier="reasoning_gym",
    make=_make,
    recommended={"task.template": "chat", "sampling.max_tokens": 1024},
    takes_variant=True,
)
