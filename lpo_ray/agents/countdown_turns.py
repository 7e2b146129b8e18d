"""Countdown in turns: a wrong expression is answered with its value, and may be corrected. Standard library only."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from lpo_ray.agents.environment import Environment, Message, Step
from lpo_ray.verifiers.countdown import countdown, value_text

TRIES = 3


class CountdownTurns(Environment):
    """Environment of the task countdown_turns. The verdict is that of the last try."""

    async def reset(self, row: Mapping[str, Any]) -> list[Message]:
        self._answer, self._tries = row["answer"] if isinstance(row["answer"], str) else json.dumps(row["answer"]), 0
        return await super().reset(row)

    async def step(self, reply: Message) -> Step:
        self._tries += 1
        verdict = countdown("", reply["content"], self._answer)
        done = verdict.reward == 1.0 or self._tries == TRIES
        said = {"role": "user", "content": answer_to(reply["content"])}
        return Step([] if done else [said], verdict, done)


def answer_to(response: str) -> str:
    """Say what a wrong expression is. Example: ``answer_to("3*4+5")`` is ``"=17\\n"``"""
    return f"={value_text(response)}\n"
