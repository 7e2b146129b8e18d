"""Environments of other systems, told by their shape, as environments of this one. Standard library only."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from lpo_ray.agents.environment import Environment


def adapt(found: Callable[..., Any], name: str) -> Callable[[], Environment]:
    """Return what makes an Environment of what ``name`` names. Raises TypeError for what has no shape that is known."""
    if inspect.isclass(found) and issubclass(found, Environment):
        return found
    raise TypeError(
        f"task.environment is {name!r}, a {type(found).__name__}; expected a subclass of lpo_ray.agents.Environment"
    )
