"""Equations, inequalities, memberships and unions of sets."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from lpo_ray.verifiers.mathematics import arithmetic
from lpo_ray.verifiers.mathematics.amounts import grouped, quantity_of
from lpo_ray.verifiers.mathematics.arithmetic import Value
from lpo_ray.verifiers.mathematics.kinds import (
    Equation,
    Grouped,
    Infinite,
    Interval,
    Items,
    Named,
    Reading,
    Union,
    Words,
)
from lpo_ray.verifiers.mathematics.names import is_variable, name_of
from lpo_ray.verifiers.mathematics.parser import expression_of
from lpo_ray.verifiers.mathematics.quantity import Quantity, is_rounded_from, same_quantity
from lpo_ray.verifiers.mathematics.token_parts import Inner, split, words_of

_ORDERS = {"<": "<", ">": ">", "\\le": "<=", "\\ge": ">="}
_RELATIONS = frozenset(("=", *_ORDERS, "\\ne", "\\approx", "\\in", "\\equiv", "\\sim", "\\to", "\\cup"))
_MIRRORED = {"<": ">", ">": "<", "<=": ">=", ">=": "<="}


def related(found: tuple[str, ...], inner: Inner) -> Reading | None:
    """Read equations, inequalities, memberships and unions of sets."""
    sides, between = split(found, _RELATIONS)
    if not between:
        return _without_points(found, inner)
    if not all(sides):
        return words_of(found)
    if set(between) == {"\\cup"}:
        return _union([inner(side) for side in sides])
    if between[0] == "\\in" and set(between[1:]) <= {"\\cup"} and name_of(sides[0]):
        inside = found[len(sides[0]) + 1 :]
        reading = inner(inside)
        return Named(name_of(sides[0]), reading)
    if set(between) <= {"=", "\\approx"}:
        return _equal_sides(sides, between, inner)
    if set(between) <= set(_ORDERS):
        return _ordered(sides, [_ORDERS[sign] for sign in between])
    if between == ["\\ne"] and name_of(sides[0]):
        value = inner(sides[1])
        if isinstance(value, Quantity):
            name, low, high = name_of(sides[0]), Infinite(-1), Infinite(1)
            return Union((Interval(low, value, False, False, name), Interval(value, high, False, False, name)))
    return words_of(found)


def _union(parts: Sequence[Reading]) -> Reading:
    if all(isinstance(part, Items) and part.kind == "list" for part in parts):
        return Items("list", tuple(item for part in parts if isinstance(part, Items) for item in part.items))
    return Union(tuple(parts))


def _without_points(found: tuple[str, ...], inner: Inner) -> Reading | None:
    r"""Read the real numbers without some points as intervals: ``\\mathbb{R} \\setminus \\{0, 1\\}``."""
    sides, between = split(found, ("\\setminus", "\\backslash"))
    if len(between) != 1 or not all(sides):
        return words_of(found) if between else None
    line, points = map(inner, sides)
    if line != Interval(Infinite(-1), Infinite(1), False, False) or not isinstance(points, Items):
        return words_of(found)
    values = [(item, item.expression.value()) for item in points.items if isinstance(item, Quantity)]
    numbers = [(arithmetic.inexact(value), item) for item, value in values if value is not None]
    if points.kind != "list" or not 0 < len(numbers) == len(points.items) or not all(map(_is_real, numbers)):
        return words_of(found)
    ends = [Infinite(-1), *(item for _, item in sorted(numbers, key=lambda pair: pair[0])), Infinite(1)]
    return Union(tuple(Interval(low, high, False, False) for low, high in pairwise(ends)))


def _is_real(number: tuple[Value, Quantity]) -> bool:
    return arithmetic.is_real(number[0])


def _equal_sides(sides: list[tuple[str, ...]], between: list[str], inner: Inner) -> Reading:
    r"""Read ``x = 5``, ``x = y = 3``, ``\\frac{3}{4} \\approx 0.75``, or an equation."""
    names, rest = [], list(sides)
    while len(rest) > 1 and name_of(rest[0]):
        names.append(name_of(rest.pop(0)))
    if names and len(rest) == 1:
        value = inner(rest[0])
        return Named(names[0] if len(names) == 1 else "", value)
    if len(rest) == 2 and not names and name_of(rest[1]) and len(name_of(rest[1])) <= 2:  # 5 = x
        value = quantity_of(rest[0])
        if isinstance(value, Quantity) and not value.expression.letters:
            return Named(name_of(rest[1]), value)
    found = [quantity_of(side) for side in rest]
    quantities = [value for value in found if isinstance(value, Quantity)]
    if len(quantities) == len(rest) and not any(value.expression.letters for value in quantities):
        return _chained(quantities, sides)
    joined: list[str] = []
    for side in sides[:-1]:
        joined += [*side, "="]
    joined += sides[-1]
    if len(sides) == 2 and between == ["="]:
        difference = expression_of((*sides[0], "-", "(", *sides[1], ")"))
        if difference is not None:
            return Equation(difference, "=")
    return words_of(joined)


def _chained(values: Sequence[Quantity], sides: Sequence[tuple[str, ...]]) -> Reading:
    """Read sides without letters: one number when all have the same value, or the last is it rounded."""
    first = values[0]
    if all(same_quantity(value, first) or is_rounded_from(value, first) for value in values[1:]):
        return first if first.decimals is None else next((v for v in values if v.decimals is None), first)
    return Words(" = ".join(" ".join(side) for side in sides))


def _ordered(sides: list[tuple[str, ...]], signs: list[str]) -> Reading:
    r"""Read inequalities of one name as an interval: ``x > 5``, ``5 < x``, ``1 < x \\le 2``."""
    plain = [side for side in sides]
    if len(sides) == 2:
        if not _is_unknown(sides[0]) and _is_unknown(sides[1]):
            plain, signs = [sides[1], sides[0]], [_MIRRORED[signs[0]]]
        value = _end_of_interval(plain[1])
        size = _size_of(plain[0], plain[1], signs[0]) if len(plain[0]) > 2 and value is not None else None
        if size is not None:
            return size
        if is_variable(plain[0]) and value is not None:
            name, closed = name_of(plain[0]), "=" in signs[0]
            if ">" in signs[0]:
                return Interval(value, Infinite(1), closed, False, name)
            return Interval(Infinite(-1), value, False, closed, name)
    elif len(sides) == 3 and is_variable(sides[1]) and len({sign[0] for sign in signs}) == 1:
        first, last = _end_of_interval(sides[0]), _end_of_interval(sides[2])
        if first is not None and last is not None:
            closed = ["=" in sign for sign in signs]
            if ">" in signs[0]:
                first, last, closed = last, first, closed[::-1]
            return Interval(first, last, closed[0], closed[1], name_of(sides[1]))
    if len(sides) == 2:
        above, below = (sides[0], sides[1]) if ">" in signs[0] else (sides[1], sides[0])
        difference = expression_of((*above, "-", "(", *below, ")"))
        if difference is not None and difference.letters:
            return Equation(difference, ">=" if "=" in signs[0] else ">")
    return Words(" ".join(" ".join(side) + f" {sign}" for side, sign in zip(sides, [*signs, ""], strict=True)))


def _is_unknown(found: tuple[str, ...]) -> bool:
    return is_variable(found) or (found[0] == found[-1] == "|" and is_variable(found[1:-1]))


def _size_of(found: tuple[str, ...], limit: tuple[str, ...], sign: str) -> Reading | None:
    """Read ``|x| < 2`` and ``|x| > 2``; None for a limit that is not a number above 0."""
    high, low = quantity_of(limit), quantity_of(("-", "(", *limit, ")"))
    if found[0] != "|" or not _is_unknown(found) or not (isinstance(high, Quantity) and isinstance(low, Quantity)):
        return None
    value, name, closed = high.expression.value(), name_of(found[1:-1]), "=" in sign
    if high.expression.letters or value is None or not arithmetic.is_real(value) or value <= 0:
        return None
    if "<" in sign:
        return Interval(low, high, closed, closed, name)
    first, last = Infinite(-1), Infinite(1)
    return Union((Interval(first, low, False, closed, name), Interval(high, last, closed, False, name)))


def _end_of_interval(found: tuple[str, ...]) -> Reading | None:
    value = grouped(found) or quantity_of(found)
    if isinstance(value, Grouped):
        value = value.number
    return value if isinstance(value, Quantity | Infinite) else None
