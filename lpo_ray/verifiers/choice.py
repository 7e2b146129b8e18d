r"""Multiple choice. The choice that a response names last counts: in a ``\boxed{C}``, in ``<answer>C</answer>``, after
"answer is" or "answer:", or as a label alone, which is then the whole response or its last line.

A choice is named by its label (``C``, ``(C)``, ``**C.**``, ``Option C``, ``C) the moon``) or by its text, where the row
has ``choices``: a list of texts, or a mapping with lists ``text`` and ``label``. Labels are the letters from A unless
the row has its own. What is a label and also a text is read as the label. Naming two at once is wrong.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from functools import lru_cache
from string import ascii_uppercase
from typing import Any, NamedTuple

from lpo_ray.verdict import BadAnswer, Verdict
from lpo_ray.verifiers.places import CLOSE, OPEN, boxed_answer, last_answer, last_box_at, last_said
from lpo_ray.verifiers.thinking import after_thinking

LETTERS = tuple(ascii_uppercase)
UNSEEN = LETTERS[:10]
"""labels of a row without choices"""
MAX_CHARACTERS = 500
"""length of what may name a choice; longer texts name none"""

_BOLD = re.compile(r"\*+|\$|\\(?:text|textbf|mathrm|mathbf)(?=\{)|[{}]|\\[()\[\]]")
_SEPARATOR = re.compile(r"[\s.,:;)\]]*(?:[–—]\s*|-\s+)?")
_GOES_ON = re.compile(r"\w|[.,/:^]\d|-\w")
_TAKEN_BACK = re.compile(
    r"\b(?:no(?=\s*[,.;:!–—]|\s+wait)|wait|actually|sorry|rather(?! than)|instead(?! of)|correction|hmm+|oops|i mean"
    r"|second thoughts?|scratch that|make that)\b",
    re.IGNORECASE,
)


class _Patterns(NamedTuple):
    """Ways in which one of a row's labels stands in a text."""

    first: re.Pattern[str]
    """at the beginning, in group 1 with brackets or in group 2 without"""
    second: re.Pattern[str]
    """directly after the first, or joined to it"""
    listed: re.Pattern[str]
    """with a bracket, as choices are listed"""
    alone: re.Pattern[str]
    """at the end of a clause, or said to be right"""


@lru_cache(maxsize=256)
def _patterns(labels: tuple[str, ...]) -> _Patterns:
    longest_first = sorted(labels, key=len, reverse=True)
    label = "|".join(re.escape(one) + (r"(?![.,:]?\d)" if one.isdecimal() else "") for one in longest_first)
    return _Patterns(
        re.compile(
            rf"(?:(?:the )?(?:option|choice|answer|letter)\b[\s:]*)?"
            rf"(?:\(({label})\)|({label})(?=$|[.:),;\n]| *(?:$|[-–—(]|because\b|since\b|as\b)))",
            re.IGNORECASE,
        ),
        re.compile(
            r"[\s.,;:)\]–—-]*(?:\b(?:or|and|nor|not)\b|[/,&;+|])?\s*"
            rf"\(?(?:{label})\)?(?=\s*(?:$|[.,;:)/&+|]|or\b|and\b))",
            re.IGNORECASE,
        ),
        re.compile(rf"(?<![A-Za-z0-9])\(?({label})\)"),
        re.compile(
            rf"(?<![\w'’])\(?({label})\)?(?=\s*(?:$|[.,;:)!?])|\s+is (?:the )?(?:right|correct|best|better|answer)\b)"
        ),
    )


class _Choices(NamedTuple):
    """Choices of a row."""

    labels: Sequence[str]
    texts: Sequence[str]
    """normalised by _text; none for a row without choices"""
    numbers: Mapping[str, int]
    """each label in capitals, and the letter where no label is one -> number of the choice, from 0"""

    def whole(self, said: str) -> int | None:
        """Return the choice whose label or text is all of ``said``."""
        bare = said.strip().strip("().:").strip().upper()
        if bare in self.numbers:
            return self.numbers[bare]
        return self.texts.index(_text(said)) if _text(said) in self.texts else None

    def shown(self, number: int) -> str:
        """Return the label of a choice, or the number of one without."""
        return self.labels[number] if number < len(self.labels) else str(number)


def multiple_choice(
    response: str,
    answer: str,
    row: Mapping[str, Any],
    prompt: str = "",
    raw_answer: Any = None,  # noqa: ANN401 - any JSON
) -> Verdict:
    """Give 1 when the response names the right choice; 0 when it names another, two, or none.

    ``answer``: a label or the text of one of ``row["choices"]``, or its number counted from 0; a letter A to J for a
    row without choices. A number in the data (``raw_answer``) is always the last, unless it is a label. Raises
    BadAnswer when it is none of these.
    """
    wanted, choices = wanted_choice(answer, row, raw_answer), _choices(row)
    said = _said(after_thinking(response, prompt))
    given = None if said is None else _named(said, choices)
    if given is None:
        return Verdict.scored(0.0, "no choice is named" if said is None else f"{said[:80]!r} is no one choice")
    return Verdict.scored(float(given == wanted), f"{choices.shown(given)}, expected {choices.shown(wanted)}")


