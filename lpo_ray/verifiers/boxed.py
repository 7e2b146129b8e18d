r"""The last ``\boxed{...}`` of a response against the answer: equal as text, or as a number within 1e-5."""

from __future__ import annotations

import re
from fractions import Fraction

from lpo_ray.verdict import Verdict

MAX_CHARACTERS = 1000
"""of what stands in the box"""

_FRACTION = re.compile(r"(-?)\\[dt]?frac\{(\d{1,30})\}\{(\d{1,30})\}")
_NUMBER = re.compile(r"-?\d{1,30}(\.\d{1,30})?(/\d{1,30})?")
_DROPPED = re.compile(r"\\left|\\right|\\!|\\,|\\;|\\ |\$|\s|\\%|%|\^\\circ|\^\{\\circ\}|°|(?<=\d),(?=\d{3})")


def boxed(prompt: str, response: str, answer: str) -> Verdict:
    """1 when the last box holds the answer, 0 otherwise."""
    content = last_box(response)
    if content is None:
        return Verdict.scored(0.0, "no complete \\boxed{}")
    if len(content) > MAX_CHARACTERS:
        return Verdict.scored(0.0, f"{len(content)} characters in the box, at most {MAX_CHARACTERS} are looked at")
    given, wanted = _normalised(content), _normalised(last_box(answer) or answer)
    if given == wanted:
        return Verdict.scored(1.0, "equal")
    left, right = _number(given), _number(wanted)
    if left is not None and right is not None and abs(left - right) < Fraction(1, 100_000):
        return Verdict.scored(1.0, "equal as numbers")
    return Verdict.scored(0.0, f"{given[:80]!r} is not {wanted[:80]!r}")


def last_box(text: str) -> str | None:
    """Content of the last box with balanced braces, or None."""
    start = text.rfind("\\boxed{")
    if start < 0:
        return None
    depth = 0
    for position in range(start + len("\\boxed"), len(text)):
        depth += {"{": 1, "}": -1}.get(text[position], 0)
        if depth == 0:
            return text[start + len("\\boxed{") : position]
    return None


def _normalised(text: str) -> str:
    text = _FRACTION.sub(r"\1\2/\3", text)
    text = _DROPPED.sub("", text)
    return re.sub(r"\\text\{([^{}]*)\}", r"\1", text).rstrip(".").lower()


def _number(text: str) -> Fraction | None:
    if not _NUMBER.fullmatch(text):
        return None
    numerator, _, denominator = text.partition("/")
    if denominator and int(denominator) == 0:
        return None
    return Fraction(numerator) / int(denominator or 1)
