r"""Reading of a text of mathematics: a number, expression, list, pair, interval, matrix or equation, or words.

Responses and answers of the data set are read by ``read``, the only way in. A text is taken apart from the outside:
first what joins several answers, then brackets, then signs of relation, and only what is left is one number or
expression. So what is spelled away from one number (separators of thousands, units, percent signs) is never looked for
in a list, a pair or a word. What cannot be read is words, which equal only the same words.
"""

from __future__ import annotations

from functools import lru_cache

from lpo_ray.verifiers.mathematics.amounts import based, grouped, quantity_of, ratio, signed
from lpo_ray.verifiers.mathematics.brackets import bracketed, outward
from lpo_ray.verifiers.mathematics.kinds import Choice, Infinite, Interval, Items, Reading
from lpo_ray.verifiers.mathematics.lists import joined, quoted
from lpo_ray.verifiers.mathematics.relations import related
from lpo_ray.verifiers.mathematics.spelling import tokens
from lpo_ray.verifiers.mathematics.token_parts import Inner, is_balanced, stripped, words_of
from lpo_ray.verifiers.places import MAX_CHARACTERS

MAX_DEPTH = 6
"""lists within lists"""


_REALS = (("\\mathbb", "{", "R", "}"), ("\\mathbb", "R"))


_EMPTY = (("\\emptyset",), ("\\{", "\\}"), ('"no', '"solution'), ('"no', '"solutions'))


_CHOICES = frozenset("ABCDEFGHIJ")


@lru_cache(maxsize=4096)
def read(text: str) -> Reading | None:
    """Read a text; None when it is empty or longer than MAX_CHARACTERS."""
    if len(text) > MAX_CHARACTERS or not text.strip():
        return None
    found = tokens(text)
    if found is None:
        return None
    found = stripped(found)
    return _reading(found, 0) if found else None


def count_words(text: str) -> int:
    """Count the words of a text, leaving out letters and formulas."""
    return sum(token[:1] == '"' for token in tokens(text) or ())


def _reading(found: tuple[str, ...], depth: int) -> Reading:
    """Read tokens as what they are from the outside: the first reader that takes them says it."""

    def inner(part: tuple[str, ...]) -> Reading:
        return _reading(part, depth + 1)

    if not found or depth > MAX_DEPTH:
        return words_of(found)
    if not is_balanced(found):
        return outward(found, inner) or words_of(found)
    if tuple(token.lower() for token in found) in _EMPTY:
        return Items("list", ())
    if found in _REALS:
        return Interval(Infinite(-1), Infinite(1), False, False)
    return (
        based(found)
        or grouped(found)
        or _choice(found, inner)
        or quoted(found, inner)
        or joined(found, inner)
        or related(found, inner)
        or bracketed(found, inner)
        or signed(found)
        or ratio(found)
        or quantity_of(found)
        or words_of(found)
    )


def _choice(found: tuple[str, ...], inner: Inner) -> Reading | None:
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
        return quantity_of((letter,))
    if rest[0] in ("*", "/", "+", "-", "^", "(", "=", "|", "!", "_") and found[0] == "(" and rest[0] != "-":
        return None
    return Choice(letter, inner(stripped(rest)))
