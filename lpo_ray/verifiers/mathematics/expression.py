r"""Expressions as trees, and their values where their letters are numbers.

Two expressions are the same when they have the same values at every one of POINTS where both are real: letters are
given numbers of both signs that satisfy no equation that an answer could state. So no text is ever executed, nothing
is simplified, and time is linear in the length of the text.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from hashlib import blake2b

from lpo_ray.verifiers.mathematics import arithmetic
from lpo_ray.verifiers.mathematics.arithmetic import NoValue, Value

NUM_POINTS = 7

Node = tuple
"""("number", Fraction), ("letter", name), ("constant", name), ("sum", [(sign, node)]), ("product", [(inverse, node)]),
or an operation's name and its nodes"""


@dataclass(frozen=True, slots=True)
class Expression:
    """An expression and its letters, in order."""

    tree: Node
    letters: tuple[str, ...]
    is_complex: bool
    """whether the imaginary unit is in it"""

    def value(self, point: int = 0) -> Value | None:
        """Return its value at a point; None where it has none."""
        return _value_at(self, point)


@lru_cache(maxsize=4096)
def _value_at(expression: Expression, point: int) -> Value | None:
    try:
        return _evaluate(expression.tree, {name: letter_at(name, point) for name in expression.letters})
    except (NoValue, OverflowError):
        return None


@lru_cache(maxsize=1024)
def letter_at(name: str, point: int) -> Fraction:
    """Return the number that a letter is at a point: positive at the first four, of either sign at the others, and
    whole from NUM_POINTS on.
    """
    digest = blake2b(f"{name} {point}".encode(), digest_size=4).digest()
    size = Fraction(101 + digest[0] + 256 * digest[1] % 1931, (97, 89, 331, 1009)[point % 4])
    if point >= NUM_POINTS:
        size = Fraction((digest[0] + 2) * (60 if point % 2 else 1))
    return -size if point >= 4 and (digest[2] + point) % 2 else size


def points_of(*expressions: Expression) -> tuple[int, ...]:
    """Return the points where expressions are compared: with whole numbers too where floor or ceiling is of them."""
    fractions = tuple(range(NUM_POINTS))
    if not any(_has_steps(expression.tree) for expression in expressions):
        return fractions
    return tuple(point for pair in zip(range(NUM_POINTS, 2 * NUM_POINTS), fractions, strict=True) for point in pair)


def _has_steps(node: object) -> bool:
    return isinstance(node, tuple) and (node[:1] in (("floor",), ("ceil",)) or any(map(_has_steps, node)))


def _evaluate(node: Node, letters: Mapping[str, Fraction]) -> Value:
    kind = node[0]
    if kind == "number":
        return node[1]
    if kind == "letter":
        return letters[node[1]]
    if kind == "constant":
        return constant(node[1])
    if kind == "sum":
        total: Value = Fraction(0)
        for sign, term in node[1]:
            value = _evaluate(term, letters)
            total = arithmetic.add(total, value if sign > 0 else arithmetic.multiply(Fraction(-1), value))
        return total
    if kind == "product":
        total = Fraction(1)
        for inverse, factor in node[1]:
            total = (arithmetic.divide if inverse else arithmetic.multiply)(total, _evaluate(factor, letters))
        return total
    values = [_evaluate(part, letters) for part in node[1:]]
    return _operation(kind, values)


def constant(name: str) -> Value:
    """Return pi, e, or the imaginary unit i."""
    context = arithmetic.library()
    return context.mpc(0, 1) if name == "i" else +(context.pi if name == "pi" else context.e)


def _operation(kind: str, values: list[Value]) -> Value:
    if kind in ("max", "min"):
        return arithmetic.extreme(kind, values)
    if kind == "power":
        return arithmetic.power(*values)
    if kind == "root":
        return arithmetic.root(*values)
    if kind == "log" and len(values) == 2:
        base, value = (arithmetic.function("ln", part) for part in values)
        exact = _exact_log(*values)
        return arithmetic.divide(value, base) if exact is None else exact
    if kind == "factorial":
        return arithmetic.factorial_of(*values)
    if kind == "binomial":
        return arithmetic.binomial(*values)
    if kind == "degrees":
        return arithmetic.multiply(values[0], arithmetic.divide(constant("pi"), Fraction(180)))
    return arithmetic.function({"acos": "arccos", "asin": "arcsin", "atan": "arctan"}.get(kind, kind), values[0])


def _exact_log(base: Value, value: Value) -> Fraction | None:
    """Return a logarithm that is a whole number, exactly."""
    if not (isinstance(base, Fraction) and isinstance(value, Fraction)) or base <= 0 or base == 1 or value <= 0:
        return None
    power = 0
    whole = value if value >= 1 else 1 / value
    step = base if base > 1 else 1 / base
    while whole > 1 and power < 200:
        whole, power = whole / step, power + 1
    if whole != 1:
        return None
    return Fraction(power if (value >= 1) == (base > 1) else -power)


def same_written(left: Expression, right: Expression) -> bool:
    """Tell whether two expressions are written the same, but for the order of terms and factors."""
    return left.tree == right.tree or _in_order(left.tree) == _in_order(right.tree)


def _in_order(node: Node) -> Node:
    if node[0] in ("sum", "product"):
        return (node[0], tuple(sorted(((sign, _in_order(part)) for sign, part in node[1]), key=repr)))
    return tuple(_in_order(part) if isinstance(part, tuple) else part for part in node)


def same(left: Expression, right: Expression) -> bool:
    """Tell whether two expressions have the same value wherever both are real."""
    if same_written(left, right):
        return True
    if not left.letters and not right.letters:
        one, other = left.value(), right.value()
        return one is not None and other is not None and arithmetic.equal(one, other)
    compared = 0
    for point in points_of(left, right):
        one, other = left.value(point), right.value(point)
        if one is None or other is None:
            continue
        if not (left.is_complex or right.is_complex) and not (arithmetic.is_real(one) and arithmetic.is_real(other)):
            continue
        if not arithmetic.equal(one, other):
            return False
        compared += 1
    return compared >= 2


def proportional(left: Expression, right: Expression, *, positive: bool) -> bool:
    """Tell whether one expression is the other times a number (a positive one): equations and inequalities of 0."""
    ratios: list[Value] = []
    for point in points_of(left, right):
        one, other = left.value(point), right.value(point)
        if one is None or other is None or not (arithmetic.is_real(one) and arithmetic.is_real(other)):
            continue
        if one == 0 and other == 0:
            continue
        if one == 0 or other == 0:
            return False
        try:
            ratios.append(arithmetic.divide(one, other))
        except NoValue:
            continue
    if len(ratios) < 3 or not (left.letters and right.letters):
        return False
    return all(arithmetic.equal(ratios[0], ratio) for ratio in ratios) and (not positive or ratios[0] > 0)
