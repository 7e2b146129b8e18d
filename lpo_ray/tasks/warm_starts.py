"""Examples of training problems that teach the tiny base policy the form of a task's responses before training."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import NamedTuple

from lpo_ray.agents.environments.countdown_turns import TRIES, plain_answer
from lpo_ray.common.seeds import derive_seed
from lpo_ray.tasks.sources.arithmetic_problems import generate as generate_arithmetic
from lpo_ray.tasks.sources.countdown_problems import generate, guess, render

DIRECT_SHARE = 0.5
"""of arithmetic problems whose answer is said without the tool, which the policy cannot do well"""


class Piece(NamedTuple):
    """A piece of a conversation."""

    text: str
    said: bool = False
    """by the policy, so that its end token follows"""
    learned: bool = False
    """whether the loss is on it"""


def countdown(seed: int, index: int, counts: Sequence[int]) -> list[Piece]:
    """Write a problem and its solution."""
    problem = generate(seed, index, split="train", counts=counts)
    return [Piece(render(problem, "plain")), Piece(problem.solution, said=True, learned=True)]


def countdown_turns(seed: int, index: int, counts: Sequence[int]) -> list[Piece]:
    """Write a problem, in half of the cases wrong tries with their values, and the solution, which is all that is
    learned.
    """
    problem = generate(seed, index, split="train", counts=counts)
    rng = random.Random(derive_seed(seed, "countdown_turns", index))
    pieces = [Piece(render(problem, "plain"))]
    for _ in range(rng.choice([0] * (TRIES - 1) + list(range(1, TRIES)))):
        wrong = guess(rng, problem)
        pieces += [Piece(wrong, said=True), Piece(plain_answer(wrong))]
    return [*pieces, Piece(problem.solution, said=True, learned=True)]


def arithmetic_tool(seed: int, index: int, counts: Sequence[int]) -> list[Piece]:
    """Write a problem, and its answer: at once, or after a call of the calculator."""
    problem = generate_arithmetic(seed, index, split="train")
    rng = random.Random(derive_seed(seed, "arithmetic_tool", index))
    answer = Piece(problem.answer, said=True, learned=True)
    if rng.random() < DIRECT_SHARE:
        return [Piece(problem.plain), answer]
    call = Piece(f"[{problem.expression}]", said=True, learned=True)
    return [Piece(problem.plain), call, Piece(f"{problem.answer}\n"), answer]


WARM_STARTS: dict[str, Callable[[int, int, Sequence[int]], list[Piece]]] = {
    "countdown": countdown,
    "countdown_turns": countdown_turns,
    "arithmetic_tool": arithmetic_tool,
}
"""task.name -> pieces of problem ``index`` of ``seed``; the policy of any other task begins with countdown"""
