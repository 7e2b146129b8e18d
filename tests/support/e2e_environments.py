"""Environments of e2e tests. They run in child processes."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lpo_ray.agents import Environment, Message, Step
from lpo_ray.agents.tools import ToolEnvironment

TURNS = 3
MARKS = "LPO_RAY_TEST_TURNS"
"""environment variable: folder in which a conversation in its second turn has a file, named by its process"""


def share_of_digits(said: str) -> float:
    """Verdict of Thrice on all that the policy said."""
    return sum(letter.isdigit() for letter in said) / max(len(said), 1)


def answer_of(said: str) -> str:
    """What Thrice answers, in the characters of the tiny policy."""
    return f"={sum(letter.isdigit() for letter in said)}\n"


class Thrice(Environment):
    """Three turns, each answered with how many digits there were; the verdict is their share of all that was said."""

    pause = 0.0

    async def reset(self, row: Mapping[str, Any]) -> list[Message]:
        self.said: list[str] = []
        return await super().reset(row)

    async def step(self, reply: Message) -> Step:
        self.said.append(reply["content"])
        with self._marked() if len(self.said) == 2 else contextlib.nullcontext():
            await asyncio.sleep(self.pause)
        text = "".join(self.said)
        if len(self.said) == TURNS:
            return Step(verdict=share_of_digits(text), done=True)
        return Step([{"role": "user", "content": answer_of(text)}], verdict=share_of_digits(text))

    @contextlib.contextmanager
    def _marked(self) -> Iterator[None]:
        if MARKS not in os.environ:
            yield
            return
        mark = Path(os.environ[MARKS]) / f"{os.getpid()}-{id(self)}"
        mark.touch()
        try:
            yield
        finally:
            mark.unlink(missing_ok=True)


class Begun(Thrice):
    """The same, whatever the row asks."""

    async def reset(self, row: Mapping[str, Any]) -> list[Message]:
        await super().reset(row)
        return [{"role": "user", "content": "1,2,3=6:"}]


class Slow(Thrice):
    """The same, slowly enough to be killed in."""

    pause = 0.4


class Insistent(ToolEnvironment):
    """Three turns: a call has its result; without one a user asks again, or there is a result that nobody asked for."""

    async def reset(self, row: Mapping[str, Any]) -> list[Message]:
        self.turns = 0
        return await super().reset(row)

    async def step(self, reply: Message) -> Step:
        self.turns += 1
        if self.turns == TURNS:
            return Step(verdict=0.0, done=True)
        calls = reply.get("tool_calls") or []
        if not calls and self.turns == 1:
            return Step([{"role": "user", "content": "Try again, and be short: é 漢 \u202e."}])
        unasked = {"function": {"name": "calculator", "arguments": {"expression": "2 * 3"}}}
        return Step(await self.answered(calls or [unasked]))
