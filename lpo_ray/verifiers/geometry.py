r"""Geometry (LPO paper, Geometry3k: reward 1 / 0.1 / 0): a number in the last ``\boxed{...}`` against the answer.

Both may be decimals, fractions, roots and multiples of pi: ``2\sqrt{221}``, ``\frac{25}{3}\pi``, with a name before =,
a unit or a degree sign. Two whole numbers are equal or not. Others are when they are within TOLERANCE of the answer,
relative to it, and at most NEAR_WHOLE from a whole one; or equal to an answer with decimals when rounded to as many.
"""

from __future__ import annotations

import re
from functools import lru_cache

from lpo_ray.verdict import BadAnswer, Verdict
from lpo_ray.verifiers.mathematics.arithmetic import is_real
from lpo_ray.verifiers.mathematics.equality import number_of
from lpo_ray.verifiers.mathematics.reading import read
from lpo_ray.verifiers.places import answer_in, last_box, unquoted
from lpo_ray.verifiers.thinking import after_thinking

TOLERANCE = 1e-3
"""relative: 14.14 is 10 sqrt(2)"""
NEAR_WHOLE = 0.05
"""from an answer that is a whole number"""
FORMATTED = 0.1
"""reward for a number in a box that is the wrong one"""

_LENGTH = re.compile(r"(?<=[0-9})])\s*(?:m|in|ft|'|\"|′|″|\\prime)\.?\s*(?:\^\s*\{?\s*[23]\s*\}?|[²³])?\s*$")
_DECIMALS = re.compile(r"-?[0-9]*\.([0-9]+)")


def geometry(response: str, answer: str, prompt: str = "") -> Verdict:
    """Give 1 when the last box holds the answer's value, 0.1 when it holds another number, 0 otherwise.

    Raises BadAnswer for an answer that is no number.
    """
    wanted = wanted_number(answer)
    content = last_box(after_thinking(response, prompt))
    if content is None:
        return Verdict.scored(0.0, "no \\boxed{} that is closed")
    given = number_in(content)
    if given is None:
        return Verdict.scored(0.0, f"{content[:80]!r} is no number")
    if _is_near(given, wanted, answer):
        return Verdict.scored(1.0, "equal")
    return Verdict.scored(FORMATTED, f"{given:g} is not {wanted:g}")


def wanted_number(answer: str) -> float:
    """Read the answer of a data set. Raises BadAnswer when it is no number."""
    text = unquoted(answer)
    wanted = number_in(answer_in(text) or text)
    if wanted is None:
        raise BadAnswer(f"the answer of a geometry task is {answer[:80]!r}; expected a number, also in LaTeX")
    return wanted


@lru_cache(maxsize=4096)
def number_in(text: str) -> float | None:
    """Return the value of ``text`` without its name and unit; None when it has none."""
    reading = read(_LENGTH.sub("", text))
    value = None if reading is None else number_of(reading)
    if value is None or not is_real(value):
        return None
    try:
        return float(value)
    except OverflowError:
        return None


def geometry_vote(response: str, prompt: str = "") -> str | None:
    """Return the text that a response votes with; None when its last box holds no number."""
    content = last_box(after_thinking(response, prompt))
    value = None if content is None else number_in(content)
    if value is None:
        return None
    return f"{value:.0f}" if value.is_integer() else f"{value:.4g}"


def _is_near(given: float, wanted: float, answer: str) -> bool:
    distance, near = abs(given - wanted), TOLERANCE * abs(wanted)
    if wanted.is_integer():
        return distance <= (0.0 if given.is_integer() else min(near, NEAR_WHOLE))
    return distance <= max(near, _half_of_last_decimal(answer))


def _half_of_last_decimal(answer: str) -> float:
    decimals = _DECIMALS.fullmatch(answer.strip())
    return 0.5 * 10.0 ** -len(decimals[1]) if decimals else 0.0
