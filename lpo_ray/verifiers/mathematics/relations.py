"""Equations, inequalities, memberships and unions of sets."""

from __future__ import annotations

from collections.abc import Sequence

from lpo_ray.verifiers.mathematics.amounts import grouped, quantity_of
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
        return None
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
        if not is_variable(sides[0]) and is_variable(sides[1]):
            plain, signs = [sides[1], sides[0]], [_MIRRORED[signs[0]]]
        value = _end_of_interval(plain[1])
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


def _end_of_interval(found: tuple[str, ...]) -> Reading | None:
    value = grouped(found) or quantity_of(found)
    if isinstance(value, Grouped):
        value = value.number
    return value if isinstance(value, Quantity | Infinite) else None
