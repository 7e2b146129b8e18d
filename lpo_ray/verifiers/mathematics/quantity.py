"""One number or expression with its unit, and when two of them are the same.

A decimal of six or more places is also the number that it is the rounding of, when that has no end as a decimal. 50% is
50 and also 0.5; 45 degrees is 45 and also pi/4; a unit does not matter, but another one does.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from lpo_ray.verifiers.mathematics import arithmetic, units
from lpo_ray.verifiers.mathematics import expression as expressions
from lpo_ray.verifiers.mathematics.arithmetic import Value, at_most
from lpo_ray.verifiers.mathematics.expression import Expression

ABSOLUTE, RELATIVE = Fraction(51, 10**8), Fraction(1, 10**5)
"""how far a decimal may be from a number that has no end as a decimal"""
SIGNIFICANT = 3
"""digits that such a decimal has at least, not counting zeros in front"""
DECIMALS = 6
"""places that such a decimal has at least"""


@dataclass(frozen=True, slots=True)
class Quantity:
    """One number or expression."""

    expression: Expression
    unit: str = ""
    """"%", a known unit, or "" """
    decimals: int | None = None
    """digits after the point of a number that is written as a decimal; None for others"""


def same_quantity(given: Quantity, wanted: Quantity, near: Fraction = Fraction(0)) -> bool:
    """Tell whether two quantities are equal, or as near as ``near`` says, absolutely and relative to ``wanted``."""
    if units.differ(given.unit, wanted.unit):
        return False
    if given.unit == wanted.unit or {given.unit, wanted.unit} & {"%", "degree"} == set():
        return _same_number(given, wanted, Fraction(1), near)
    unit = given.unit or wanted.unit
    factor = Fraction(1, 100) if unit == "%" else arithmetic.divide(expressions.constant("pi"), Fraction(180))
    return _same_number(given, wanted, Fraction(1), near) or _same_number(
        given, wanted, factor if given.unit else arithmetic.divide(Fraction(1), factor), near
    )


def _same_number(given: Quantity, wanted: Quantity, factor: Value, near: Fraction) -> bool:
    left, right = given.expression, wanted.expression
    if left.letters or right.letters:
        return factor == 1 and expressions.same(left, right)
    one, other = left.value(), right.value()
    if one is None or other is None:
        return one is None and other is None and expressions.same_written(left, right)
    one = one if factor == 1 else arithmetic.multiply(one, factor)
    if arithmetic.equal(one, other):
        return True
    if not (arithmetic.is_real(one) and arithmetic.is_real(other)):
        return False
    distance = arithmetic.distance(one, other)
    if near and at_most(distance, near) and at_most(distance, arithmetic.multiply(near, abs(other))):
        return True
    return _may_be_rounded(given.decimals, one, wanted.decimals, other) and _within(distance, other)


def _may_be_rounded(decimals: int | None, value: Value, other_decimals: int | None, other: Value) -> bool:
    """Tell whether one of two numbers may be the other, rounded."""
    if decimals is not None and other_decimals is not None:
        shorter = value if decimals < other_decimals else other
        return (
            min(decimals, other_decimals) >= DECIMALS
            and decimals != other_decimals
            and _is_significant(shorter, min(decimals, other_decimals))
        )
    if decimals is not None:
        return not _is_decimal(other) and _is_significant(value, decimals)
    return other_decimals is not None and not _is_decimal(value) and _is_significant(other, other_decimals)


def _is_significant(value: Value, decimals: int) -> bool:
    return at_most(Fraction(10 ** (SIGNIFICANT - 1), 10**decimals), abs(value))


def _is_decimal(value: Value) -> bool:
    """Tell whether a number has an end as a decimal."""
    if not isinstance(value, Fraction):
        return False
    below = value.denominator
    for prime in (2, 5):
        while below % prime == 0:
            below //= prime
    return below == 1


def _within(distance: Value, wanted: Value) -> bool:
    return at_most(distance, ABSOLUTE) and at_most(distance, arithmetic.multiply(RELATIVE, abs(wanted)))


def is_rounded_from(rounded: Quantity, value: Quantity) -> bool:
    """Tell whether one of two numbers is a decimal that the other is, to as many places."""
    for decimal, exact in ((rounded, value), (value, rounded)):
        one, other = decimal.expression.value(), exact.expression.value()
        if decimal.decimals is None or one is None or other is None:
            continue
        if not (arithmetic.is_real(one) and arithmetic.is_real(other)):
            continue
        distance = arithmetic.distance(one, other)
        if decimal.decimals >= 1 and at_most(distance, Fraction(51, 100 * 10**decimal.decimals)):
            return True
    return False


def vote_of_number(reading: Quantity) -> str:
    """Return a text that equal quantities have in common."""
    if reading.expression.letters:
        return values_of(reading.expression)
    value = reading.expression.value()
    if value is None:
        return repr(reading.expression.tree)
    if not arithmetic.is_real(value):
        return f"{complex(value):.9g}"
    if isinstance(value, Fraction) and value.denominator == 1:
        return str(value.numerator) if value.numerator.bit_length() < 1000 else f"{value.numerator:x}"
    return decimal(value)


def decimal(value: Value) -> str:
    """Write a number that is not whole as far as answers are compared when one of them is a decimal."""
    try:
        number = float(value)
    except OverflowError:
        return str(value)
    rounded = round(number, 6)
    if abs(rounded) >= 0.1:
        return f"{rounded:.6f}" if not rounded.is_integer() else str(int(rounded))
    return f"{number:.5g}"


def values_of(expression: Expression, *, relative: bool = False) -> str:
    """Write the values of an expression at the points where they are compared; relative to the first of them."""
    if expression.tree[0] == "letter":
        return expression.tree[1]
    values = [expression.value(point) for point in expressions.points_of(expression)]
    real = [(at, value) for at, value in enumerate(values) if value is not None and arithmetic.is_real(value)]
    if len(real) < 2:
        return repr(expression.tree)
    first = real[0][1] if relative and real[0][1] != 0 else Fraction(1)
    return " ".join(f"{float(arithmetic.divide(value, first)):.9g}" for _, value in real[:3])
