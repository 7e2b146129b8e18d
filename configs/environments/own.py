"""An environment of one's own: a number is guessed, and higher or lower is said. The row is a Countdown problem.

lpo-ray train configs/countdown_turns.yaml task.environment=configs/environments/own.py:Guess
"""

import json

from lpo_ray.agents import Environment, Step


class Guess(Environment):
    """The target is the secret."""

    async def reset(self, row):
        self.secret = json.loads(row["answer"])["target"]
        return [{"role": "user", "content": "1,2,3=4:"}]

    async def step(self, reply):
        guess = reply["content"]
        if not guess.isdecimal():
            return Step(verdict=0.0, done=True)
        distance = abs(int(guess) - self.secret)
        hint = "=" if distance == 0 else "-" if int(guess) > self.secret else "+"
        return Step([{"role": "user", "content": f"{hint}\n"}], verdict=1 / (1 + distance), done=distance == 0)
