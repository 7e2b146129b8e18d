r"""One number or expression, and what is spelled around it: groups of digits, a base, a unit, both signs, a ratio."""

from __future__ import annotations

from collections.abc import Sequence

from lpo_ray.verifiers.mathematics import units
from lpo_ray.verifiers.mathematics.expression import Expression
from lpo_ray.verifiers.mathematics.kinds import Based, Grouped, Infinite, Items, Reading, Words
from lpo_ray.verifiers.mathematics.names import group_end
from lpo_ray.verifiers.mathematics.parser import expression_of
from lpo_ray.verifiers.mathematics.quantity import Quantity
from lpo_ray.verifiers.mathematics.spelling import FUNCTIONS
from lpo_ray.verifiers.mathematics.token_parts import split, words_of

MAX_SIGNS = 3
"""signs of plus or minus; each doubles how many values there are"""


_ORDINALS = frozenset(("st", "nd", "rd", "th"))


_DEGREES = (("^", "\\circ"), ("^", "{", "\\circ", "}"), ("\\degree",), ("\\circ",), ('"degree',), ('"degrees',))


_FUNCTIONS = frozenset(f"\\{name}" for name in FUNCTIONS)


_BASES = {'"two': 2, '"three': 3, '"four': 4, '"five': 5, '"six': 6, '"seven': 7, '"eight': 8, '"nine': 9, '"ten': 10}


def based(found: tuple[str, ...]) -> Reading | None:
    r"""Read a number in another base: ``1011_2``, ``(1A)_{16}``, ``1011_{\text{two}}``."""
    if "_" not in found:
        return None
    at = found.index("_")
    digits, base = found[:at], found[at + 1 :]
    if len(digits) > 2 and (digits[0], digits[-1]) == ("(", ")"):
        digits = digits[1:-1]
    if len(base) > 2 and (base[0], base[-1]) == ("{", "}"):
        base = base[1:-1]
    said = "".join(digits).replace('"', "").upper()
    if len(base) != 1 or not (base[0] in _BASES or base[0].isdigit()) or not said[:1].isdigit():
        return None
    if not all(character in "0123456789ABCDEF" for character in said) or len(base[0]) > 5:
        return None
    return Based(said, _BASES.get(base[0]) or int(base[0]))


def grouped(found: tuple[str, ...]) -> Reading | None:
    """Read groups of three digits that are the whole text: ``1,234``, ``1 234``, ``$1,234.50``, ``30,150 meters``."""
    start, end = 0, len(found)
    while start < end and (found[start] in ("-", "+") or found[start] in units.CURRENCY):
        start += 1
    digits = [at for at in range(start, end) if found[at][0].isdigit()]
    if len(digits) < 2 or digits[0] != start:
        return None
    step = digits[1] - digits[0]
    groups = found[start : digits[-1] + 1 : step]
    marks = found[start + 1 : digits[-1] + 1 : 2] if step == 2 else ()
    last = groups[-1].partition(".")[0]
    is_number = (
        step in (1, 2)
        and digits == list(range(start, digits[-1] + 1, step))
        and all(mark == "," for mark in marks)
        and groups[0].isdigit()
        and len(groups[0]) <= 3
        and groups[0] != "0"
        and all(group.isdigit() and len(group) == 3 for group in groups[1:-1])
        and last.isdigit()
        and len(last) == 3
        and "e" not in groups[-1].lower()
    )
    if not is_number:
        return None
    number = quantity_of((*found[:start], "".join(groups), *found[digits[-1] + 1 :]))
    if number is None or not isinstance(number, Quantity):
        return None
    if step == 1 or start or digits[-1] + 1 < end or any(group[0] == "0" for group in groups[1:]) or "." in groups[-1]:
        return number
    items = tuple(quantity_of((group,)) or Words(group) for group in groups)
    is_list = (
        len(groups) == 2 and all(len(group) == 3 and group[-1] == "0" for group in groups) and groups[0] < groups[1]
    )
    return Grouped(number, Items("list", items), is_list)


def signed(found: tuple[str, ...]) -> Reading | None:
    r"""Read ``2 \pm \sqrt{3}`` as a list of its values."""
    signs = [at for at, token in enumerate(found) if token in ("\\pm", "\\mp")]
    if not signs:
        return None
    if len(signs) > MAX_SIGNS:
        return words_of(found)
    together = any(found[at] == "\\mp" for at in signs)
    values: list[Reading] = []
    for choice in range(2 if together else 2 ** len(signs)):
        chosen = list(found)
        for number, at in enumerate(signs):
            plus = (choice == 0) == (found[at] == "\\pm") if together else not choice >> number & 1
            chosen[at] = "+" if plus else "-"
        value = quantity_of(tuple(chosen))
        if value is None:
            return words_of(found)
        values.append(value)
    return Items("or", tuple(values))