def choice_vote(response: str, row: Mapping[str, Any], prompt: str = "") -> str | None:
    """Return the label of the one choice that the response names, as multiple_choice reads it; None when it names
    none.
    """
    said, choices = _said(after_thinking(response, prompt)), _choices(row)
    given = None if said is None else _named(said, choices)
    return None if given is None else choices.shown(given)


def _choices(row: Mapping[str, Any]) -> _Choices:
    """Read the choices of a row. Raises BadAnswer when its labels do not tell its texts apart."""
    found = row.get("choices") or []
    raw_texts = found["text"] if isinstance(found, Mapping) else found
    own = found.get("label") if isinstance(found, Mapping) else None
    labels = [str(label).strip().strip("().:").strip().upper() for label in own or LETTERS[: len(raw_texts)]]
    if own and (len(labels) != len(raw_texts) or len(set(labels)) < len(labels) or "" in labels):
        raise BadAnswer(f"the choices have the labels {labels}; expected one for each of {len(raw_texts)} texts")
    labels = labels or list(UNSEEN)
    numbers = {label: number for number, label in enumerate(labels)}
    if not set(labels) & set(LETTERS):
        numbers |= dict(zip(LETTERS, range(len(labels)), strict=False))
    return _Choices(labels, [_text(text) for text in raw_texts], numbers)


def wanted_choice(answer: str, row: Mapping[str, Any], raw_answer: Any = None) -> int:  # noqa: ANN401 - any JSON
    """Read which choice is right, counted from 0. Raises BadAnswer when the answer names none."""
    choices = _choices(row)
    count, numbered = len(choices.texts), any(label.isdecimal() for label in choices.labels)
    if type(raw_answer) is int and not numbered and 0 <= raw_answer < count:
        return raw_answer
    number = choices.whole(answer)
    if number is not None:
        return number
    bare = answer.strip().strip("().:").strip()
    if bare.isdecimal() and not numbered and int(bare) < count:
        return int(bare)
    expected = "a letter A to J"
    if count:
        places = "" if numbered else ", or its number counted from 0"
        expected = f"one of the labels {', '.join(choices.labels)}, the text of one of {count} choices{places}"
    raise BadAnswer(f"the answer of a multiple choice is {answer[:80]!r}; expected {expected}")


def _said(response: str) -> str | None:
    """Find the text that is meant to name a choice: of all places for it, the last one in the response."""
    places: list[tuple[int, str]] = []
    box = last_box_at(response)
    if box >= 0:  # one that is not closed was cut off, and names nothing
        places.append((box, boxed_answer(response) or ""))
    inside = last_answer(response)
    if inside is not None:
        at = response.rfind(CLOSE) - len(inside) - len(OPEN)
        places.append((at, inside))
    said = last_said(response)
    if said is not None:
        places.append(said)
    if places:
        return max(places)[1]
    stripped = response.strip()
    last_line = stripped.rpartition("\n")[2]
    return last_line if len(last_line) <= MAX_CHARACTERS and last_line else None


def _named(said: str, choices: _Choices) -> int | None:
    """Return the number of the one choice that ``said`` names."""
    if not said.strip() or len(said) > MAX_CHARACTERS:
        return None
    said = unicodedata.normalize("NFC", said)
    plain = _BOLD.sub("", said).strip()
    whole = choices.whole(plain or said)
    if whole is not None:
        return whole
    patterns = _patterns(tuple(choices.numbers))
    label = patterns.first.match(plain)
    number = None if label is None else choices.numbers.get((label[1] or label[2]).upper())
    if label is None or number is None:
        return None
    rest = plain[label.end() :]
    in_brackets = label[2] and rest.lstrip(" ").startswith("(")
    text = _SEPARATOR.sub("", " ".join(rest.split()), count=1)
    begun = _begun(text, choices.texts) or _begun(text := text.lstrip("(\"'“"), choices.texts)
    if begun is None and in_brackets:
        return None
    if begun is not None:
        if begun != choices.texts[number]:
            return None
        rest = text[len(begun) :]
    return None if _names_another(rest, number, choices, patterns) else number


def _begun(said: str, texts: Sequence[str]) -> str | None:
    """Return the longest of the texts that ``said`` begins with."""
    begun = (
        text
        for text in texts
        if text and said[: len(text)].casefold() == text and not _GOES_ON.match(said[len(text) :])
    )
    return max(begun, key=len, default=None)


def _names_another(rest: str, number: int, choices: _Choices, patterns: _Patterns) -> bool:
    """Whether what follows the choice ``number`` joins, lists, or changes over to another one."""
    if patterns.second.match(rest):
        return True
    back = _TAKEN_BACK.search(rest)
    found = [*patterns.listed.finditer(rest), *(patterns.alone.finditer(rest, back.end()) if back else ())]
    return any(choices.numbers[another[1]] != number for another in found)


def _text(text: object) -> str:
    """Return a text as it is compared: without marks, in small letters, any run of white space being one space."""
    spaced = " ".join(unicodedata.normalize("NFC", str(text)).split()).casefold()
    return " ".join(_BOLD.sub("", spaced).split()).rstrip(" .") or spaced
