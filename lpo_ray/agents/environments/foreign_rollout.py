"""Environments that conduct a conversation themselves and ask a client for each turn, as those of verifiers do.

Their own rollout runs, whatever it is made of, with a client whose answers are the policy's turns: what it asks with is
compared with what was said so far. Longer: the rest is what the environment says. Otherwise it rewrote its history.
"""

from __future__ import annotations

import asyncio
import importlib
import inspect
import json
import sys
import time
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

from lpo_ray.agents.environment import Message, Step, prompt_messages
from lpo_ray.agents.tools import ToolEnvironment
from lpo_ray.agents.tools.schemas import Schema

FIELDS = ("example_id", "task", "info")
"""what a rollout's input has beside prompt and answer"""


class Rollout(ToolEnvironment):
    """Environment with a rollout of input, client, model and sampling_args, and a rubric that scores its state. It runs
    its tools itself.
    """

    def __init__(self, foreign: Any) -> None:  # noqa: ANN401 - of another system
        self._foreign = foreign
        self._asked: asyncio.Queue[list[Message]] = asyncio.Queue()
        self._replies: asyncio.Queue[Message] = asyncio.Queue()
        self._said: list[Message] = []
        self._rollout: asyncio.Task[Any] | None = None

    def schemas(self) -> list[Schema]:
        """Describe its tools."""
        defined = getattr(self._foreign, "tool_defs", None) or getattr(self._foreign, "oai_tools", None) or []
        plain = [_plain(tool) for tool in defined]
        return [tool if "function" in tool else {"type": "function", "function": tool} for tool in plain]

    async def reset(self, row: Mapping[str, Any]) -> list[Message]:
        """Begin its rollout, and return what it asks first."""
        given = {"prompt": prompt_messages(row), "answer": row.get("answer", ""), "example_id": 0, "info": {}}
        given |= {name: row[name] for name in FIELDS if name in row}
        self._rollout = asyncio.ensure_future(self._foreign.rollout(given, _client(self), "policy", {}))
        step = await self._next()
        if step.done:
            raise ValueError("its rollout ended before the policy was asked for a turn")
        return list(step.messages)

    async def step(self, reply: Message) -> Step:
        """Give it the policy's turn, and return what it asks next, or its score."""
        self._said.append(reply)
        await self._replies.put(reply)
        return await self._next()

    async def close(self) -> None:
        """End its rollout."""
        if self._rollout is not None:
            self._rollout.cancel()
            await asyncio.wait({self._rollout})

    async def turn(self, messages: Sequence[Any]) -> Message:
        """Answer its client: the policy's turn behind ``messages``."""
        await self._asked.put([_message(message) for message in messages])
        return await self._replies.get()

    async def _next(self) -> Step:
        assert self._rollout is not None
        asked = asyncio.ensure_future(self._asked.get())
        await asyncio.wait({asked, self._rollout}, return_when=asyncio.FIRST_COMPLETED)
        if not asked.done():
            asked.cancel()
            return Step(verdict=await self._scored(self._rollout.result()), done=True)
        before, self._said = self._said, asked.result()
        if _same(self._said[: len(before)], before):
            return Step(self._said[len(before) :])
        return Step(history=self._said)

    async def _scored(self, state: Any) -> Any:  # noqa: ANN401 - of another system
        if (error := state.get("error")) is not None:
            raise error if isinstance(error, BaseException) else RuntimeError(str(error))
        scored = self._foreign.rubric.score_rollout(state)
        if inspect.isawaitable(scored):
            await scored
        return state["reward"]


def _same(said: Sequence[Message], before: Sequence[Message]) -> bool:
    return len(said) == len(before) and all(
        one["role"] == other["role"] and one["content"] == other["content"]
        for one, other in zip(said, before, strict=True)
    )


def _plain(value: Any) -> dict[str, Any]:  # noqa: ANN401 - of another system
    if hasattr(value, "model_dump"):
        return value.model_dump(exclude_none=True)
    return dict(value if isinstance(value, Mapping) else vars(value))


def _message(message: Any) -> Message:  # noqa: ANN401 - of another system
    """Return a message in the chat form, its tool calls in OpenAI's."""
    found = _plain(message)
    calls = [_openai_call(_plain(call)) for call in found.get("tool_calls") or ()]
    kept = {name: found[name] for name in ("role", "content", "tool_call_id", "name") if found.get(name) is not None}
    return {"content": "", **kept, **({"tool_calls": calls} if calls else {})}


def _openai_call(call: dict[str, Any]) -> dict[str, Any]:
    if "function" in call:
        return call
    return {"type": "function", "id": call["id"], "function": {"name": call["name"], "arguments": call["arguments"]}}


def _client(environment: Rollout) -> Any:  # noqa: ANN401 - of another system
    """Make a client of the package that the environment is from; its turns are the policy's."""
    kinds = type(environment._foreign).__mro__
    package = next((kind.__module__.partition(".")[0] for kind in kinds if kind.__name__ == "MultiTurnEnv"), "")
    base = _attribute(f"{package}.clients", "Client") or object
    response = _attribute(f"{package}.types", "Response")

    async def get_response(self: Any, prompt: Any, *_: Any, **__: Any) -> Any:  # noqa: ANN401 - of another system
        reply = await environment.turn(prompt)
        made = {"id": "policy", "created": int(time.time()), "model": "policy", "message": _flat(reply)}
        return response.model_validate(made) if response else _spaces(made)

    async def create(*_: Any, messages: Any, **__: Any) -> Any:  # noqa: ANN401 - of another system
        reply = await environment.turn(messages)
        calls = [{**call, "function": {**call["function"], "arguments": _text(call["function"]["arguments"])}}
                 for call in reply.get("tool_calls", ())]  # fmt: skip
        message = {"role": "assistant", "content": reply["content"], "tool_calls": calls or None}
        choice = {"index": 0, "finish_reason": "tool_calls" if calls else "stop", "message": message}
        made = {"id": "policy", "created": 0, "model": "policy", "object": "chat.completion", "choices": [choice]}
        completion = _attribute("openai.types.chat", "ChatCompletion")
        return completion.model_validate(made) if completion else _spaces(made)

    kind = type("PolicyClient", (base,), {"get_response": get_response})
    kind.__abstractmethods__ = frozenset()  # what it asks of others it is not asked
    made = object.__new__(kind)
    made._config, made._client = None, None
    made.chat = SimpleNamespace(completions=SimpleNamespace(create=create))
    return made


def _flat(reply: Message) -> dict[str, Any]:
    """Return the reply as verifiers has it: calls without ``function``."""
    calls = [
        {"id": call["id"], "name": call["function"]["name"], "arguments": _text(call["function"]["arguments"])}
        for call in reply.get("tool_calls", ())
    ]
    return {
        "role": "assistant", "content": reply["content"], "tool_calls": calls or None, "is_truncated": False,
        "finish_reason": "tool_calls" if calls else "stop",
    }  # fmt: skip


def _text(arguments: object) -> str:
    return arguments if isinstance(arguments, str) else json.dumps(arguments)


def _spaces(value: Any) -> Any:  # noqa: ANN401 - any JSON
    """Return mappings as objects with attributes."""
    if isinstance(value, dict):
        return SimpleNamespace(**{name: _spaces(item) for name, item in value.items()})
    return [_spaces(item) for item in value] if isinstance(value, list) else value


def _attribute(module: str, name: str) -> Any:  # noqa: ANN401 - of another system
    if module.partition(".")[0] not in sys.modules and module.partition(".")[0] != "openai":
        return None
    try:
        return getattr(importlib.import_module(module), name, None)
    except ImportError:
        return None
