r"""Reading of a text of mathematics: a number, expression, list, pair, interval, matrix or equation, or words.

Responses and answers of the data set are read by ``read``, the only way in. A text is taken apart from the outside:
first what joins several answers, then brackets, then signs of relation, and only what is left is one number or
expression. So what is spelled away from one number (separators of thousands, units, percent signs) is never looked for
in a list, a pair or a word. What cannot be read is words, which equal only the same words.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from lpo_ray.verifiers.mathematics import units
from lpo_ray.verifiers.mathematics.expression import Expression, expression_of
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
from lpo_ray.verifiers.mathematics.names import group_end, is_variable, name_of
from lpo_ray.verifiers.mathematics.quantity import Quantity, is_rounded_from, same_quantity
from lpo_ray.verifiers.mathematics.spelling import FUNCTIONS, tokens
from lpo_ray.verifiers.places import MAX_CHARACTERS

MAX_DEPTH = 6
"""lists within lists"""
MAX_ITEMS = 64
MAX_SIGNS = 3
"""signs of plus or minus; each doubles how many values there are"""

_OPEN = frozenset(("(", "[", "{", "\\{", "\\langle", "\\begin", "\\lfloor", "\\lceil"))
_CLOSE = frozenset((")", "]", "}", "\\}", "\\rangle", "\\end", "\\rfloor", "\\rceil"))
_JOINTS = frozenset((",", ", ", ";", '"or', '"and', "\\lor", "\\land", "\\&"))
_OR = frozenset(('"or', "\\lor"))
_ORDERS = {"<": "<", ">": ">", "\\le": "<=", "\\ge": ">="}
_RELATIONS = frozenset(("=", *_ORDERS, "\\ne", "\\approx", "\\in", "\\equiv", "\\sim", "\\to", "\\cup"))
_MIRRORED = {"<": ">", ">": "<", "<=": ">=", ">=": "<="}
_PAIRS = {"(": ")", "[": "]", "\\{": "\\}", "\\langle": "\\rangle", "{": "}"}
_IN_FRONT, _AT_END = (":", "`", "\\approx", "**"), ("\\\\", "`", "**")
_REALS = (("\\mathbb", "{", "R", "}"), ("\\mathbb", "R"))
_EMPTY = (("\\emptyset",), ("\\{", "\\}"), ('"no', '"solution'), ('"no', '"solutions'))
_ORDINALS = frozenset(("st", "nd", "rd", "th"))
_SYNONYMS = {"dne": "does not exist", "all reals": "all real numbers"}
_CHOICES = frozenset("ABCDEFGHIJ")
_FUNCTIONS = frozenset(f"\\{name}" for name in FUNCTIONS)
_BASES = {'"two': 2, '"three': 3, '"four': 4, '"five': 5, '"six': 6, '"seven': 7, '"eight': 8, '"nine': 9, '"ten': 10}


@lru_cache(maxsize=4096)
def read(text: str) -> Reading | None:
    """Read a text; None when it is empty or longer than MAX_CHARACTERS."""
    if len(text) > MAX_CHARACTERS or not text.strip():
        return None
    found = tokens(text)
    if found is None:
        return None
    found = _stripped(found)
    return _reading(found, 0) if found else None


def count_words(text: str) -> int:
    """Count the words of a text, leaving out letters and formulas."""
    return sum(token[:1] == '"' for token in tokens(text) or ())


def _stripped(found: Sequence[str]) -> tuple[str, ...]:
    """Leave out a stop and a line's end, what marks bold type and code, and a colon or "approximately" in front."""
    found = tuple(found)
    while found and found[0] in _IN_FRONT:
        found = found[1:]
    while found and (found[-1] in _AT_END or (found[-1] == "." and found[-2:-1] != (".",))):
        found = found[:-1]
    return found


