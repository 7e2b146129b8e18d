"""An agent that is a function, within a child process: it gets a client of the endpoint, and returns its verdict.

Standard library only, but for the client, which is the openai package's.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

from lpo_ray.agents.environment import Environment, Message, Step, prompt_messages
from lpo_ray.agents.user_code import called

MOST_RETRIES = 50
"""of a request, for as long as the endpoint is being replaced"""


class Solving(Environment):
    """One run of an agent: ``async def solve(row, client) -> float | Verdict | str | None``, or a plain function.

    A text is what the task's verifier reads; None: it reads the last answer.
    """

    def __init__(self, solve: Callable[..., Any]) -> None:
        self._solve, self._openai = solve, _openai()  # now: importing it takes seconds
        self._is_async = inspect.iscoroutinefunction(solve) or inspect.iscoroutinefunction(type(solve).__call__)

    @property
    def keeps_threads(self) -> bool:
        """Whether what is cancelled may still run, in a thread of this process."""
        return not self._is_async

    async def reset(self, row: Mapping[str, Any]) -> list[Message]:
        """Keep the row."""
        self._row = dict(row)
        return prompt_messages(row)

    async def step(self, reply: Message) -> Step:
        """Run the agent from its beginning to its end. ``reply`` has the address and the key of its session."""
        access = json.loads(reply["content"])
        kind = self._openai.AsyncOpenAI if self._is_async else self._openai.OpenAI
        client = kind(base_url=f"{access['url']}/v1", api_key=access["key"], timeout=None, max_retries=MOST_RETRIES)
        try:
            found = await called(self._solve, self._row, client)
        finally:
            closing = client.close()
            if self._is_async:
                await closing
        if isinstance(found, str):
            return Step([{"role": "assistant", "content": found}], done=True)
        return Step(verdict=found, done=True)


def _openai() -> ModuleType:
    """Import the package of the client, which waits for its answers as long as the run does: limits are the run's."""
    try:
        import openai
    except ImportError as error:
        raise ImportError(
            "an agent that is a function is given a client of the package openai, which is not installed: "
            "pip install openai, or make the agent a command (task.agent=[python, agent.py])"
        ) from error
    return openai
