"""Reading of one pair of brackets: pairs, intervals, sets and matrices."""

from __future__ import annotations

from lpo_ray.verifiers.mathematics.kinds import Interval, Items, Reading, Union, Words
from lpo_ray.verifiers.mathematics.lists import flat, one_name
from lpo_ray.verifiers.mathematics.names import group_end, is_variable, name_of
from lpo_ray.verifiers.mathematics.token_parts import MAX_ITEMS, Inner, is_balanced, split, stripped, words_of

_PAIRS = {"(": ")", "[": "]", "\\{": "\\}", "\\langle": "\\rangle", "{": "}"}


def bracketed(found: tuple[str, ...], inner: Inner) -> Reading | None:
    """Read what one pair of brackets is around: pairs, intervals, sets and matrices."""
    if found[0] == "\\begin":
        return _environment(found, inner)
    if found[0] not in _PAIRS or not is_balanced(found[1:-1]) or found[-1] not in (")", "]", "\\}", "\\rangle", "}"):
        return None
    inside, pair = found[1:-1], (found[0], found[-1])
    if not inside:
        return words_of(found)
    parts, between = split(inside, (",", ", ", ";"))
    if pair == ("{", "}") and not between:
        return inner(inside)
    if not all(parts) or len(parts) > MAX_ITEMS:
        return words_of(found)
    if pair in (("\\{", "\\}"), ("{", "}")):
        if "\\mid" in inside or ":" in inside or "|" in inside:
            return _those_that(inside, inner) or words_of(found)
        return Items("list", tuple(flat(one_name([inner(part) for part in parts]))))
    items = tuple(inner(part) for part in parts)
    if any(isinstance(item, Words) and not item.text for item in items):
        return words_of(found)
    if not between:
        if pair in (("(", ")"), ("[", "]")) and inside[0] == "\\begin":
            return items[0]
        return None if pair == ("(", ")") else words_of(found)
    if pair in (("(", ")"), ("\\langle", "\\rangle")):
        return Items("tuple", items)
    if pair == ("[", "]") and len(items) != 2:
        return Items("square", items)
    if len(items) == 2 and pair[0] in "([" and pair[1] in ")]":
        return Interval(items[0], items[1], pair[0] == "[", pair[1] == "]")
    return words_of(found)


def _those_that(inside: tuple[str, ...], inner: Inner) -> Reading | None:
    r"""Read what holds for the members of a set: ``x \\mid x > 2``, ``x \\in \\mathbb{R} : 0 < x < 1``."""
    parts, _ = split(inside, ("\\mid", ":", "|"))
    if len(parts) != 2 or not all(parts):
        return None
    member = parts[0][:-5] if parts[0][-5:] == ("\\in", "\\mathbb", "{", "R", "}") else parts[0]
    held = inner(parts[1])
    names = {
        part.variable for part in (held.parts if isinstance(held, Union) else (held,)) if isinstance(part, Interval)
    }
    return held if is_variable(member) and names == {name_of(member)} else None


def outward(found: tuple[str, ...], inner: Inner) -> Reading | None:
    """Read an interval with brackets that point outward, ``]1, 2[``."""
    if len(found) < 5 or (found[0], found[-1]) not in (("]", "["), ("]", "]"), ("[", "[")):
        return None
    opening = "(" if found[0] == "]" else found[0]
    closing = ")" if found[-1] == "[" else found[-1]
    turned = (opening, *found[1:-1], closing)
    reading = bracketed(turned, inner) if is_balanced(turned) else None
    if isinstance(reading, Items) and len(reading.items) == 2:
        return Interval(*reading.items, False, False)
    return reading if isinstance(reading, Interval) else None


def _environment(found: tuple[str, ...], inner: Inner) -> Reading | None:
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
    rows, _ = split(body, ("\\\\",))
    rows = [row for row in rows if row and row != ("\\hline",)]
    if name in ("cases", "aligned", "align", "gathered", "array") and all(
        "&" not in row or name != "array" for row in rows
    ):
        lines = [tuple(token for token in row if token != "&") for row in rows]
        if name == "cases" and any("&" in row for row in rows):
            return words_of(found)
        items = one_name([inner(stripped(line)) for line in lines if line])
        return Items("list", tuple(items)) if len(items) > 1 else None
    if name not in ("pmatrix", "bmatrix", "matrix", "array", "Bmatrix", "smallmatrix"):
        return None
    cells = [split(row, ("&",))[0] for row in rows]
    if not cells or len({len(row) for row in cells}) != 1 or not all(all(row) for row in cells):
        return words_of(found)
    if sum(map(len, cells)) > MAX_ITEMS:
        return words_of(found)
    return Items("matrix", tuple(Items("row", tuple(inner(cell) for cell in row)) for row in cells))
