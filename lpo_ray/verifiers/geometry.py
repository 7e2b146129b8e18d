r"""Geometry (LPO paper, Geometry3k: reward 1 / 0.1 / 0): a number in the last ``\boxed{...}`` against the answer.

Both may be decimals, fractions, roots and multiples of pi: ``2\sqrt{221}``, ``\frac{25}{3}\pi``. What stands before the
last = or \approx, units and degree signs are left out. Equal means within TOLERANCE of the answer, relative to it, or
equal to an answer with decimals when rounded to as many.
"""

from __future__ import annotations

import re

from lpo_ray.verdict import Verdict
from lpo_ray.verifiers.boxed import last_box
from lpo_ray.verifiers.mathematics.numeric import value_of

TOLERANCE = 1e-3
"""relative: 14.14 is 10 sqrt(2)"""
FORMATTED = 0.1
"""reward for a number in a box that is the wrong one"""

_BEFORE = re.compile(r".*(?:=|\\approx|≈|\\doteq)", re.DOTALL)
_DEGREES = re.compile(r"\^\s*\{?\s*\\circ\s*\}?|\\degrees?\b|°|º|\\%|%")
_UNIT_IN_TEXT = re.compile(r"\\(?:text|mathrm|textrm|mbox|operatorname|rm)\s*\{[^{}]*\}(?:\s*\^\s*\{?\s*[23]\s*\}?)?")
_UNIT = re.compile(
    r"(?<![\\a-z])(?:units?|degrees?|square|sq|cubic|inch(?:es)?|feet|foot|yards?|met(?:er|re)s?|miles?|(?:centi|milli|"
    r"kilo)met(?:er|re)s?|mm|cm|dm|km|m|in|ft|yd|mi|°)\b\.?(?:\s*(?:\^\s*\{?\s*[23]\s*\}?|[²³]))?",
    re.IGNORECASE,
)
_DECIMALS = re.compile(r"-?[0-9]*\.([0-9]+)")


def geometry(response: str, answer: str) -> Verdict:
    """Give 1 when the last box holds the answer's value, 0.1 when it holds another number, 0 otherwise.

    Raises ValueError for an answer that is no number.
    """
    wanted = number_in(last_box(answer) or answer)
    if wanted is None:
        raise ValueError(f"the answer of a geometry task is {answer[:80]!r}; expected a number, also in LaTeX")
    content = last_box(response)
    if content is None:
        return Verdict.scored(0.0, "no \\boxed{} that is closed")
    given = number_in(content)
    if given is None:
        return Verdict.scored(0.0, f"{content[:80]!r} is no number")
    if abs(given - wanted) <= max(TOLERANCE * abs(wanted), _half_of_last_decimal(answer)):
        return Verdict.scored(1.0, "equal")
    return Verdict.scored(FORMATTED, f"{given:g} is not {wanted:g}")


def number_in(text: str) -> float | None:
    """Return the value of ``text`` without its unit; None when it has none."""
    text = _BEFORE.sub("", text)
    for pattern in (_DEGREES, _UNIT_IN_TEXT, _UNIT):
        text = pattern.sub(" ", text)
    return value_of(text.strip().rstrip("."))


def _half_of_last_decimal(answer: str) -> float:
    decimals = _DECIMALS.fullmatch(answer.strip())
    return 0.5 * 10.0 ** -len(decimals[1]) if decimals else 0.0
