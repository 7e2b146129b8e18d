"""Countdown: reach the target with every given number exactly once, by + - * / (LPO paper: reward 1 / 0.1 / 0).

The answer is JSON: ``{"numbers": [3, 5, 7], "target": 22}``. The response is an expression, or has one between
``<answer>`` and ``</answer>`` (the last pair counts), or in a box; "= 22" after it, or "22 =" before it, is allowed
when it states the target. The expression is parsed by ``ast`` and evaluated in exact rational arithmetic; nothing is
ever executed.

Well-formed means: decimal integers without leading zeros, + - * / (also as × · ÷, fullwidth, or in LaTeX), unary minus,
parentheses, spaces; ``3(4)`` is ``3*(4)``. It is at most MAX_CHARACTERS long, which also bounds the tree. A division by
zero is well-formed and wrong.
"""

from __future__ import annotations

import ast
import json
import re
from fractions import Fraction

from lpo_ray.verdict import BadAnswer, Verdict
from lpo_ray.verifiers.places import CLOSE, last_answer, last_box, last_box_at
from lpo_ray.verifiers.thinking import after_thinking

MAX_CHARACTERS = 200
"""length of an expression; longer ones are not looked at, so that no response can cost time"""
MAX_DIGITS = 9
"""digits of a number; Countdown's are small, and arithmetic on larger ones would take as long as the response wants"""

_ALLOWED = re.compile(r"[0-9+\-*/() ]+")
_NUMBER = re.compile(r"[0-9]+")
_LEADING_ZERO = re.compile(r"\b0[0-9]")
_IMPLIED_PRODUCT = re.compile(r"(?<=[0-9)]) *(?=\()|(?<=\)) *(?=[0-9])")
_SPELLINGS = str.maketrans({chr(ord(sign) + 0xFEE0): sign for sign in "0123456789+-*/()="}) | str.maketrans(
    {"×": "*", "·": "*", "⋅": "*", "∙": "*", "÷": "/", "−": "-", "–": "-", "[": "(", "]": ")", "\u00a0": " "}
)
_COMMAND = re.compile(r"\\(?:times|cdot|div|left|right|[,;:! ()\[\]])(?![a-z])|\$|`|\*\*(?=[^*]*\Z)|(?<=\A)\*\*")
_COMMANDS = {"\\times": "*", "\\cdot": "*", "\\div": "/"}
_OPERATORS = (ast.Add, ast.Sub, ast.Mult, ast.Div)


class _NotCountdown(ValueError):
    """Error of a text that is no expression of the game."""


def countdown(prompt: str, response: str, answer: str) -> Verdict:
    """Give 1 when correct; 0.1 when a well-formed expression has the wrong value or numbers; 0 otherwise."""
    return _check(after_thinking(response, prompt), answer, formatted=0.1)


def countdown_strict(prompt: str, response: str, answer: str) -> Verdict:
    """Give 1 when correct, 0 otherwise."""
    return _check(after_thinking(response, prompt), answer, formatted=0.0)


def _check(response: str, answer: str, formatted: float) -> Verdict:
    numbers, target = wanted_problem(answer)
    try:
        used, value = _evaluate(_expression(response, target))
    except _NotCountdown as error:
        return Verdict.scored(0.0, str(error))
    except ZeroDivisionError:
        return Verdict.scored(formatted, "divides by zero")
    if sorted(used) != numbers:
        return Verdict.scored(formatted, f"uses {sorted(used)}, given {numbers}")
    if value != target:
        return Verdict.scored(formatted, f"is {value}, target {target}")
    return Verdict.scored(1.0, "correct")


