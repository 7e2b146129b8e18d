"""Tools that come with lpo-ray. Standard library only."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable
from fractions import Fraction

from lpo_ray.agents.environment import Unavailable
from lpo_ray.verifiers.sandbox.limits import Limits
from lpo_ray.verifiers.sandbox.process import Program
from lpo_ray.verifiers.sandbox.program import run_program

LONGEST = 200
"""characters of an expression"""
MOST_BITS = 1600
"""of a number on the way"""
MOST_DIGITS = 480
"""that many bits have"""
_OPERATORS: dict[type[ast.operator], Callable[[Fraction, Fraction], Fraction]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
    ast.FloorDiv: lambda a, b: Fraction(a // b), ast.Mod: operator.mod,
}  # fmt: skip


def calculator(expression: str) -> str:
    """Calculate the value of an arithmetic expression.

    Args:
        expression: numbers with + - * / // % ** and parentheses, such as (12 + 3) * 4

    """
    if len(expression) > LONGEST:
        raise ValueError(f"the expression has {len(expression)} characters; expected at most {LONGEST}")
    text = expression.replace("×", "*").replace("÷", "/").replace("^", "**").strip()
    try:
        tree = ast.parse(text, mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise ValueError(f"{expression!r} is no arithmetic expression") from None
    value = _value(tree)
    if value.denominator == 1:
        return str(value.numerator)
    try:
        return f"{float(value):.12g}"
    except OverflowError:
        raise ValueError("the value is too large") from None


def _value(node: ast.expr) -> Fraction:
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        return _small(Fraction(str(node.value)))
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.UAdd):
        value = _value(node.operand)
        return -value if isinstance(node.op, ast.USub) else value
    if isinstance(node, ast.BinOp):
        left, right = _value(node.left), _value(node.right)
        if isinstance(node.op, ast.Pow):
            return _power(left, right)
        if type(node.op) in _OPERATORS:
            return _small(_OPERATORS[type(node.op)](left, right))
    raise ValueError(f"{ast.unparse(node)[:80]!r} is no arithmetic; expected numbers, + - * / // % ** and parentheses")


def _power(base: Fraction, exponent: Fraction) -> Fraction:
    if exponent.denominator != 1:
        raise ValueError("an exponent is no whole number")
    if abs(exponent) * _bits(base) > MOST_BITS:
        raise ValueError(f"a power has more than {MOST_DIGITS} digits")
    return base ** int(exponent)


def _bits(value: Fraction) -> int:
    return max(value.numerator.bit_length(), value.denominator.bit_length())


def _small(value: Fraction) -> Fraction:
    if _bits(value) > MOST_BITS:
        raise ValueError(f"a number has more than {MOST_DIGITS} digits")
    return value


def python_in(limits: Limits) -> Callable[[str], str]:
    """Make the tool that runs Python in a sandbox of these limits."""

    def python(code: str) -> str:
        """Run a Python program and return what it prints.

        Args:
            code: the program; only what it prints is seen

        """
        result = run_program(Program(code), b"", limits)
        if result.trouble is not None:
            raise Unavailable(result.trouble)
        said = (result.stdout + result.stderr).decode(errors="replace")
        if result.timed_out:
            said += f"\nError: it ran for more than {limits.seconds:g} s and was ended"
        elif result.over_output:
            said += f"\nError: it printed more than {limits.output_kib} KiB and was ended"
        elif result.exit_code and not result.stderr:
            said += f"\nError: exit code {result.exit_code}"
        return said.strip() or "(it printed nothing)"

    return python