def _reading(found: tuple[str, ...], depth: int) -> Reading:
    if not found or depth > MAX_DEPTH or not _is_balanced(found):
        interval = _outward(found)
        return _words(found) if interval is None else interval
    if tuple(token.lower() for token in found) in _EMPTY:
        return Items("list", ())
    if found in _REALS:
        return Interval(Infinite(-1), Infinite(1), False, False)
    for reader in (_based, _grouped, _choice, _quoted, _joined, _related, _bracketed, _signed, _ratio, _quantity):
        reading = reader(found, depth)
        if reading is not None:
            return reading
    return _words(found)


def _words(found: Sequence[str]) -> Words:
    said = " ".join(token[1:].casefold() if token[:1] == '"' else token for token in found)
    if said.startswith("( ") and said.endswith(" )") and len(found) == 3:
        said = said[2:-2]
    return Words(_SYNONYMS.get(said, said))


def _is_balanced(found: Sequence[str]) -> bool:
    depth = 0
    for token in found:
        depth += (token in _OPEN) - (token in _CLOSE)
        if depth < 0:
            return False
    return depth == 0


def _split(
    found: Sequence[str], at_tokens: frozenset[str] | tuple[str, ...]
) -> tuple[list[tuple[str, ...]], list[str]]:
    """Split where no bracket is open. Return the parts and the tokens between them."""
    parts, between, depth, start = [], [], 0, 0
    for at, token in enumerate(found):
        depth += (token in _OPEN) - (token in _CLOSE)
        if depth == 0 and token in at_tokens:
            parts.append(tuple(found[start:at]))
            between.append(token)
            start = at + 1
    parts.append(tuple(found[start:]))
    return parts, between


# One reader for each kind: (tokens, depth) -> its reading, or None when the tokens are of another kind.


def _based(found: tuple[str, ...], depth: int) -> Reading | None:
    r"""``1011_2``, ``(1A)_{16}``, ``1011_{\text{two}}``."""
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


def _grouped(found: tuple[str, ...], depth: int) -> Reading | None:
    """``1,234``, ``1 234``, ``$1,234.50``, ``30,150 meters``: groups of three digits that are the whole text."""
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
    number = _quantity((*found[:start], "".join(groups), *found[digits[-1] + 1 :]), depth)
    if number is None or not isinstance(number, Quantity):
        return None
    if step == 1 or start or digits[-1] + 1 < end or any(group[0] == "0" for group in groups[1:]) or "." in groups[-1]:
        return number
    items = tuple(_quantity((group,), depth) or Words(group) for group in groups)
    return Grouped(number, Items("list", items), len(groups) == 2 and len(groups[0]) == 3)


def _choice(found: tuple[str, ...], depth: int) -> Reading | None:
    r"""``(C)\ 42`` and ``C. 42``; a letter in brackets alone is that letter."""
    if len(found) >= 3 and found[0] == "(" and found[2] == ")" and found[1] in _CHOICES:
        letter, rest = found[1], found[3:]
        if rest and rest[0] in (".", ":"):
            rest = rest[1:]
    elif len(found) >= 3 and found[0] in _CHOICES and found[1] in (".", ":", ")"):
        letter, rest = found[0], found[2:]
    else:
        return None
    if not rest:
        return _quantity((letter,), depth)
    if rest[0] in ("*", "/", "+", "-", "^", "(", "=", "|", "!", "_") and found[0] == "(" and rest[0] != "-":
        return None
    return Choice(letter, _reading(_stripped(rest), depth + 1))


def _quoted(found: tuple[str, ...], depth: int) -> Reading | None:
    """``["1", "2"]``: a list as JSON or Python writes it."""
    if found[0] != "[" or found[-1] != "]" or not ('"' in found or "'" in found):
        return None
    parts, _ = _split(found[1:-1], (",", ", "))
    if not all(len(part) > 2 and part[0] == part[-1] and part[0] in ('"', "'") for part in parts):
        return None
    items = tuple(_reading(part[1:-1], depth + 1) for part in parts)
    return items[0] if len(items) == 1 else Items("list", items)


