"""Countdown in turns: a wrong expression is answered with its value, and may be corrected. Standard library only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lpo_ray.agents.environment import Environment, Message, Step
from lpo_ray.verifiers.countdown import countdown, value_text

TRIES = 3


class CountdownTurns(Environment):
    """Environment of the task countdown_turns. The verdict is that of the last try."""

    async def reset(self, row: Mapping[str, Any]) -> list[Message]:
        """Remember the problem."""
        self._answer, self._is_plain, self._tries = row["answer"], row.get("template") == "plain", 0
        return await super().reset(row)

    async def step(self, reply: Message) -> Step:
        """Check a try."""
        self._tries += 1
        verdict = countdown("", reply["content"], self._answer)
        if verdict.reward == 1.0 or self._tries == TRIES:
            return Step(verdict=verdict, done=True)
        said = plain_answer(reply["content"]) if self._is_plain else f"That is wrong: {verdict.detail}. Try again."
        return Step([{"role": "user", "content": said}], verdict)


def plain_answer(response: str) -> str:
    r"""Say the value of a wrong expression, for the tiny policy. Example: ``plain_answer("3*4+5")`` is ``"=17\n"``"""
    return f"={value_text(response)}\n"
