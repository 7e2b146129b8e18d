"""An environment of the `verifiers` library (pip install "verifiers<0.2"): its single-turn rubric is the reward.

lpo-ray train configs/quickstart.yaml task.verifier=configs/rewards/verifiers_style.py:load_environment
"""

import json

import verifiers as vf


def names_the_numbers(completion, answer) -> float:
    """Share of the problem's numbers that the last message names."""
    numbers = json.loads(answer)["numbers"]
    return sum(str(number) in completion[-1]["content"] for number in numbers) / len(numbers)


async def short(completion) -> float:
    """1 up to ten characters."""
    return float(len(completion[-1]["content"]) <= 10)


def load_environment():
    """The rubric alone is enough here: prompts are lpo-ray's."""
    return vf.Rubric(funcs=[names_the_numbers, short], weights=[1.0, 0.1])