def _joined(found: tuple[str, ...], depth: int) -> Reading | None:
    """Several answers, joined by commas, semicolons, "and" or "or"."""
    parts, between = _split(found, _JOINTS)
    if not between:
        return None
    if parts[0][:1] == ('"either',):
        parts[0] = parts[0][1:]
    kept = []
    for number, part in enumerate(parts):
        if part:
            kept.append(part)
        elif number == 0 or number == len(parts) - 1 or between[number] not in ('"or', '"and'):
            return _words(found)  # nothing before or after a comma; ", and" is one joint
    if len(kept) > MAX_ITEMS or len(kept) < 2:
        return _words(found)
    items = [_reading(part, depth + 1) for part in kept]
    items = _one_name(items)
    if any(joint in _OR for joint in between) and all(isinstance(item, Interval | Union) for item in items):
        return Union(tuple(part for item in items for part in (item.parts if isinstance(item, Union) else (item,))))
    return Items("or" if any(joint in _OR for joint in between) else "list", tuple(_flat(items)))


def _one_name(items: list[Reading]) -> list[Reading]:
    """Read ``x = 1, 2`` and ``x = 1, x = 2`` as 1, 2; leave ``x = 1, y = 2`` as it is."""
    names = [item.name for item in items if isinstance(item, Named)]
    if names and isinstance(items[0], Named) and len(set(names)) == 1:
        return [item.value if isinstance(item, Named) else item for item in items]
    return items


def _flat(items: Sequence[Reading]) -> list[Reading]:
    r"""Put what is a list of its own without brackets, such as ``\\pm 3``, into the list."""
    flat: list[Reading] = []
    for item in items:
        flat.extend(item.items if isinstance(item, Items) and item.kind == "or" else (item,))
    return flat


def _related(found: tuple[str, ...], depth: int) -> Reading | None:
    """Equations, inequalities, memberships and unions of sets."""
    sides, between = _split(found, _RELATIONS)
    if not between:
        return None
    if not all(sides):
        return _words(found)
    if set(between) == {"\\cup"}:
        return _union([_reading(side, depth + 1) for side in sides])
    if between[0] == "\\in" and set(between[1:]) <= {"\\cup"} and name_of(sides[0]):
        inside = found[len(sides[0]) + 1 :]
        reading = _reading(inside, depth + 1)
        return Named(name_of(sides[0]), reading)
    if set(between) <= {"=", "\\approx"}:
        return _equal_sides(sides, between, depth)
    if set(between) <= set(_ORDERS):
        return _ordered(sides, [_ORDERS[sign] for sign in between], depth)
    if between == ["\\ne"] and name_of(sides[0]):
        value = _reading(sides[1], depth + 1)
        if isinstance(value, Quantity):
            name, low, high = name_of(sides[0]), Infinite(-1), Infinite(1)
            return Union((Interval(low, value, False, False, name), Interval(value, high, False, False, name)))
    return _words(found)


def _union(parts: Sequence[Reading]) -> Reading:
    if all(isinstance(part, Items) and part.kind == "list" for part in parts):
        return Items("list", tuple(item for part in parts if isinstance(part, Items) for item in part.items))
    return Union(tuple(parts))


def _equal_sides(sides: list[tuple[str, ...]], between: list[str], depth: int) -> Reading:
    r"""Read ``x = 5``, ``x = y = 3``, ``\\frac{3}{4} \\approx 0.75``, or an equation."""
    names, rest = [], list(sides)
    while len(rest) > 1 and name_of(rest[0]):
        names.append(name_of(rest.pop(0)))
    if names and len(rest) == 1:
        value = _reading(rest[0], depth + 1)
        return Named(names[0] if len(names) == 1 else "", value)
    if len(rest) == 2 and not names and name_of(rest[1]) and len(name_of(rest[1])) <= 2:  # 5 = x
        value = _quantity(rest[0], depth)
        if isinstance(value, Quantity) and not value.expression.letters:
            return Named(name_of(rest[1]), value)
    found = [_quantity(side, depth) for side in rest]
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
    return _words(joined)


