"""What the scorers of Reasoning Gym that evaluate an answer may be given: arithmetic and literals, never code.

Some of them hand the answer to sympy's ``parse_expr`` or to ``eval``, which run any Python that is in it: a response
could read files, start programs, or give itself the reward. What is more than arithmetic is refused before that.
"""

from __future__ import annotations

import re

from lpo_ray.verifiers.mathematics.bounds import refused

ARITHMETIC = frozenset(
    {"countdown", "intermediate_integration", "polynomial_multiplication", "puzzle24", "simple_integration"}
)
"""whose scorers call parse_expr"""
LITERAL = frozenset({"binary_matrix", "n_queens", "spiral_matrix", "string_insertion"})
"""whose scorers call eval, for an answer that is a list"""
FUNCTIONS = frozenset(
    {
        "Abs", "abs", "acos", "acosh", "acot", "asin", "asinh", "atan", "atanh", "cos", "cosh", "cot", "csc", "erf",
        "exp", "ln", "log", "pi", "sec", "sin", "sinh", "sqrt", "tan", "tanh",
    }
)  # fmt: skip
"""names of more than one letter that arithmetic may have"""

_ARITHMETIC = re.compile(r"[0-9A-Za-z_+\-*/^().,\s]*")
_LITERAL = re.compile(r"[\w\s,.\-'\"\[\]]*")
_NAME = re.compile(r"[A-Za-z_]\w*")
_ATTRIBUTE = re.compile(r"\.\s*[A-Za-z_]|__[a-zA-Z]")
_NO_NUMBER = re.compile(r"(?<![A-Za-z])(?:nan|inf|infinity)(?:[ij]|(?![A-Za-z]))", re.IGNORECASE)
_REPEATED_MOVE = re.compile(r"\d{3}")
_LARGE_EXPONENT = re.compile(r"[0-9.][eE][+-]?[0-9_]{4,}")


def refused_answer(generator: str, answer: str) -> str | None:
    """Why ``answer`` is not given to the scorer of ``generator``; None when it may be."""
    if _LARGE_EXPONENT.search(answer):  # Fraction("1e999999999") is a number of as many digits
        return "a number with an exponent of more than 3 digits"
    if _NO_NUMBER.search(answer):  # min(1, exp(-nan)) is 1
        return "nan or inf, which some scorers take for right"
    if generator == "rubiks_cube" and _REPEATED_MOVE.search(answer):
        return "a move that is repeated 100 times or more"
    if generator in LITERAL and (not _LITERAL.fullmatch(answer) or _ATTRIBUTE.search(answer)):
        return f"more than a list of words and numbers, which the scorer of {generator} would run as code"
    if generator not in ARITHMETIC:
        return None
    names = set(_NAME.findall(re.sub(r"\d+(?:\.\d*)?[eE][+-]?\d+", "1", answer)))
    unknown = sorted(name for name in names if len(name) > 1 and name not in FUNCTIONS)
    if unknown or not _ARITHMETIC.fullmatch(answer) or _ATTRIBUTE.search(answer):
        what = f" ({unknown[0][:40]!r})" if unknown else ""
        return f"more than arithmetic{what}, which the scorer of {generator} would run as code"
    return refused(answer)
