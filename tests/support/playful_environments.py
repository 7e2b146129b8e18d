"""Environments that behave. Child processes import this file by its path."""

from __future__ import annotations

from lpo_ray.agents import Environment, Step


class Default(Environment):
    async def step(self, reply):
        return Step([{"role": "user", "content": "more"}])


class Telling(Environment):
    def reset(self, row):
        return [{"role": "user", "content": f"answer {row['answer']} level {row['level']}"}]

    def step(self, reply):
        return Step([{"role": "user", "content": f"seed {self.seed}"}], verdict=0.5)


class Summing(Environment):
    async def step(self, reply):
        told = [{"role": "user", "content": "go on"}]
        return Step(told, history=[{"role": "user", "content": "in short"}] if reply["content"] == "hm" else None)
