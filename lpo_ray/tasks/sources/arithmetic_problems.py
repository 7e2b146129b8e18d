"""Arithmetic that a small model gets wrong and a calculator right: random access, train and held-out disjoint."""

from __future__ import annotations

import random
from dataclasses import dataclass

from lpo_ray.common.seeds import derive_seed
from lpo_ray.tasks.sources.source import Split, split_of

HELDOUT_SHARE = 8
"""one in so many problems is held out"""


@dataclass(frozen=True, slots=True)
class ArithmeticProblem:
    """One problem. Example: ``ArithmeticProblem("37*84+5", "3113")``"""

    expression: str
    answer: str

    @property
    def plain(self) -> str:
        """Text for the tiny policy."""
        return f"{self.expression}="

    @property
    def chat(self) -> str:
        """Text of the user's turn."""
        return (
            f"What is {self.expression.replace('*', ' * ').replace('+', ' + ')}? Use the calculator, then answer with "
            "the number only."
        )

    @property
    def split(self) -> Split:
        """Where the problem belongs, whatever seed made it."""
        return split_of(self.expression, "arithmetic", HELDOUT_SHARE)


def generate(seed: int, index: int, *, split: Split) -> ArithmeticProblem:
    """Make problem number ``index`` of ``seed`` in ``split``: a product of two numbers of two digits plus a third."""
    rng = random.Random(derive_seed(seed, "arithmetic", split, index))
    while True:
        a, b, c = rng.randint(11, 99), rng.randint(11, 99), rng.randint(1, 99)
        problem = ArithmeticProblem(f"{a}*{b}+{c}", str(a * b + c))
        if problem.split == split:
            return problem
