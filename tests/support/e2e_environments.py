"""Environments of e2e tests, in the characters of the tiny policy. Standard library only: they run in child processes."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from lpo_ray.agents import Environment, Message, Step


class Thrice(Environment):
    """Three turns, each answered with how many digits it had; the verdict is the share of digits in all of them."""

    pause = 0.0

    async def reset(self, row: Mapping[str, Any]) -> list[Message]:
        self.said: list[str] = []
        return [{"role": "user", "content": f"{row['prompt']}"}]

    async def step(self, reply: Message) -> Step:
        self.said.append(reply["content"])
        await asyncio.sleep(self.pause)
        text = "".join(self.said)
        digits = sum(letter.isdigit() for letter in text)
        verdict = digits / max(len(text), 1)
        if len(self.said) == 3:
            return Step(verdict=verdict, done=True)
        return Step([{"role": "user", "content": f"={digits}\n"}], verdict=verdict)


class Slow(Thrice):
    """The same, slowly enough to be killed in."""

    pause = 0.4
