"""Arithmetic that is exact as long as numbers are rational, and of 100 digits beyond; no operation takes long.

A value is a Fraction, or a real or complex number of mpmath. NoValue is raised for what has none, and for what would
be larger than the limits: a text may ask for ``9^{9^9}``. Nor has one what the digits cannot tell from another number,
such as ``1 + e^{-1000}`` from 1.
"""

from __future__ import annotations

from fractions import Fraction
from functools import cache
from math import comb, factorial, isqrt
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

MAX_BITS = 16_384
"""size of numerator and denominator"""
MAX_FACTORIAL = 999
MAX_DEGREE = 64
"""of roots that are taken exactly"""
MAX_ARGUMENT = 10_000
"""of functions and in exponents of irrational numbers, and the binary magnitude of what comes out"""
DIGITS = 100
_SAME = 1e-70
_CANCELLED = 1e-90
_LARGE = 1e30
_PLAIN = (1, 720_720)
"""denominators of rational numbers that an irrational one may look like"""

Value = Any
"""Fraction, mpf or mpc"""


class NoValue(ArithmeticError):
    """Error of an operation without a value."""


@cache
def library() -> Any:  # noqa: ANN401 - a context of mpmath, which has no types
    """Import mpmath when the first irrational number is met."""
    import mpmath

    context = mpmath.mp.clone()
    context.dps = DIGITS
    return context


def inexact(value: Value) -> Value:
    """Return a number of mpmath."""
    if isinstance(value, Fraction):
        return library().mpf(value.numerator) / value.denominator
    return value


def is_real(value: Value) -> bool:
    """Tell whether a value has no imaginary part."""
    return isinstance(value, Fraction) or not isinstance(value, library().mpc) or value.imag == 0


def _checked(value: Value) -> Value:
    if isinstance(value, Fraction):
        if max(value.numerator.bit_length(), value.denominator.bit_length()) > MAX_BITS:
            raise NoValue
        return value
    context = library()
    if not context.isfinite(value):
        raise NoValue
    if isinstance(value, context.mpc):
        if abs(value.imag) <= _CANCELLED * abs(value.real):
            value = value.real
        elif abs(value.real) <= _CANCELLED * abs(value.imag):
            value = context.mpc(0, value.imag)
    if value and abs(context.mag(value)) > MAX_ARGUMENT:
        raise NoValue
    return value


def add(left: Value, right: Value) -> Value:
    """Add; what is left when equal irrational numbers cancel is 0. Raises NoValue when one is lost beside the other."""
    if isinstance(left, Fraction) and isinstance(right, Fraction):
        return _checked(left + right)
    left, right = inexact(left), inexact(right)
    if left and right and min(abs(left), abs(right)) <= _SAME * max(abs(left), abs(right)):
        raise NoValue
    total = left + right
    return Fraction(0) if abs(total) <= _CANCELLED * max(abs(left), abs(right)) else _checked(total)


def distance(left: Value, right: Value) -> Value:
    """Return how far two values are apart."""
    if isinstance(left, Fraction) and isinstance(right, Fraction):
        return abs(left - right)
    return abs(inexact(left) - inexact(right))


def multiply(left: Value, right: Value) -> Value:
    """Multiply."""
    if isinstance(left, Fraction) and isinstance(right, Fraction):
        return _checked(left * right)
    if left == 0 or right == 0:
        return Fraction(0)
    return _checked(inexact(left) * inexact(right))


def divide(left: Value, right: Value) -> Value:
    """Divide. Raises NoValue by 0."""
    if right == 0:
        raise NoValue
    if isinstance(left, Fraction) and isinstance(right, Fraction):
        return _checked(left / right)
    return _checked(inexact(left) / inexact(right))


def power(base: Value, exponent: Value) -> Value:
    """Raise to a power, exactly where the result is rational; otherwise the principal value."""
    if isinstance(base, Fraction) and isinstance(exponent, Fraction):
        exact = _rational_power(base, exponent)
        if exact is not None:
            return exact
    if base == 0:
        raise NoValue
    context = library()
    is_rational = isinstance(base, Fraction) and isinstance(exponent, Fraction)
    is_root = is_rational and exponent.denominator <= MAX_DEGREE
    is_irrational = is_rational or (isinstance(exponent, Fraction) and exponent != 0 and base == context.e)
    base, exponent = inexact(base), inexact(exponent)
    if abs(exponent) > MAX_ARGUMENT or abs(exponent) * abs(context.mag(base)) > 2 * MAX_ARGUMENT:
        raise NoValue
    result = _checked(context.power(base, exponent))
    return _told_from_rational(result, is_root=is_root) if is_irrational else result


def _told_from_rational(value: Value, *, is_root: bool = False) -> Value:
    """Return an irrational value. Raises NoValue when its digits are those of a rational number."""
    if not is_real(value) or value == 0:
        return value
    number = inexact(value).real
    if not is_root and abs(number) > _LARGE:
        return value  # nobody writes down the whole number beside it
    for denominator in _PLAIN:
        whole = library().nint(number * denominator)
        if whole and abs(number * denominator - whole) <= _SAME * abs(whole):
            raise NoValue
    return value


