r"""Parts of a text of mathematics as tokens: what stands between joints outside of brackets, and words."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from lpo_ray.verifiers.mathematics.kinds import Reading, Words

Inner = Callable[[tuple[str, ...]], Reading]
"""reads a part of what is read, one level deeper"""


MAX_ITEMS = 64


_OPEN = frozenset(("(", "[", "{", "\\{", "\\langle", "\\begin", "\\lfloor", "\\lceil"))


_CLOSE = frozenset((")", "]", "}", "\\}", "\\rangle", "\\end", "\\rfloor", "\\rceil"))


_IN_FRONT, _AT_END = (":", "`", "\\approx", "**"), ("\\\\", "`", "**")


_SYNONYMS = {"dne": "does not exist", "all reals": "all real numbers"}


def stripped(found: Sequence[str]) -> tuple[str, ...]:
    """Leave out a stop and a line's end, what marks bold type and code, and a colon or "approximately" in front."""
    found = tuple(found)
    while found and found[0] in _IN_FRONT:
        found = found[1:]
    while found and (found[-1] in _AT_END or (found[-1] == "." and found[-2:-1] != (".",))):
        found = found[:-1]
    return found


def words_of(found: Sequence[str]) -> Words:
    """Read tokens as words, without their case."""
    said = " ".join(token[1:].casefold() if token[:1] == '"' else token for token in found)
    if said.startswith("( ") and said.endswith(" )") and len(found) == 3:
        said = said[2:-2]
    return Words(_SYNONYMS.get(said, said))


def is_balanced(found: Sequence[str]) -> bool:
    """Tell whether each bracket that opens is closed after it."""
    depth = 0
    for token in found:
        depth += (token in _OPEN) - (token in _CLOSE)
        if depth < 0:
            return False
    return depth == 0


def split(found: Sequence[str], at_tokens: frozenset[str] | tuple[str, ...]) -> tuple[list[tuple[str, ...]], list[str]]:
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