def _chained(values: Sequence[Quantity], sides: Sequence[tuple[str, ...]]) -> Reading:
    """Read sides without letters: one number when all have the same value, or the last is it rounded."""
    first = values[0]
    if all(same_quantity(value, first) or is_rounded_from(value, first) for value in values[1:]):
        return first if first.decimals is None else next((v for v in values if v.decimals is None), first)
    return Words(" = ".join(" ".join(side) for side in sides))


def _ordered(sides: list[tuple[str, ...]], signs: list[str], depth: int) -> Reading:
    r"""Read inequalities of one name as an interval: ``x > 5``, ``5 < x``, ``1 < x \\le 2``."""
    plain = [side for side in sides]
    if len(sides) == 2:
        if not is_variable(sides[0]) and is_variable(sides[1]):
            plain, signs = [sides[1], sides[0]], [_MIRRORED[signs[0]]]
        value = _end_of_interval(plain[1], depth)
        if is_variable(plain[0]) and value is not None:
            name, closed = name_of(plain[0]), "=" in signs[0]
            if ">" in signs[0]:
                return Interval(value, Infinite(1), closed, False, name)
            return Interval(Infinite(-1), value, False, closed, name)
    elif len(sides) == 3 and is_variable(sides[1]) and len({sign[0] for sign in signs}) == 1:
        first, last = _end_of_interval(sides[0], depth), _end_of_interval(sides[2], depth)
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


def _end_of_interval(found: tuple[str, ...], depth: int) -> Reading | None:
    value = _grouped(found, depth) or _quantity(found, depth)
    if isinstance(value, Grouped):
        value = value.number
    return value if isinstance(value, Quantity | Infinite) else None


def _bracketed(found: tuple[str, ...], depth: int) -> Reading | None:
    """Pairs, intervals, sets and matrices: what one pair of brackets is around."""
    if found[0] == "\\begin":
        return _environment(found, depth)
    if found[0] not in _PAIRS or not _is_balanced(found[1:-1]) or found[-1] not in (")", "]", "\\}", "\\rangle", "}"):
        return None
    inside, pair = found[1:-1], (found[0], found[-1])
    if not inside:
        return _words(found)
    parts, between = _split(inside, (",", ", ", ";"))
    if pair == ("{", "}") and not between:
        return _reading(inside, depth + 1)
    if not all(parts) or len(parts) > MAX_ITEMS:
        return _words(found)
    if pair in (("\\{", "\\}"), ("{", "}")):
        if "\\mid" in inside or ":" in inside or "|" in inside:
            return _words(found)
        return Items("list", tuple(_flat(_one_name([_reading(part, depth + 1) for part in parts]))))
    items = tuple(_reading(part, depth + 1) for part in parts)
    if any(isinstance(item, Words) and not item.text for item in items):
        return _words(found)
    if not between:
        if pair in (("(", ")"), ("[", "]")) and inside[0] == "\\begin":
            return items[0]
        return None if pair == ("(", ")") else _words(found)
    if pair in (("(", ")"), ("\\langle", "\\rangle")):
        return Items("tuple", items)
    if pair == ("[", "]") and len(items) != 2:
        return Items("square", items)
    if len(items) == 2 and pair[0] in "([" and pair[1] in ")]":
        return Interval(items[0], items[1], pair[0] == "[", pair[1] == "]")
    return _words(found)


def _outward(found: Sequence[str]) -> Reading | None:
    """Read an interval with brackets that point outward, ``]1, 2[``."""
    if len(found) < 5 or (found[0], found[-1]) not in (("]", "["), ("]", "]"), ("[", "[")):
        return None
    opening = "(" if found[0] == "]" else found[0]
    closing = ")" if found[-1] == "[" else found[-1]
    turned = (opening, *found[1:-1], closing)
    reading = _bracketed(turned, 0) if _is_balanced(turned) else None
    if isinstance(reading, Items) and len(reading.items) == 2:
        return Interval(*reading.items, False, False)
    return reading if isinstance(reading, Interval) else None