def ratio(found: tuple[str, ...]) -> Reading | None:
    """Read ``3:4``, also a time of day."""
    parts, between = split(found, (":",))
    if not between:
        return None
    if not all(parts):
        return words_of(found)
    items = tuple(map(quantity_of, parts))
    if not all(isinstance(item, Quantity) for item in items):
        return words_of(found)
    last, _ = units.without_unit(parts[1])
    clock = len(last) == 1 and len(last[0]) == 2 and last[0].isdigit()
    return Items("clock" if clock else "ratio", tuple(item for item in items if item is not None))


def quantity_of(found: tuple[str, ...]) -> Reading | None:
    """Read one number or expression, without its unit, currency, percent or degree sign; None when it is none."""
    infinite = _infinite(found)
    if infinite is not None:
        return infinite
    found, modulus = _without_modulus(_without_ordinal(found))
    found, currency = _without_currency(found)
    bare, unit = units.without_unit(found)
    bare, scale = units.without_scale(bare)
    found, unit = tuple(bare), modulus or unit or currency
    if found[-1:] in (("%",), ('"percent',)):
        found, unit = found[:-1], "%"
    scale_of_heat = found[-1:] if found[-1:] in (("C",), ("F",), ("K",)) else ()
    for sign in _DEGREES:
        end = (*sign, *scale_of_heat)
        if len(found) > len(end) and found[-len(end) :] == end and not _FUNCTIONS & set(found):
            found, unit = found[: -len(end)], "/".join(("degree", *scale_of_heat))
    if not found or (found[:1] == ("[",) and group_end(found, 0) == len(found)):
        return None
    expression = expression_of(found)
    if expression is None:
        return None
    if scale != 1:
        expression = Expression(
            ("product", ((False, expression.tree), (False, ("number", scale)))), expression.letters, False
        )
    return Quantity(expression, unit, _decimals(found))


def _without_ordinal(found: tuple[str, ...]) -> tuple[str, ...]:
    r"""Leave out what makes a number an ordinal, as in ``5^{\text{th}}``."""
    start = len(found) - 1 - found[::-1].index("^") if "^" in found else len(found)
    tail = found[start + 2 : -1] if found[start + 1 : start + 2] == ("{",) else found[start + 1 : start + 2]
    said = "".join(token.strip('"') for token in tail)
    return found[:start] if start == 1 and found[0].isdigit() and said in _ORDINALS else found


def _without_modulus(found: tuple[str, ...]) -> tuple[tuple[str, ...], str]:
    r"""Return the tokens before ``\pmod{7}`` and ``mod 7``; "" where there is no modulus."""
    if "\\pmod" not in found[1:]:
        return found, ""
    at = found.index("\\pmod", 1)
    said = "".join(token for token in found[at + 1 :] if token not in ("{", "}"))
    return (found[:at], f"mod {said}") if said.isdigit() else (found, "")


def _without_currency(found: tuple[str, ...]) -> tuple[tuple[str, ...], str]:
    """Return the tokens without a sign of currency before or after them, and its name; "" where it has none."""
    sign = found[:1] if found[:1] == ("-",) else ()
    rest = found[len(sign) :]
    if rest and rest[0] in units.CURRENCY:
        return (*sign, *rest[1:]), "usd" if rest[0] == "\\$" else ""
    if rest and rest[-1] in units.CURRENCY:
        return (*sign, *rest[:-1]), "usd" if rest[-1] == "\\$" else ""
    return found, ""


def _decimals(found: Sequence[str]) -> int | None:
    digits = found[1:] if found[0] in ("-", "+") else found
    is_decimal = len(digits) == 1 and "." in digits[0] and "e" not in digits[0].lower()
    return len(digits[0].partition(".")[2]) if is_decimal else None


def _infinite(found: tuple[str, ...]) -> Infinite | None:
    if found[-1:] != ("\\infty",) or len(found) > 2:
        return None
    if len(found) == 1:
        return Infinite(1)
    return {"-": Infinite(-1), "+": Infinite(1)}.get("".join(found[:-1]))
