"""Environments and tools by name, and what a name stands for. Standard library only."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from lpo_ray.agents.environment import Environment
from lpo_ray.agents.environments.solving import Solving
from lpo_ray.agents.limits import Hosted
from lpo_ray.common.plugins import resolve
from lpo_ray.verifiers.sandbox.limits import Limits

ENVIRONMENTS: dict[str, str] = {
    "countdown_turns": "lpo_ray.agents.environments.countdown_turns:CountdownTurns",
    "tools": "lpo_ray.agents.tools:ToolEnvironment",
}
"""task.environment -> class"""
TOOLS: dict[str, str] = {
    "calculator": "lpo_ray.agents.tools.builtin:calculator",
    "python": "lpo_ray.agents.tools.builtin:python_in",
}
"""name in task.tools -> function, or what makes it of the sandbox's limits"""
EnvironmentMaker = Callable[[], Environment]


def _resolved(name: str, table: Mapping[str, str], kind: str) -> Callable[..., Any]:
    known: dict[str, Callable[..., Any]] = {key: resolve for key in table}
    return resolve(table.get(name, name), known, kind)


def tool_named(name: str, sandbox: Limits) -> Callable[..., Any]:
    """Return the function that a row of TOOLS or ``file.py:function`` names. Raises UnknownName."""
    found = _resolved(name, TOOLS, "task.tools")
    return found(sandbox) if name == "python" else found


def environment_of(hosted: Hosted) -> EnvironmentMaker:
    """Return what makes the environment of a conversation, or runs an agent. Raises UnknownName, or ValueError for what
    is none.
    """
    if hosted.agent is not None:
        return partial(Solving, _resolved(hosted.agent, {}, "task.agent"))
    from lpo_ray.agents.environments.adapters import adapt
    from lpo_ray.agents.tools import ToolEnvironment

    name, functions = hosted.environment, [tool_named(tool, hosted.sandbox) for tool in hosted.tools]
    if name is None and not functions:
        raise ValueError("task.environment is null and task.tools is empty; expected one of them")
    maker = adapt(_resolved(name or "tools", ENVIRONMENTS, "task.environment"), name or "tools")

    def made() -> Environment:
        environment = maker()
        if isinstance(environment, ToolEnvironment):
            environment.hosted, environment.tools = hosted, [*environment.tools, *functions]
        elif functions:
            raise TypeError(
                f"task.tools is {list(hosted.tools)} with task.environment={name}, a {type(environment).__name__}; "
                "expected a subclass of lpo_ray.agents.tools.ToolEnvironment, or no tools"
            )
        return environment

    return made
