r"""The value of a closed expression of numbers, in LaTeX or plain: ``\frac{3\sqrt{2}}{2}``, ``2\pi``, ``2^{10}``.

In floating point by an evaluator of its own, so that nothing is ever executed and no text costs time: a power that is
too large has no value. Numbers, + - * / ^, parentheses, fractions, roots, mixed numbers, products without a sign, and
pi. No letters: an expression with a variable, a unit or a word has no value.
"""

from __future__ import annotations

import math
import re

MAX_CHARACTERS = 300
MAX_DEPTH = 25
"""nesting of braces and parentheses"""

_SPELLINGS = (
    (re.compile(r"\{,\s?\}"), ","),
    (re.compile(r"\\left|\\right|\\!|\\,|\\;|\\:|\\ |\\quad|~|\$|\\displaystyle"), " "),
    (re.compile(r"\\[dtc]frac"), r"\\frac"),
    (re.compile(r"\\cdot|\\times|[·×⋅∙]|\*\*(?!\*)"), lambda match: "^" if match[0] == "**" else "*"),
    (re.compile(r"\\div|÷"), "/"),
    (re.compile("[\u2212\u2013]"), "-"),
    (re.compile("π"), r"\\pi "),
    (re.compile("√"), r"\\sqrt "),
    (re.compile(r"(?<=[0-9]),\s?(?=[0-9]{3}(?![0-9]))"), ""),
    (re.compile(r"(?<![0-9.])([0-9]{1,9})\s+([0-9]{1,9})\s*/\s*([0-9]{1,9})(?![0-9])"), r"\1\\frac{\2}{\3}"),
)
_SPLIT_NUMBER = re.compile(r"[0-9.]\s+[0-9.]")
_NUMBER = re.compile(r"[0-9]+(?:\.[0-9]*)?|\.[0-9]+")
_MIXED = re.compile(r"([0-9]{1,9})\\frac\{([0-9]{1,9})\}\{([0-9]{1,9})\}")
_CLOSING = {"(": ")", "{": "}", "[": "]"}


class _NoValue(ValueError):
    """Error of a text that is no closed expression of numbers."""


def value_of(text: str) -> float | None:
    """Return a finite number, or None when the text is no closed expression of numbers or its value is none."""
    if len(text) > MAX_CHARACTERS:
        return None
    for pattern, spelling in _SPELLINGS:
        text = pattern.sub(spelling, text)
    if _SPLIT_NUMBER.search(text):
        return None
    try:
        value = _Reader("".join(text.split())).whole()
    except (_NoValue, ArithmeticError):  # a division by zero, a power that is too large
        return None
    return value if math.isfinite(value) else None


class _Reader:
    """Recursive-descent evaluator: sum = [+-] product ([+-] product)*; product = power ([*/] power | power)*; power =
    atom [^ argument].
    """

    def __init__(self, text: str) -> None:
        self._text, self._at, self._depth = text, 0, 0

    def whole(self) -> float:
        value = self._sum()
        if self._at < len(self._text):
            raise _NoValue(self._text)
        return value

    def _sum(self) -> float:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise _NoValue(self._text)
        value = self._product() if not self._take("-") else -self._product()
        while True:
            if self._take("+"):
                value += self._product()
            elif self._take("-"):
                value -= self._product()
            else:
                self._depth -= 1
                return value

    def _product(self) -> float:
        self._take("+")
        value = self._power()
        while self._at < len(self._text):
            if self._take("*"):
                value *= self._signed_power()
            elif self._take("/"):
                value /= self._signed_power()
            elif self._text[self._at] in "({\\":
                value *= self._power()
            else:
                break
        return value

    def _signed_power(self) -> float:
        return -self._power() if self._take("-") else self._power()

    def _power(self) -> float:
        value = self._atom()
        if not self._take("^"):
            return value
        return _power(value, -self._argument() if self._take("-") else self._argument())

    def _atom(self) -> float:
        mixed = _MIXED.match(self._text, self._at)
        if mixed:
            self._at = mixed.end()
            whole, above, below = (int(digits) for digits in mixed.groups())
            return whole + above / below
        number = _NUMBER.match(self._text, self._at)
        if number:
            self._at = number.end()
            return float(number[0])
        for opening in "({":
            if self._take(opening):
                return self._closed(opening)
        if self._take("\\frac"):
            above = self._argument()
            return above / self._argument()
        if self._take("\\sqrt"):
            degree = self._closed("[") if self._take("[") else 2.0
            return _root(self._argument(), degree)
        if self._take("\\pi"):
            return math.pi
        raise _NoValue(self._text)

    def _argument(self) -> float:
        r"""Read what follows a command or ``^``: a group, a command, or one digit, as in ``\frac12``."""
        if self._at < len(self._text) and self._text[self._at] in "0123456789":
            self._at += 1
            return float(self._text[self._at - 1])
        return self._atom()

    def _closed(self, opening: str) -> float:
        value = self._sum()
        if not self._take(_CLOSING[opening]):
            raise _NoValue(self._text)
        return value

    def _take(self, text: str) -> bool:
        if self._text.startswith(text, self._at):
            self._at += len(text)
            return True
        return False


def _power(base: float, exponent: float) -> float:
    value = base**exponent
    if isinstance(value, complex):
        raise _NoValue("a negative number to a broken power")
    return value


def _root(value: float, degree: float) -> float:
    if degree == 2:
        if value < 0:
            raise _NoValue("the root of a negative number")
        return math.sqrt(value)
    if value < 0 and degree % 2 == 1:
        return -((-value) ** (1 / degree))
    return _power(value, 1 / degree)
