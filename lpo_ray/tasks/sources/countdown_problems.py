"""Countdown problems from a seed: random access; solvable, and train and held-out disjoint, by construction."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from lpo_ray.common.seeds import derive_seed
from lpo_ray.policy.tokenizer import Messages
from lpo_ray.tasks.sources.source import Split, split_of

HELDOUT_SHARE = 8
"""one in so many problems is held out"""
MAX_DRAWS = 100_000
"""draws for one problem; settings that allow hardly any problem are refused instead of searched for ever"""


@dataclass(frozen=True, slots=True)
class Problem:
    """One problem with a solution. Example: ``Problem((3, 5, 7), 22, "3*5+7")``"""

    numbers: tuple[int, ...]
    target: int
    solution: str
    """one expression of value ``target``; others may exist"""

    @property
    def split(self) -> Split:
        """Where the problem belongs, whatever seed made it: decided by its numbers, in any order, and its target."""
        key = f"{sorted(self.numbers)}={self.target}"
        return split_of(key, "countdown", HELDOUT_SHARE)


def generate(
    seed: int,
    index: int,
    *,
    split: Split,
    counts: Sequence[int] = (3,),
    max_number: int = 20,
    max_target: int = 100,
) -> Problem:
    """Make problem number ``index`` of ``seed`` in ``split``; targets are in 0..max_target, numbers in 1..max_number.

    Solutions use every number once with + - * and exact /, in random order and nesting. ValueError when the settings
    allow no problem.
    """
    if split not in ("train", "heldout"):
        raise ValueError(f"split is {split!r}; expected train or heldout")
    if not counts or min(counts) < 1:
        raise ValueError(f"counts is {counts!r}; expected how many numbers a problem has, such as (3,) or (3, 4)")
    if max_number < 1:
        raise ValueError(f"max_number is {max_number}; expected 1 or more")
    rng = random.Random(derive_seed(seed, "countdown", split, index))
    for _ in range(MAX_DRAWS):
        numbers = [rng.randint(1, max_number) for _ in range(rng.choice(tuple(counts)))]
        expression, value = _random_expression(rng, numbers)
        if value is None or value.denominator != 1 or not 0 <= value <= max_target:
            continue
        shuffled = numbers[:]
        rng.shuffle(shuffled)
        problem = Problem(tuple(shuffled), int(value), expression)
        if problem.split == split:
            return problem
    raise ValueError(
        f"{MAX_DRAWS} draws gave no {split} problem with counts={counts}, max_number={max_number}, "
        f"max_target={max_target}; allow more numbers or a larger target"
    )


def guess(rng: random.Random, problem: Problem) -> str:
    """Make an expression of the problem's numbers whose value is not the target."""
    while True:
        expression, value = _random_expression(rng, problem.numbers)
        if value is not None and value != problem.target:
            return expression


def answer_json(problem: Problem) -> str:
    """Write the problem as JSON, as the verifier reads it."""
    return json.dumps({"numbers": list(problem.numbers), "target": problem.target})


def _plain(problem: Problem) -> str:
    return f"{','.join(map(str, problem.numbers))}={problem.target}:"


def _chat(problem: Problem) -> str:
    return (
        f"Using the numbers {list(problem.numbers)}, create an equation that equals {problem.target}. You can use "
        "basic arithmetic operations (+, -, *, /) and each number must be used exactly once. Think step by step inside "
        "<think> </think> tags, then return the expression inside <answer> </answer> tags, for example "
        "<answer> (1 + 2) / 3 </answer>."
    )


TEMPLATES = {"plain": _plain, "chat": _chat}
"""task.template -> text of a problem"""


def render(problem: Problem, template: str) -> str:
    """Write the problem as a text; ``chat`` is the user's turn, to go through the tokenizer's chat template."""
    return TEMPLATES[template](problem)


EXAMPLES = (Problem((2, 3, 4), 9, "2+3+4"), Problem((9, 5, 1), 13, "9+5-1"))
"""solved, of the training split: for models that learn a form from examples rather than from a description"""


def conversation(problem: Problem, examples: int) -> Messages:
    """Write the problem as the last of the user's turns, after so many of EXAMPLES with their solutions as the
    assistant's; the form is what these show, so no turn describes it.
    """
    shown: list[dict[str, str]] = []
    for example in EXAMPLES[:examples]:
        shown += [{"role": "user", "content": _ask(example)}, {"role": "assistant", "content": example.solution}]
    return [*shown, {"role": "user", "content": _ask(problem)}]


def _ask(problem: Problem) -> str:
    return f"Make {problem.target} from {', '.join(map(str, problem.numbers))}."


_SUM, _PRODUCT, _ATOM = 1, 2, 3
"""how tightly an expression binds, to leave out parentheses that change nothing"""


def _random_expression(rng: random.Random, numbers: Sequence[int]) -> tuple[str, Fraction | None]:
    """Combine two random parts until one is left; the value is None after a division by zero."""
    parts: list[tuple[str, Fraction, int]] = [(str(n), Fraction(n), _ATOM) for n in numbers]
    while len(parts) > 1:
        left = parts.pop(rng.randrange(len(parts)))
        right = parts.pop(rng.randrange(len(parts)))
        combined = _combine(rng.choice("++--**/"), left, right)
        if combined is None:
            return "", None
        parts.append(combined)
    return parts[0][0], parts[0][1]


def _combine(
    operator: str, left: tuple[str, Fraction, int], right: tuple[str, Fraction, int]
) -> tuple[str, Fraction, int] | None:
    (a, x, a_binds), (b, y, b_binds) = left, right
    if operator in "+-":
        b = f"({b})" if operator == "-" and b_binds == _SUM else b
        return f"{a}{operator}{b}", x + y if operator == "+" else x - y, _SUM
    if operator == "/" and (y == 0 or (x / y).denominator != 1):
        return None
    a = f"({a})" if a_binds == _SUM else a
    b = f"({b})" if b_binds == _SUM or (operator == "/" and b_binds == _PRODUCT) else b
    return f"{a}{operator}{b}", x * y if operator == "*" else x / y, _PRODUCT
