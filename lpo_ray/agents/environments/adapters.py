"""Environments of other systems, told by their shape, as environments of this one. Standard library only.

| shape | from | here |
|---|---|---|
| ``init(prompt)`` and ``step(action)`` | SkyRL-gym's text environments | ``TextGym`` |
| ``reset(**row)`` and methods that are tools | TRL's environment_factory | ``MethodTools`` |
| ``rollout(input, client, model, ...)`` and a ``rubric`` | verifiers | ``Rollout`` |
| a subclass of ``OpenEnv`` | a server with reset and step | ``openenv.py`` |
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, cast

from lpo_ray.agents.environment import Environment, Message, Step, prompt_messages
from lpo_ray.agents.environments.foreign_rollout import Rollout
from lpo_ray.agents.tools import ToolEnvironment
from lpo_ray.agents.user_code import called

Maker = Callable[[], Environment]


def adapt(found: Any, name: str) -> Maker:  # noqa: ANN401 - whatever the name names
    """Return what makes an Environment of what ``name`` names. Raises TypeError for what has no shape that is known."""
    if inspect.isclass(found):
        return _of_class(found, name)
    if _has(found, "rollout", "rubric"):
        return lambda: Rollout(found)
    if not callable(found):
        raise _unknown(found, name)
    made = found()
    if isinstance(made, Environment):
        return lambda: cast("Environment", found())
    if inspect.isclass(made):
        return _of_class(made, name)
    if _has(made, "rollout", "rubric"):  # one for all conversations
        return lambda: Rollout(made)
    if _has(made, "init", "step"):
        return lambda: TextGym(found)
    if _has(made, "reset"):
        return lambda: MethodTools(found)
    raise _unknown(made, name)


def _of_class(found: type, name: str) -> Maker:
    if issubclass(found, Environment):
        return found
    if _has(found, "init", "step"):
        return lambda: TextGym(found)
    if _has(found, "rollout", "rubric") or _has(found, "rollout", "add_rubric"):
        made = found()
        return lambda: Rollout(made)
    if _has(found, "reset"):
        return lambda: MethodTools(found)
    raise _unknown(found, name)


def _has(thing: object, *names: str) -> bool:
    return all(hasattr(thing, name) for name in names)


def _unknown(found: object, name: str) -> TypeError:
    what = found if inspect.isclass(found) else type(found)
    return TypeError(
        f"task.environment is {name!r}, which is {what.__name__}; expected a subclass of lpo_ray.agents.Environment, "
        "or an environment of verifiers, SkyRL-gym or TRL, or a function that returns one"
    )


class TextGym(Environment):
    """Environment of SkyRL-gym: ``init(prompt)``, and ``step(action)`` with observations, reward and done. The verdict
    is the sum of the rewards.
    """

    def __init__(self, make: Callable[..., Any]) -> None:
        self._make, self._total = make, 0.0

    async def reset(self, row: Mapping[str, Any]) -> list[Message]:
        """Make the environment from the row, its extras, and return what it makes of the prompt."""
        extras = {"reward_spec": {"ground_truth": row.get("answer")}, **row}
        known = {"env_config": row.get("env_config", {}), "extras": extras}
        self._foreign = await called(self._make, **_taken(self._make, known))
        messages, _ = await called(self._foreign.init, prompt_messages(row))
        return list(messages)

    async def step(self, reply: Message) -> Step:
        """Let it take the action."""
        found = await called(self._foreign.step, reply["content"])
        self._total += float(found["reward"])
        return Step(found["observations"], self._total, bool(found["done"]))

    async def close(self) -> None:
        """Close it."""
        if hasattr(self, "_foreign"):
            await called(self._foreign.close)


class MethodTools(ToolEnvironment):
    """Environment of TRL: its methods are tools, ``reset(**row)`` may return more of the prompt, and ``get_reward()``,
    where it has that, is the verdict; else the task's verifier scores.
    """

    def __init__(self, make: Callable[[], Any]) -> None:
        self._foreign = make()
        named = inspect.getmembers(type(self._foreign), inspect.isfunction)
        self.tools = [
            getattr(self._foreign, name)
            for name, _ in named
            if not name.startswith("_") and name not in ("reset", "get_reward", "close")
        ]

    async def reset(self, row: Mapping[str, Any]) -> list[Message]:
        """Reset it with the row."""
        reset = self._foreign.reset
        said = await called(reset, **_taken(reset, row))
        messages = prompt_messages(row)
        if said and messages:
            messages[-1] = {**messages[-1], "content": messages[-1]["content"] + _text(said)}
        return messages or [{"role": "user", "content": _text(said)}]

    async def step(self, reply: Message) -> Step:
        """Run the calls; ask for the reward as it stands."""
        found = await super().step(reply)
        if not hasattr(self._foreign, "get_reward"):
            return found
        return Step(found.messages, await called(self._foreign.get_reward), found.done)

    async def close(self) -> None:
        """Close it where it can be."""
        if hasattr(self._foreign, "close"):
            await called(self._foreign.close)


def _text(said: Any) -> str:  # noqa: ANN401 - of another system
    """Return what ``reset`` says as text: it may be a list of parts. Raises TypeError for a part that is no text."""
    if said is None or isinstance(said, str):
        return said or ""
    if isinstance(said, list) and all(isinstance(part, Mapping) and part.get("type") == "text" for part in said):
        return "".join(str(part["text"]) for part in said)
    raise TypeError(f"reset returned {type(said).__name__} {str(said)[:80]!r}; expected a text, or parts of type text")


def _taken(function: Callable[..., Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Choose what a function takes of ``given``: what it names, or all of it when it takes any keyword."""
    parameters = inspect.signature(function).parameters
    takes_all = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    return {name: value for name, value in given.items() if takes_all or name in parameters}