def _environment(found: tuple[str, ...], depth: int) -> Reading | None:
    r"""Read ``\begin{pmatrix} ... \end{pmatrix}`` and its like; lines of ``cases`` and ``aligned`` are a list."""
    if len(found) < 8 or found[1] != "{" or found[-1] != "}" or "\\end" not in found:
        return None
    end = found.index("}")
    name = "".join(found[2:end]).replace('"', "").rstrip("*")
    body = found[end + 1 : len(found) - (end + 1)]
    if found[len(found) - (end + 1)] != "\\end" or "\\begin" in body:
        return None
    if name == "array" and body[:1] == ("{",):
        body = body[group_end(list(body), 0) :]
    rows, _ = _split(body, ("\\\\",))
    rows = [row for row in rows if row and row != ("\\hline",)]
    if name in ("cases", "aligned", "align", "gathered", "array") and all(
        "&" not in row or name != "array" for row in rows
    ):
        lines = [tuple(token for token in row if token != "&") for row in rows]
        if name == "cases" and any("&" in row for row in rows):
            return _words(found)
        items = _one_name([_reading(_stripped(line), depth + 1) for line in lines if line])
        return Items("list", tuple(items)) if len(items) > 1 else None
    if name not in ("pmatrix", "bmatrix", "matrix", "array", "Bmatrix", "smallmatrix"):
        return None
    cells = [_split(row, ("&",))[0] for row in rows]
    if not cells or len({len(row) for row in cells}) != 1 or not all(all(row) for row in cells):
        return _words(found)
    if sum(map(len, cells)) > MAX_ITEMS:
        return _words(found)
    return Items("matrix", tuple(Items("row", tuple(_reading(cell, depth + 1) for cell in row)) for row in cells))


def _signed(found: tuple[str, ...], depth: int) -> Reading | None:
    r"""``2 \pm \sqrt{3}`` is a list of its values."""
    signs = [at for at, token in enumerate(found) if token in ("\\pm", "\\mp")]
    if not signs:
        return None
    if len(signs) > MAX_SIGNS:
        return _words(found)
    together = any(found[at] == "\\mp" for at in signs)
    values: list[Reading] = []
    for choice in range(2 if together else 2 ** len(signs)):
        chosen = list(found)
        for number, at in enumerate(signs):
            plus = (choice == 0) == (found[at] == "\\pm") if together else not choice >> number & 1
            chosen[at] = "+" if plus else "-"
        value = _quantity(tuple(chosen), depth)
        if value is None:
            return _words(found)
        values.append(value)
    return Items("or", tuple(values))


def _ratio(found: tuple[str, ...], depth: int) -> Reading | None:
    """``3:4``, also a time of day."""
    parts, between = _split(found, (":",))
    if not between:
        return None
    if not all(parts):
        return _words(found)
    last, _ = units.without_unit(parts[-1])
    items = tuple(_quantity(part, depth) for part in (*parts[:-1], tuple(last)))
    if not all(isinstance(item, Quantity) for item in items):
        return _words(found)
    clock = len(parts[1]) == 1 and len(parts[1][0]) == 2 and parts[1][0].isdigit()
    return Items("clock" if clock else "ratio", tuple(item for item in items if item is not None))


def _quantity(found: tuple[str, ...], depth: int) -> Reading | None:
    """One number or expression: without its unit, currency, percent or degree sign; None when it is none."""
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
    for sign in (("^", "\\circ"), ("^", "{", "\\circ", "}"), ("\\degree",), ("\\circ",)):
        if len(found) > len(sign) and found[-len(sign) :] == sign and not _FUNCTIONS & set(found):
            found, unit = found[: -len(sign)], "degree"
    if unit == "degree" and found[-1:] in (("C",), ("F",)):
        found = found[:-1]
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
