"""task.options, which each task reads in its own way."""

from __future__ import annotations

from collections.abc import Mapping

from lpo_ray.errors import ConfigError


def known_only(options: Mapping[str, object], known: Mapping[str, str], task: str) -> None:
    """ConfigError when there is an option other than ``known`` (name -> what it is)."""
    unknown = sorted(set(options) - set(known))
    if unknown:
        expected = "; ".join(f"{name}: {what}" for name, what in known.items()) or "none"
        raise ConfigError(f"task.options has {', '.join(unknown)}, which task.name={task} has not; expected {expected}")


def refused(name: str, value: object, expected: str) -> ConfigError:
    """What to raise for an option of the wrong value."""
    return ConfigError(f"task.options.{name} is {value!r}; expected {expected}")
