"""Whether two readings are the same answer, and the one text that equal answers vote with."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fractions import Fraction

from lpo_ray.verifiers.mathematics import arithmetic
from lpo_ray.verifiers.mathematics import expression as expressions
from lpo_ray.verifiers.mathematics.arithmetic import Value
from lpo_ray.verifiers.mathematics.expression import Expression
from lpo_ray.verifiers.mathematics.kinds import (
    Based,
    Choice,
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
from lpo_ray.verifiers.mathematics.quantity import Quantity, same_quantity, values_of, vote_of_number


def same(given: Reading, wanted: Reading, near: Fraction = Fraction(0)) -> bool:
    """Tell whether ``given`` is the answer ``wanted``. ``near``: how far two numbers may be apart, absolutely and
    relative to the answer.
    """
    for reader in (_same_grouped, _same_choice, _same_unknowns, _same_named, _same_based):
        verdict = reader(given, wanted, near)
        if verdict is not None:
            return verdict
    if isinstance(given, Words) or isinstance(wanted, Words):
        return given == wanted
    if isinstance(given, Quantity) and isinstance(wanted, Quantity):
        return same_quantity(given, wanted, near)
    if isinstance(given, Infinite) or isinstance(wanted, Infinite):
        return given == wanted
    if isinstance(given, Equation) or isinstance(wanted, Equation):
        return _same_equation(given, wanted)
    if isinstance(given, Union) or isinstance(wanted, Union):
        return _same_sets(_parts(given), _parts(wanted), near)
    if isinstance(given, Interval) or isinstance(wanted, Interval):
        return _same_interval(given, wanted, near)
    return _same_items(given, wanted, near)


def _same_grouped(given: Reading, wanted: Reading, near: Fraction) -> bool | None:
    if isinstance(wanted, Grouped):
        if isinstance(given, Grouped):
            return same(given.number, wanted.number, near) or same(given.items, wanted.items, near)
        if wanted.is_list:
            return same(given, wanted.items, near)
        return same(given, wanted.number, near) or same(given, wanted.items, near)
    if isinstance(given, Grouped):
        return same(given.number, wanted, near) or same(given.items, wanted, near)
    return None


def _same_choice(given: Reading, wanted: Reading, near: Fraction) -> bool | None:
    if isinstance(given, Choice) and isinstance(wanted, Choice):
        return given.letter == wanted.letter and same(given.value, wanted.value, near)
    if isinstance(wanted, Choice):
        return _is_letter(given, wanted.letter) or same(given, wanted.value, near)
    if isinstance(given, Choice):
        return _is_letter(wanted, given.letter) or same(given.value, wanted, near)
    return None


def _is_letter(reading: Reading, letter: str) -> bool:
    return isinstance(reading, Quantity) and reading.expression.tree == ("letter", letter)


def _same_unknowns(given: Reading, wanted: Reading, near: Fraction) -> bool | None:
    """Compare by name where both name the same unknowns: ``x = 5, y = 6``, ``AB = 5, BC = 6``, ``(y, x) = (6, 5)``."""
    one, other = _unknowns(given), _unknowns(wanted)
    if one is None or other is None or one.keys() != other.keys() or _are_numbered(one):
        return None
    return all(same(value, other[name], near) for name, value in one.items())


def _unknowns(reading: Reading) -> dict[str, Reading] | None:
    """Return the values of two or more names; None where they are not all named, or a name is used twice."""
    if isinstance(reading, Named) and reading.name.startswith("(") and isinstance(reading.value, Items):
        names = [character for character in reading.name if character.isalpha()]
        values = reading.value.items if reading.value.kind == "tuple" else ()
    elif isinstance(reading, Items) and _kind(reading) == "list":
        named = [item for item in reading.items if isinstance(item, Named)]
        names, values = [item.name for item in named], reading.items
    else:
        return None
    if len(names) < 2 or len(names) != len(values) or len(set(names)) < len(names) or not all(names):
        return None
    return {name: value.value if isinstance(value, Named) else value for name, value in zip(names, values, strict=True)}


def _are_numbered(names: Iterable[str]) -> bool:
    """Tell whether names are one letter with subscripts, such as roots have: no order tells them apart."""
    return len({name.partition("_")[0] for name in names}) == 1


def _same_named(given: Reading, wanted: Reading, near: Fraction) -> bool | None:
    if isinstance(given, Named) and isinstance(wanted, Named):
        if given.name != wanted.name and len(given.name) == len(wanted.name) == 1:
            one, other = _as_equation(given), _as_equation(wanted)
            return one is not None and other is not None and _same_equation(one, other)
        return same(given.value, wanted.value, near)
    for named, other in ((given, wanted), (wanted, given)):
        if isinstance(named, Named):
            if isinstance(other, Equation):
                one = _as_equation(named)
                return one is not None and _same_equation(one, other)
            return same(named.value, wanted, near) if named is given else same(given, named.value, near)
    return None


def _as_equation(named: Named) -> Equation | None:
    if not isinstance(named.value, Quantity) or len(named.name) != 1:
        return None
    value = named.value.expression
    tree = ("sum", ((1, ("letter", named.name)), (-1, value.tree)))
    return Equation(Expression(tree, tuple(sorted({*value.letters, named.name})), value.is_complex), "=")


def _same_based(given: Reading, wanted: Reading, near: Fraction) -> bool | None:
    if isinstance(wanted, Based):
        if isinstance(given, Based):
            return given == wanted
        written = given.expression.value() if isinstance(given, Quantity) and not given.unit else None
        return wanted.digits.isdigit() and written == Fraction(wanted.digits)
    return False if isinstance(given, Based) else None


def _same_equation(given: Reading, wanted: Reading) -> bool:
    if not (isinstance(given, Equation) and isinstance(wanted, Equation)) or given.relation != wanted.relation:
        return False
    if expressions.same_written(given.difference, wanted.difference):
        return True
    return expressions.proportional(given.difference, wanted.difference, positive=given.relation != "=")


def _parts(reading: Reading) -> tuple[Reading, ...]:
    return reading.parts if isinstance(reading, Union) else (reading,)


def _same_interval(given: Reading, wanted: Reading, near: Fraction) -> bool:
    """Compare intervals; a pair in round brackets is also an open interval, a pair in square ones a closed one."""
    one, other = _as_interval(given), _as_interval(wanted)
    if one is None or other is None:
        return False
    if one.variable and other.variable and one.variable != other.variable:
        return False
    return (
        (one.low_closed, one.high_closed) == (other.low_closed, other.high_closed)
        and same(one.low, other.low, near)
        and same(one.high, other.high, near)
    )


def _as_interval(reading: Reading) -> Interval | None:
    if isinstance(reading, Interval):
        return reading
    if isinstance(reading, Items) and reading.kind == "tuple" and len(reading.items) == 2:
        return Interval(reading.items[0], reading.items[1], False, False)
    return None


def _same_items(given: Reading, wanted: Reading, near: Fraction) -> bool:
    if isinstance(given, Items) and isinstance(wanted, Items):
        left, right = given, wanted
        kinds = {_kind(left), _kind(right)}
        if kinds == {"list"}:
            one, other = (_distinct(part) if part.kind == "or" else part.items for part in (left, right))
            return (not _is_told_by_names(left, right) and _same_sets(one, other, near)) or _same_records(
                left, right, near
            )
        if kinds == {"list", "tuple"}:
            record, other = (left, right) if _kind(left) == "list" else (right, left)
            values = _record(record)
            return values is not None and _same_in_order(
                values if record is left else left.items, right.items if record is left else values, near
            )
        return len(kinds) == 1 and _same_in_order(left.items, right.items, near)
    for one, other in ((given, wanted), (wanted, given)):
        if isinstance(one, Items) and isinstance(other, Quantity):
            if _kind(one) == "list" and len(_distinct(one) if one.kind == "or" else one.items) == 1:
                return same(one.items[0], other, near) if one is given else same(other, one.items[0], near)
            if one.kind == "ratio" and len(one.items) == 2:
                return _is_ratio(one, other)
    return False


def _kind(items: Items) -> str:
    return "list" if items.kind in ("list", "or") else items.kind


def _is_ratio(ratio: Items, number: Quantity) -> bool:
    """Tell whether ``2:3`` is the number 2/3 as it is written."""
    first, second = (part.expression.value() for part in ratio.items if isinstance(part, Quantity))
    value = number.expression.value()
    return (
        isinstance(first, Fraction)
        and isinstance(second, Fraction)
        and isinstance(value, Fraction)
        and (value.numerator, value.denominator) == (first, second)
        and number.decimals is None
    )


def _distinct(items: Items) -> tuple[Reading, ...]:
    kept: list[Reading] = []
    for item in items.items:
        if not any(same(item, other) for other in kept):
            kept.append(item)
    return tuple(kept)


def _same_sets(given: Sequence[Reading], wanted: Sequence[Reading], near: Fraction) -> bool:
    """Compare in any order; each item is used once."""
    if len(given) != len(wanted):
        return False
    left = list(wanted)
    for item in given:
        found = next((at for at, other in enumerate(left) if same(item, other, near)), None)
        if found is None:
            return False
        del left[found]
    return True


def _same_in_order(given: Sequence[Reading], wanted: Sequence[Reading], near: Fraction) -> bool:
    return len(given) == len(wanted) and all(same(one, other, near) for one, other in zip(given, wanted, strict=True))


def _same_records(given: Items, wanted: Items, near: Fraction) -> bool:
    """Compare ``x = 1, y = 2`` with ``1, 2``: in the order of the names."""
    one, other = _record(given), _record(wanted)
    if (one is None) == (other is None):
        return False
    return _same_in_order(one or given.items, other or wanted.items, near)


def _is_told_by_names(left: Items, right: Items) -> bool:
    """Tell whether one of two lists has different names and the other none, so that their order is what counts."""
    names, others = ({item.name for item in part.items if isinstance(item, Named)} for part in (left, right))
    return (bool(names) != bool(others)) and len(names | others) > 1 and not _are_numbered(names | others)


def _record(reading: Reading) -> tuple[Reading, ...] | None:
    """Return the values of ``x = 1, y = 2`` and ``(x, y) = (1, 2)`` in the order of the names; None for others."""
    unknowns = _unknowns(reading)
    return None if unknowns is None else tuple(value for _, value in sorted(unknowns.items(), key=lambda pair: pair[0]))


def number_of(reading: Reading) -> Value | None:
    """Return the value of a reading that is one number, also with a name or as a ratio; None for others."""
    if isinstance(reading, Named):
        return number_of(reading.value)
    if isinstance(reading, Grouped):
        return number_of(reading.number)
    if isinstance(reading, Items) and reading.kind == "ratio" and len(reading.items) == 2:
        first, second = map(number_of, reading.items)
        return arithmetic.divide(first, second) if first is not None and second else None
    return reading.expression.value() if isinstance(reading, Quantity) and not reading.expression.letters else None


def vote(reading: Reading) -> str:
    """Return a text that is the same for readings that are the same, as far as one text can be."""
    if isinstance(reading, Words):
        return reading.text
    if isinstance(reading, Quantity):
        return vote_of_number(reading)
    if isinstance(reading, Infinite):
        return "oo" if reading.sign > 0 else "-oo"
    if isinstance(reading, Grouped):
        return vote(reading.items if reading.is_list else reading.number)
    if isinstance(reading, Named):
        values = _record(reading)
        return vote(reading.value if values is None else Items("tuple", values))
    if isinstance(reading, Choice):
        return reading.letter
    if isinstance(reading, Based):
        return f"{reading.digits}_{reading.base}"
    if isinstance(reading, Equation):
        return f"{values_of(reading.difference, relative=True)} {reading.relation} 0"
    if isinstance(reading, Union):
        return " u ".join(sorted(map(vote, reading.parts)))
    if isinstance(reading, Interval):
        opening, closing = "[" if reading.low_closed else "(", "]" if reading.high_closed else ")"
        return f"{opening}{vote(reading.low)},{vote(reading.high)}{closing}"
    votes = [vote(item) for item in (_distinct(reading) if reading.kind == "or" else reading.items)]
    if _kind(reading) == "list" and len(votes) > 1 and _record(reading) is not None:
        votes = [f"{item.name}={vote(item)}" for item in reading.items if isinstance(item, Named)]
    if _kind(reading) == "list":
        return ",".join(sorted(votes)) if len(votes) != 1 else votes[0]
    joint = {"ratio": ":", "clock": ":", "matrix": ";"}.get(reading.kind, ",").join(votes)
    return {"tuple": f"({joint})", "matrix": f"[{joint}]", "square": f"[{joint}]"}.get(reading.kind, joint)
