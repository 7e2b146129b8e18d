r"""Which texts may be given to a computer algebra system: those that cannot cost it more than moments.

Numbers are evaluated while they are read, so ``9^{9^9}`` would fill memory inside one call that nothing can interrupt.
What is refused here is refused by its text, in time that is linear in its length. What is left can still be slow, but
only in steps that a timer can interrupt.
"""

from __future__ import annotations

import re
from math import prod

MAX_CHARACTERS = 500
MAX_DEPTH = 20
"""nesting of brackets of all kinds"""
MAX_DIGITS = 40
"""digits of one number"""
MAX_EXPONENT = 9999
"""exponent of a number, or of one letter"""
MAX_BRACKET_EXPONENT = 30
"""all exponents of brackets beside letters, multiplied: (x+y)^{30} has 31 terms"""
MAX_FACTORIAL = 999
MAX_PLUS_MINUS = 3
"""each doubles how many values there are"""

_UNDONE = re.compile(r"\\(?:sum|prod|i*int|oint|lim|limsup|liminf|bigcup|bigcap|frac\{d\}|partial|det)(?![a-zA-Z])")
_LONG_NUMBER = re.compile(rf"\d{{{MAX_DIGITS + 1}}}")
_LARGE_FACTORIAL = re.compile(r"\d{4,}\s*\}?\s*!|[!^)}\]]\s*!|!.*!.*!.*!")
_NESTED_POWER = re.compile(r"(?:exp|cosh|sinh)[^)a-df-z]*(?:exp|cosh|sinh)")
"""exp(exp(...)) of a number"""
_BINOMIAL = re.compile(r"\\[dt]?binom|\\choose|\\brace")
_COMMAND = re.compile(r"\\[a-zA-Z]+")
_NUMBER = re.compile(r"\d+(?:\.\d+)?")
_NUMBER_OR_LETTER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+|\\[a-zA-Z]+|.)", re.DOTALL)
_OPEN, _CLOSE = "([{", ")]}"


def refused(text: str) -> str | None:
    """Say why ``text`` is not given to a computer algebra system; None when it may be."""
    if len(text) > MAX_CHARACTERS:
        return f"{len(text)} characters, at most {MAX_CHARACTERS} are read"
    if _depth(text) > MAX_DEPTH:
        return f"brackets within brackets, more than {MAX_DEPTH} deep"
    if _LONG_NUMBER.search(text):
        return f"a number of more than {MAX_DIGITS} digits"
    undone = _UNDONE.search(text)
    if undone:
        return f"{undone[0]}, which is not evaluated"
    if _LARGE_FACTORIAL.search(text):
        return f"a factorial of something other than a number up to {MAX_FACTORIAL}"
    if _NESTED_POWER.search(text):
        return "exponential functions within each other"
    if _BINOMIAL.search(text) and re.search(r"\d{5}", text):
        return "a binomial coefficient beside a number of more than 4 digits"
    if text.count("\\pm") + text.count("\\mp") + text.count("±") > MAX_PLUS_MINUS:
        return f"more than {MAX_PLUS_MINUS} signs of plus or minus"
    return _power_refused(text)


def _depth(text: str) -> int:
    depth = deepest = 0
    for character in text:
        if character in _OPEN:
            depth += 1
            deepest = max(deepest, depth)
        elif character in _CLOSE:
            depth -= 1
    return deepest


def _power_refused(text: str) -> str | None:
    """Say why a power in ``text`` is refused; None when all may be evaluated."""
    text = re.sub(r"\s+", " ", text.replace("**", "^"))
    of_brackets, of_others = 1.0, 1.0
    for place in (at for at, character in enumerate(text) if character == "^"):
        exponent, after = _exponent(text, place + 1)
        if text[after : after + 1] == "^":
            return "a power of a power without brackets"
        size = prod(max(1.0, float(number)) for number in _NUMBER.findall(exponent))
        if size > MAX_EXPONENT:
            return f"an exponent beyond {MAX_EXPONENT}"
        if _is_tower(exponent):
            return "a power in the exponent of a power"
        if text[:place].rstrip()[-1:] in tuple(")]}|"):
            of_brackets *= size
        else:
            of_others = max(of_others, size)
    has_letters = re.search(r"[a-zA-Z]", _COMMAND.sub("", text)) is not None
    if (has_letters and of_brackets > MAX_BRACKET_EXPONENT) or of_brackets * of_others > MAX_EXPONENT:
        return "powers of brackets that multiply to too much"
    return None


def _is_tower(exponent: str) -> bool:
    """Tell whether evaluating a power could give a large number: ``9^9`` could, ``-x^2`` could not."""
    if "!" in exponent or _BINOMIAL.search(exponent):
        return True
    return exponent.count("^") > 1 or re.search(r"[^a-zA-Z\s]\s*\^", exponent) is not None


def _exponent(text: str, start: int) -> tuple[str, int]:
    """Return what stands in the exponent that begins at ``start``, and where it ends; spaces after it are skipped."""
    while text[start : start + 1] == " ":
        start += 1
    if text[start : start + 1] and text[start] in _OPEN:
        depth = 0
        for at in range(start, len(text)):
            depth += (text[at] in _OPEN) - (text[at] in _CLOSE)
            if depth == 0:
                return text[start + 1 : at], _skip(text, at + 1)
        return text[start:], len(text)
    found = _NUMBER_OR_LETTER.match(text, start)
    if found is None:
        return "", start
    end = found.end()
    while found[0].startswith("\\") and text[end : end + 1] == "{":  # what a command stands before is part of it
        argument, after = _exponent(text, end)
        end = max(after, end + len(argument) + 1)
    return text[start:end], _skip(text, end)


def _skip(text: str, at: int) -> int:
    while text[at : at + 1] == " ":
        at += 1
    return at