def wanted_problem(answer: str) -> tuple[list[int], int]:
    """Read the numbers, in order of size, and the target of a problem. Raises BadAnswer unless they are whole, and the
    numbers at least 0.
    """
    try:
        problem = json.loads(answer)
        numbers, target = problem["numbers"], problem["target"]
        if not isinstance(numbers, list) or not numbers:
            raise ValueError(f"numbers is {numbers!r}, no list of numbers")
        if below := [number for number in numbers if _whole(number) < 0]:
            raise ValueError(f"{below[0]!r} is below 0, and no expression can have it")
        return sorted(map(_whole, numbers)), _whole(target)
    except (ValueError, TypeError, KeyError) as error:
        raise BadAnswer(
            f"the answer of countdown is {answer[:80]!r} ({type(error).__name__}: {error}); expected JSON like "
            '{"numbers": [3, 5, 7], "target": 22}'
        ) from error


def _whole(number: object) -> int:
    whole = int(number) if isinstance(number, float) and number.is_integer() else number
    if type(whole) is not int:
        raise ValueError(f"{number!r} is no whole number")
    return whole


def expression_vote(response: str, prompt: str = "") -> str | None:
    """Return the text that a response votes with: its expression, the value being the target or wrong."""
    try:
        return "".join(_expression(after_thinking(response, prompt), None).split()) or None
    except _NotCountdown:
        return None


def value_text(response: str) -> str:
    """Write the value of a response's expression, such as 17 or 17/2; "?" when it has none."""
    try:
        return str(_evaluate(_expression(after_thinking(response), None))[1])
    except (_NotCountdown, ZeroDivisionError):
        return "?"


def _expression(response: str, target: int | None) -> str:
    """Find the part of the response that is meant as the expression."""
    if CLOSE in response:
        inside = last_answer(response)
        if inside is None:
            raise _NotCountdown("</answer> without <answer>")
        response = inside
    if last_box_at(response) >= 0:
        inside = last_box(response)
        if inside is None:
            raise _NotCountdown("a box that is not closed")
        response = inside
    if len(response) > MAX_CHARACTERS:
        raise _NotCountdown(f"{len(response)} characters, at most {MAX_CHARACTERS} are looked at")
    response = response.translate(_SPELLINGS).strip().strip("$`").strip()
    text = _COMMAND.sub(lambda sign: _COMMANDS.get(sign[0], " "), response).strip().removesuffix(".")
    text, equals, tail = text.partition("=")
    if equals and text.strip().isdecimal() and not tail.strip().isdecimal():
        text, tail = tail, text
    if equals and target is not None and tail.strip() != str(target):
        raise _NotCountdown("what the expression is said to equal is not the target")
    return text.strip()


def _evaluate(text: str) -> tuple[list[int], Fraction]:
    """Return the numbers used and the exact value of an expression. Raises _NotCountdown or ZeroDivisionError."""
    if not _ALLOWED.fullmatch(text):
        raise _NotCountdown("characters other than digits, + - * / and parentheses")
    if any(len(digits) > MAX_DIGITS for digits in _NUMBER.findall(text)):
        raise _NotCountdown(f"a number of more than {MAX_DIGITS} digits")
    if _LEADING_ZERO.search(text):  # Python takes 00 and refuses 07
        raise _NotCountdown("a number with a leading zero")
    try:
        tree = ast.parse(_IMPLIED_PRODUCT.sub("*", text), mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise _NotCountdown(f"not an expression: {type(error).__name__}") from None
    used: list[int] = []
    return used, _value(tree.body, used)


def _value(node: ast.expr, used: list[int]) -> Fraction:
    if isinstance(node, ast.Constant) and type(node.value) is int:
        used.append(node.value)
        return Fraction(node.value)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -_value(node.operand, used)
    if isinstance(node, ast.BinOp) and isinstance(node.op, _OPERATORS):
        left, right = _value(node.left, used), _value(node.right, used)
        if isinstance(node.op, ast.Add):
            return left + right
        if isinstance(node.op, ast.Sub):
            return left - right
        return left * right if isinstance(node.op, ast.Mult) else left / right
    raise _NotCountdown(f"{type(node).__name__} is not part of the game")
