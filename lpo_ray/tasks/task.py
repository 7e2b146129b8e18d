"""Task: a name for where prompts come from, and what is best known to check and sample its responses."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from lpo_ray.config.schema import TaskConfig
from lpo_ray.errors import ConfigError
from lpo_ray.interfaces import PromptSource
from lpo_ray.tasks.sources.source import PromptEncoder


@dataclass(frozen=True, slots=True)
class SourceContext:
    """Values that a task's source needs beside the task section."""

    seed: int
    verifier: str
    """verifier that the prompts name"""
    encoder: PromptEncoder


def nothing_to_check(task: TaskConfig, num_heldout: int) -> None:
    """Check nothing: the ``check`` of a task that takes any settings."""


@dataclass(frozen=True, slots=True)
class Task:
    """One row of TASKS. It is the composition root of its source: it alone reads the task section."""

    name: str
    about: str
    """one sentence: prompt, answer, reward"""
    verifier: str | None
    """when task.verifier is null; None: the configuration must name one"""
    make: Callable[[TaskConfig, SourceContext], PromptSource]
    """DataError when the data cannot be used"""
    check: Callable[[TaskConfig, int], None] = nothing_to_check
    """checks the section and evaluation.num_prompts before anything is read. ConfigError"""
    recommended: Mapping[str, object] = field(default_factory=dict)
    """section.key -> value to begin with, for models of the size that the task is for"""
    environment: str | None = None
    """what its responses are conversations with, when task.environment is null and task.tools empty"""
    tools: tuple[str, ...] = ()
    """tools that the policy may call, likewise"""
    takes_variant: bool = False
    """whether task.name continues with a colon and the name of one of many"""


def variant_of(name: str) -> str:
    """Return what stands after the colon of task.name; empty when there is none."""
    return name.partition(":")[2]


def known_only(options: Mapping[str, object], known: Mapping[str, str], task: str) -> None:
    """Raise ConfigError when there is an option other than ``known`` (name -> what it is)."""
    unknown = sorted(set(options) - set(known))
    if unknown:
        expected = "; ".join(f"{name}: {what}" for name, what in known.items()) or "none"
        raise ConfigError(f"task.options has {', '.join(unknown)}, which task.name={task} has not; expected {expected}")


def refused(name: str, value: object, expected: str) -> ConfigError:
    """Make the error for an option of the wrong value."""
    return ConfigError(f"task.options.{name} is {value!r}; expected {expected}")
