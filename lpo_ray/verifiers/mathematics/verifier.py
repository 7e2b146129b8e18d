r"""Mathematics: the response's answer against the dataset's, in LaTeX or plain.

The response's answer stands in its last ``\boxed{...}`` (several that are joined by commas or "and" are one list), or
without a box in ``<answer>...</answer>``, or else after the last "answer is" or "answer:". A last box that is not
closed was cut off: nothing before it counts.

Three steps, from cheap to dear. Equal as text. Both have a value as numbers, also with roots and pi: equal within half
a unit of the sixth decimal. Otherwise math-verify, on sympy, as far as ``bounds.refused`` lets it have the text.

Decided where math-verify does otherwise: words are compared as text only, since as products of letters "listen" would
be "silent"; 50% is 50 and also 0.5; numbers that differ only in the seventh decimal are equal only when that is less
than one in 100,000 of them.
"""

from __future__ import annotations

import re
from fractions import Fraction
from functools import lru_cache

from lpo_ray.verdict import Verdict
from lpo_ray.verifiers.boxed import MAX_CHARACTERS, last_box, normalised, number_of
from lpo_ray.verifiers.mathematics.bounds import refused
from lpo_ray.verifiers.mathematics.numeric import value_of
from lpo_ray.verifiers.mathematics.symbolic import equivalent
from lpo_ray.verifiers.tags import last_answer, last_said

MAX_BOXES = 12
"""boxes that are read as one list"""
ABSOLUTE, RELATIVE = Fraction(51, 10**8), Fraction(1, 10**5)
EXACT_BELOW = 10**9
"""floating-point values beyond it are left to sympy"""

_BOX = "\\boxed{"
_JOINED = re.compile(r"\s*\$?\s*(?:[,;]|,?\s*and|,?\s*or)\s*\$?\s*")
_DELIMITERS = (("$$", "$$"), ("$", "$"), ("\\(", "\\)"), ("\\[", "\\]"))
_SENTENCE_END = re.compile(r"\.(?=\s|$)|\*\*")
_NAMED = re.compile(r"\s*(?:[a-zA-Z]|\\[a-z]+)(?:_\{?\w\}?)?\s*=(?=[^=]*$)")
_UNIT = re.compile(r"\\(?:text|mathrm|textrm|mbox)\s*\{([^{}]*)\}(?:\s*\^\s*\{?\s*\d\s*\}?)?\s*\.?\s*$")
_AMOUNT = re.compile(r"hundred|thousand|[mb]illion|dozen|percent|or|and", re.IGNORECASE)
_PERCENT = re.compile(r"\\?%|\\text\{\s*percent\s*\}|(?<![a-zA-Z])percent\s*$", re.IGNORECASE)
_SINGLE = re.compile(r"([_^])\{(\w)\}")
_STYLE = re.compile(r"\\(?:text|textbf|textit|mathrm|mathbf|mbox|textrm|operatorname)\s*\{([^{}]*)\}")
_ENVIRONMENT = re.compile(r"\\(?:begin|end)\s*\{\w+\*?\}")
_PLAIN_MIXED = re.compile(r"(?<![0-9.,/])([0-9]{1,9})\s+([0-9]{1,9})\s*/\s*([0-9]{1,9})(?![0-9])")
_WITH_BASE = re.compile(r"([0-9a-f]+)_([0-9]+)")
_LETTER = re.compile(r"\(?([a-z])\)?\.?")
_WORD = re.compile(r"(?<![a-zA-Z\\])[a-zA-Z]{4,}")
_STYLED_WORD = re.compile(r"(?<![a-zA-Z\\])[a-zA-Z]{2,}")
_DEGREES = re.compile(r"\^\s*\{?\s*\\circ\s*\}?|\\degrees?\b|°|º")

Value = tuple[Fraction | float, bool]
"""value of a number, and whether it is followed by a percent sign"""


def math(response: str, answer: str) -> Verdict:
    """Give 1 when the answers are equal, 0 otherwise. Raises ValueError for an answer that is empty, and TimeoutError
    when comparing with the dataset's answer takes too long through no fault of the response.
    """
    wanted = _wanted(answer)
    given = given_answer(response)
    if given is None:
        return Verdict.scored(0.0, "no answer in a closed \\boxed{}, in <answer></answer> or after 'answer is'")
    same, how = _compared(given, wanted)
    return Verdict.scored(1.0, how) if same else Verdict.scored(0.0, f"{given[:80]!r} is not {wanted[:80]!r}: {how}")


