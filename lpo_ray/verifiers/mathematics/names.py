r"""Names that stand before an equals sign: ``x``, ``f(x)``, ``AB``, ``\angle ABC``, a word."""

from __future__ import annotations

from collections.abc import Sequence

from lpo_ray.verifiers.mathematics.spelling import ACCENTS, GREEK
from lpo_ray.verifiers.mathematics.units import NOT_UNITS

_RELATIONS = frozenset(("=", "<", ">", "\\le", "\\ge", "\\ne", "\\in"))


def is_variable(found: Sequence[str]) -> bool:
    r"""Tell whether tokens are a letter that an inequality may be about: ``x``, ``\\theta``, ``x_1``."""
    return bool(found) and (len(found[0]) == 1 or found[0][1:] in GREEK) and bool(name_of(found)) and "(" not in found


def name_of(found: Sequence[str]) -> str:
    r"""Return the name that stands before ``=``: ``x``, ``x_{10}``, ``AB``, ``f(x)``, ``\angle ABC``, ``(x, y)``, or a
    word; "" for what is no name.
    """
    if not found or len(found) > 16:
        return ""
    name = list(found)
    if name[0] in ("|", "(") and name[-1] == ("|" if name[0] == "|" else ")") and len(name) > 2:
        inner = name[1:-1]
        letters = [token for token in inner if token not in (",", ", ")]
        return "".join(name) if all(len(token) == 1 and token.isalpha() for token in letters) else ""
    while name and name[0] in ("m", "\\angle", "\\triangle") and len(name) > 1 and name[1:2] != ["_"]:
        if name[0] == "m" and name[1] != "\\angle":
            break
        name = name[1:]
    first, rest = name[0], name[1:]
    if first[:1] == '"':
        if any(token[1:].lower() in NOT_UNITS for token in name):
            return ""
        return "".join(name) if all(token[:1] == '"' or token.isalpha() for token in rest) else ""
    if first[1:] in ACCENTS and first[:1] == "\\":
        return "".join(name) if all(token in "{}" or token.isalpha() for token in rest) else ""
    if len(first) == 1 and first.isascii() and first.isupper():
        while rest and len(rest[0]) == 1 and rest[0].isupper():
            first, rest = first + rest[0], rest[1:]
    elif not ((len(first) == 1 and first.isascii() and first.isalpha()) or (first[:1] == "\\" and first[1:] in GREEK)):
        return ""
    if len(first) > 4 and first[0] != "\\":
        return ""
    while rest and rest[0] in ("'", "_"):
        if rest[0] == "'":
            first, rest = f"{first}'", rest[1:]
            continue
        end = group_end(rest, 1)
        first, rest = f"{first}_{''.join(rest[1:end]).strip('{}')}", rest[end:]
    if rest[:5] == ["^", "{", "-", "1", "}"] and rest[5:6] == ["("]:  # an inverse function
        first, rest = f"{first}^-1", rest[5:]
    if (
        rest
        and rest[0] == "("
        and rest[-1] == ")"
        and rest.count("(") == rest.count(")")
        and not set(rest) & _RELATIONS
    ):
        return first + "".join(rest) if all(map(_is_argument, _arguments(rest[1:-1]))) else ""
    return "" if rest else first


def _is_argument(part: Sequence[str]) -> bool:
    """Tell whether this is what a function is of, and no factor: ``f(x)``, ``f(2)``, ``P(A)``, ``f(-1)``."""
    return len(part) == 1 or (len(part) == 2 and part[0] == "-")


def group_end(found: Sequence[str], start: int) -> int:
    """Return where the group or token that begins at ``start`` ends."""
    if found[start] not in ("{", "["):
        return start + 1
    depth = 0
    for at in range(start, len(found)):
        depth += (found[at] == found[start]) - (found[at] == {"{": "}", "[": "]"}[found[start]])
        if depth == 0:
            return at + 1
    return len(found)


def _arguments(found: Sequence[str]) -> list[list[str]]:
    parts: list[list[str]] = [[]]
    for token in found:
        if token in (",", ", "):
            parts.append([])
        else:
            parts[-1].append(token)
    return parts