def _rational_power(base: Fraction, exponent: Fraction) -> Fraction | None:
    """Return a rational power of a rational number; None when it is irrational."""
    if exponent.denominator == 1:
        n = exponent.numerator
        if base == 0 and n <= 0:
            raise NoValue
        bits = max(base.numerator.bit_length(), base.denominator.bit_length())
        if base in (0, 1, -1):
            return base ** (n % 2 or 2) if base else base
        if abs(n) * (bits - 1) > MAX_BITS:
            raise NoValue
        return _checked(base**n)
    if base == 1:
        return base
    if base < 0 or exponent.denominator > MAX_DEGREE:
        return None
    above, below = (_exact_root(part, exponent.denominator) for part in (base.numerator, base.denominator))
    if above is None or below is None:
        return None
    return _rational_power(Fraction(above, below), Fraction(exponent.numerator))


def root(degree: Value, value: Value) -> Value:
    """Take the principal root; the real one of a negative number when the degree is odd."""
    if degree == 0:
        raise NoValue
    if isinstance(degree, Fraction) and degree.denominator == 1 and degree % 2 == 1 and is_real(value) and value < 0:
        return multiply(Fraction(-1), root(degree, multiply(Fraction(-1), value)))
    return power(value, divide(Fraction(1), degree))


def _exact_root(number: int, degree: int) -> int | None:
    if number < 2:
        return number
    if degree == 2:
        found = isqrt(number)
        return found if found * found == number else None
    found, last = 1 << -(-number.bit_length() // degree), 0
    while found != last:  # Newton's steps go down to the root, rounded down
        last, found = found, min(found, ((degree - 1) * found + number // found ** (degree - 1)) // degree)
    return found if found**degree == number else None


def factorial_of(value: Value) -> Value:
    """Compute a factorial: of a whole number exactly, else by the gamma function."""
    if isinstance(value, Fraction) and value.denominator == 1:
        if not 0 <= value <= MAX_FACTORIAL:
            raise NoValue
        return Fraction(factorial(value.numerator))
    if abs(inexact(value)) > MAX_FACTORIAL:
        raise NoValue
    return _called(library().gamma, add(value, Fraction(1)))


def binomial(above: Value, below: Value) -> Value:
    """Compute a binomial coefficient: of whole numbers exactly, else by the gamma function."""
    if isinstance(above, Fraction) and isinstance(below, Fraction) and above.denominator == below.denominator == 1:
        if not 0 <= above <= MAX_ARGUMENT:
            raise NoValue
        return _checked(Fraction(comb(above.numerator, below.numerator) if below >= 0 else 0))
    if max(abs(inexact(above)), abs(inexact(below))) > MAX_FACTORIAL:
        raise NoValue
    return _called(lambda pair: library().binomial(*pair), (inexact(above), inexact(below)))


def function(name: str, value: Value) -> Value:
    """Apply a function of one argument. Exact where it is 0 or 1; |x|, floor and ceiling of what is real."""
    if name in ("abs", "floor", "ceil"):
        return _rounded(name, value)
    if value == 0 and name in ("sin", "tan", "arcsin", "arctan", "sinh", "tanh", "asin", "atan"):
        return Fraction(0)
    if value == 0 and name in ("cos", "sec", "cosh", "exp"):
        return Fraction(1)
    if value == 1 and name in ("ln", "log"):
        return Fraction(0)
    context, argument = library(), inexact(value)
    if argument and abs(context.mag(argument)) > 14 and name not in ("ln", "log"):
        raise NoValue
    if argument == 0 and name in ("ln", "log", "cot", "csc"):
        raise NoValue
    names = {"arcsin": "asin", "arccos": "acos", "arctan": "atan", "log": "log10"}
    result = _called(getattr(context, names.get(name, name)), argument)
    if name in ("sin", "cos", "tan", "cot") and abs(result) < _CANCELLED:
        return Fraction(0)
    if name == "tanh" or (isinstance(value, Fraction) and name != "log"):
        return _told_from_rational(result)
    return result


def extreme(name: str, values: Sequence[Value]) -> Value:
    """Return the largest ("max") or smallest ("min") of real values."""
    if not all(map(is_real, values)):
        raise NoValue
    found = values[0]
    for value in values[1:]:
        if at_most(found, value) == (name == "max"):
            found = value
    return found


def _rounded(name: str, value: Value) -> Value:
    if name == "abs":
        return abs(value)
    if not is_real(value):
        raise NoValue
    if isinstance(value, Fraction):
        return Fraction(value.__floor__() if name == "floor" else value.__ceil__())
    context = library()
    nearest = context.nint(value.real)
    if abs(value.real - nearest) < 1e-80 * max(1, abs(nearest)):
        return Fraction(int(nearest))
    return Fraction(int(context.floor(value.real) if name == "floor" else context.ceil(value.real)))


def _called(routine: Callable[[Value], Value], argument: Value) -> Value:
    try:
        return _checked(routine(argument))
    except NoValue:
        raise
    except (ValueError, ArithmeticError, RuntimeError) as error:  # poles, and series that do not converge
        raise NoValue from error


def equal(left: Value, right: Value) -> bool:
    """Tell whether two values are equal: exactly, or in their first 70 digits where one is irrational."""
    if isinstance(left, Fraction) and isinstance(right, Fraction):
        return left == right
    if left == 0 or right == 0:
        return left == right
    left, right = inexact(left), inexact(right)
    return abs(left - right) <= _SAME * max(abs(left), abs(right))


def at_most(value: Value, bound: Value) -> bool:
    """Tell whether a real value is not above a bound."""
    if isinstance(value, Fraction) and isinstance(bound, Fraction):
        return value <= bound
    return bool(inexact(value) <= inexact(bound))
