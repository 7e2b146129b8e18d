r"""The last ``\boxed{...}`` of a response against the answer: equal as text, or as a number within 1e-5.

Numbers are integers, decimals, ``a/b``, ``\frac{a}{b}`` and mixed ones such as ``1\frac{1}{2}``, in exact arithmetic.
When the last box is not closed, as in a truncated response, an earlier one does not count.
"""

from __future__ import annotations

import re
from fractions import Fraction

from lpo_ray.verdict import BadAnswer, Verdict

MAX_CHARACTERS = 1000
"""length of what stands in the box; longer ones are not looked at, so that no response can cost time"""

_BRACE = re.compile(r"[{}]")
_FRACTION = re.compile(r"(?<![0-9])\\frac\{(-?[0-9]{1,30})\}\{([0-9]{1,30})\}")
_MIXED = re.compile(r"([+-]?)([0-9]{1,30})\\frac\{([0-9]{1,30})\}\{([0-9]{1,30})\}")
_NUMBER = re.compile(r"[+-]?([0-9]{1,30}(\.[0-9]{1,30})?|\.[0-9]{1,30})(/[0-9]{1,30})?")
_DROPPED = re.compile(
    r"\\left|\\right|\\!|\\,|\\;|\\ |\$|\s|\\%|%|\^\\circ|\^\{\\circ\}|°|(?<=[0-9]),(?=[0-9]{3}(?![0-9]))"
)


def boxed(prompt: str, response: str, answer: str) -> Verdict:
    """Give 1 when the last box holds the answer, 0 otherwise. Raises BadAnswer for an answer that is empty."""
    wanted = normalised(last_box(answer) or answer)
    if not wanted:
        raise BadAnswer(f"the answer of boxed is {answer[:80]!r}; expected one that is not empty")
    content = last_box(response)
    if content is None:
        return Verdict.scored(0.0, f"no \\boxed{{}} that is closed within {MAX_CHARACTERS} characters")
    given = normalised(content)
    if given == wanted:
        return Verdict.scored(1.0, "equal")
    left, right = number_of(given), number_of(wanted)
    if left is not None and right is not None and abs(left - right) < Fraction(1, 100_000):
        return Verdict.scored(1.0, "equal as numbers")
    return Verdict.scored(0.0, f"{given[:80]!r} is not {wanted[:80]!r}")


def last_box(text: str) -> str | None:
    """Return the content of the last box, up to the brace that closes it; None without one within MAX_CHARACTERS."""
    found = text.rfind("\\boxed{")
    if found < 0:
        return None
    start = found + len("\\boxed{")
    depth = 1
    for brace in _BRACE.finditer(text, start, start + MAX_CHARACTERS + 1):
        depth += 1 if brace[0] == "{" else -1
        if depth == 0:
            return text[start : brace.start()]
    return None


def normalised(text: str) -> str:
    """Strip spaces, delimiters, percent and degree signs, write fractions of integers as a/b, and lower the case."""
    text = _DROPPED.sub("", text).replace("\\dfrac", "\\frac").replace("\\tfrac", "\\frac")
    text = _FRACTION.sub(r"\1/\2", text)
    return re.sub(r"\\text\{([^{}]*)\}", r"\1", text).rstrip(".").lower()


def number_of(text: str) -> Fraction | None:
    """Return the exact value of a normalised number; None when it is none."""
    mixed = _MIXED.fullmatch(text)
    if mixed:
        whole, above, below = (int(digits) for digits in mixed.groups()[1:])
        value = None if below == 0 else whole + Fraction(above, below)
        return -value if value is not None and mixed[1] == "-" else value
    if not _NUMBER.fullmatch(text):
        return None
    numerator, _, denominator = text.partition("/")
    if denominator and int(denominator) == 0:
        return None
    return Fraction(numerator) / int(denominator or 1)