@lru_cache(maxsize=4096)
def _compared(given: str, wanted: str) -> tuple[bool, str]:
    """Tell whether two answers are equal, and how that was seen. Remembered: the responses of a group often agree."""
    left, right = as_text(given), as_text(wanted)
    if left == right:
        return True, "equal as text"
    based = _WITH_BASE.fullmatch(right)
    if based or _WITH_BASE.fullmatch(left):  # math-verify does not look at the base
        return based is not None and left == based[1], "compared as text, without a base or with the same"
    by_value = _same_value(value_in(given), value_in(wanted))
    if by_value is not None:
        return by_value, "by their values"
    if _is_words(given) or _is_words(wanted):
        return False, "compared as text"
    for text, whose in ((given, "response"), (wanted, "dataset")):
        reason = refused(text)
        if reason is not None:
            return False, f"the {whose}'s is compared as text only, for it has {reason}"
    return equivalent(given, wanted)


def given_answer(response: str) -> str | None:
    """Return what the response gives as its answer; None when it gives none."""
    if _BOX in response:
        return _boxes(response)
    tagged = last_answer(response)
    if tagged is not None:
        return _bare(tagged) if len(tagged) <= MAX_CHARACTERS else None
    said = last_said(response)
    if said is None:
        return None
    text = said[1].lstrip("*: ")
    for opening, closing in _DELIMITERS:
        end = text.find(closing, len(opening)) if text.startswith(opening) else -1
        if end > 0:
            return _bare(text[: end + len(closing)])
    return _bare(_SENTENCE_END.split(text, maxsplit=1)[0])


def _boxes(response: str) -> str | None:
    """Return the content of the last box, after those that are joined to it; None when it is not closed."""
    content = last_box(response)
    if content is None:
        return None
    contents, start = [content], response.rfind(_BOX)
    while len(contents) < MAX_BOXES:
        before = response.rfind(_BOX, 0, start)
        content = last_box(response[before:start]) if before >= 0 else None
        if content is None:
            break
        between = response[before + len(_BOX) + len(content) + 1 : start]
        if len(between) > 20 or not _JOINED.fullmatch(between):
            break
        contents.append(content)
        start = before
    return ", ".join(_bare(content) for content in reversed(contents))


def _wanted(answer: str) -> str:
    content = last_box(answer)
    text = _bare(answer.rpartition("####")[2] if content is None else content)
    if not text:
        raise ValueError(f"the answer of a mathematics task is {answer[:80]!r}; expected one that is not empty")
    return text


def _bare(text: str) -> str:
    r"""Strip the delimiters of mathematics around ``text``; a mixed number becomes ``1\frac{1}{2}``."""
    text = _PLAIN_MIXED.sub(r"\1\\frac{\2}{\3}", text.strip())
    for opening, closing in _DELIMITERS:
        inner = text[len(opening) : -len(closing)]
        if text.startswith(opening) and text.endswith(closing) and len(text) > len(opening) and opening not in inner:
            return inner.strip()
    return text


def as_text(text: str) -> str:
    """Bring ``text`` to the spelling in which equal answers are equal as text."""
    text = _SINGLE.sub(r"\1\2", normalised(_STYLE.sub(r"\1", text)))
    letter = _LETTER.fullmatch(text)
    return letter[1] if letter else text


def _is_words(text: str) -> bool:
    text = _ENVIRONMENT.sub("", text)
    styled = _STYLE.sub(r" \1 ", text)
    return (_WORD if styled == text else _STYLED_WORD).search(styled) is not None


def value_in(text: str) -> Value | None:
    """Return the value of a number, also of one that is named (x = 5), has a unit, or is a percentage."""
    text = _NAMED.sub("", text)
    is_percent = _PERCENT.search(text) is not None
    text = _DEGREES.sub("", _PERCENT.sub("", text)).replace("\\$", "")
    unit = _UNIT.search(text)
    if unit and text[: unit.start()].strip() and not _AMOUNT.search(unit[1]):
        text = text[: unit.start()]
    exact = number_of(normalised(text))
    if exact is not None:
        return exact, is_percent
    value = value_of(text)
    return None if value is None or abs(value) > EXACT_BELOW else (value, is_percent)


def _same_value(left: Value | None, right: Value | None) -> bool | None:
    """Tell whether two values are equal; None when one of them is missing."""
    if left is None or right is None:
        return None
    (given, percent), (wanted, wanted_percent) = left, right
    if percent == wanted_percent:
        return _close(given, wanted)
    part, whole = (given, wanted) if percent else (wanted, given)
    return _close(part, whole) or _close(part / 100, whole)


def _close(given: Fraction | float, wanted: Fraction | float) -> bool:
    given, wanted = Fraction(given), Fraction(wanted)
    if given.denominator == wanted.denominator == 1:
        return given == wanted
    return abs(given - wanted) <= min(ABSOLUTE, RELATIVE * abs(wanted))
