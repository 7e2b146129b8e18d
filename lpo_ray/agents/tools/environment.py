"""The environment of tools: a conversation goes on while the policy calls them, and ends with a reply without calls."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lpo_ray.agents.environment import Environment, Message, Step, Unavailable
from lpo_ray.agents.limits import Hosted
from lpo_ray.agents.tools.calls import ONE_ARGUMENT, ToolCall, read_json
from lpo_ray.agents.tools.schemas import Schema, schema_of, trouble_with, typed
from lpo_ray.agents.user_code import called, text_of

CUT = " ... (cut: {} characters in all)"
FAULTS = (Unavailable, ConnectionError, MemoryError)
"""errors of a tool that are not for the model"""
Tool = Callable[..., Any]


class ToolEnvironment(Environment):
    """Environment of tools. A subclass may set ``tools``, or have a ``step`` of its own that calls ``answered``."""

    tools: Sequence[Tool] = ()
    hosted: Hosted = Hosted()

    def schemas(self) -> list[Schema]:
        """Describe the tools, as chat templates take them. Raises ValueError for one that a model cannot call."""
        found = [schema_of(tool) for tool in self.tools]
        names = [schema["function"]["name"] for schema in found]
        for name in names:
            if not re.fullmatch(r"[\w.-]+", name) or names.count(name) > 1:
                raise ValueError(f"tools have the names {', '.join(names)}; expected one of its own for each")
        return found

    async def step(self, reply: Message) -> Step:
        """Run the calls of a reply. A reply without any ends the conversation, and the task's verifier scores it."""
        calls = reply.get("tool_calls") or []
        return Step(await self.answered(calls)) if calls else Step(done=True)

    async def answered(self, calls: Sequence[ToolCall]) -> list[Message]:
        """Run calls in order; each has a message with its result, or with what was wrong with it."""
        by_name = {
            schema["function"]["name"]: (tool, schema) for tool, schema in zip(self.tools, self.schemas(), strict=True)
        }
        return [await self._answer(call, by_name) for call in calls]

    async def _answer(self, call: ToolCall, by_name: Mapping[str, tuple[Tool, Schema]]) -> Message:
        name, arguments = call["function"]["name"], call["function"]["arguments"]
        is_text = isinstance(arguments, Mapping) and set(arguments) == {ONE_ARGUMENT}
        if is_text and len(by_name) == 1:
            ((name, (_, schema)),) = by_name.items()
            arguments = _first(arguments[ONE_ARGUMENT], schema)
        said = await self._result(name, arguments, by_name)
        message = {"role": "tool", "content": f"{said}\n" if is_text else said, "name": name}
        return message | ({"tool_call_id": call["id"]} if "id" in call else {})

    async def _result(self, name: str, arguments: object, by_name: Mapping[str, tuple[Tool, Schema]]) -> str:
        """Return what the model is told. Raises what is no fault of the call's."""
        if isinstance(arguments, str):
            arguments = _read(arguments)
        if isinstance(arguments, Mapping) and set(arguments) == {ONE_ARGUMENT}:
            return f"Error: a call between brackets is to the only tool, and there are {len(by_name)}"
        if not name or not isinstance(arguments, Mapping):
            return 'Error: this is no tool call. Expected JSON like {"name": ..., "arguments": {...}}'
        if name not in by_name:
            return f"Error: there is no tool {name[:80]!r}. Expected one of {', '.join(by_name)}"
        tool, schema = by_name[name]
        if trouble := trouble_with(arguments, schema):
            return f"Error: {trouble}"
        try:
            return self._written(await called(tool, **typed(arguments, tool)))
        except FAULTS:
            raise
        except (Exception, SystemExit) as error:  # noqa: BLE001 - whatever the arguments led to is for the model
            return f"Error: {text_of(error)}"[: self._most]

    @property
    def _most(self) -> int:
        return max(100, self.hosted.max_message_chars // 20)

    def _written(self, result: object) -> str:
        """Write a tool's result as text: a text as it is, else JSON, else what Python says of it."""
        if not isinstance(result, str):
            try:
                result = json.dumps(result, ensure_ascii=False)
            except (TypeError, ValueError, RecursionError):
                result = repr(result)
        end = CUT.format(len(result))
        return result if len(result) <= self._most else result[: self._most - len(end)] + end


def _first(text: str, schema: Schema) -> dict[str, Any]:
    """Make the arguments of a call that is nothing but a text: the first one, as JSON where it is no text."""
    properties = schema["function"]["parameters"]["properties"]
    name, wanted = next(iter(properties.items()), ("text", {}))
    found = None if wanted.get("type", "string") == "string" else _read(text)
    return {name: text if found is None else found}


def _read(text: str) -> object:
    try:
        return read_json(text)
    except ValueError:
        return None
