r"""Multiple choice. The choice that a response names last counts: in a ``\boxed{C}``, in ``<answer>C</answer>``, after
"answer is" or "answer:", or as a letter alone, which is then the whole response or its last line.

A choice is named by its letter (``C``, ``(C)``, ``**C.**``, ``C) the moon``) or by its text, where the row has
``choices``: a list of texts, or a mapping with lists ``text`` and ``label``. Naming two at once is wrong.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from lpo_ray.verdict import BadAnswer, Verdict
from lpo_ray.verifiers.places import CLOSE, OPEN, boxed_answer, last_answer, last_box_at, last_said
from lpo_ray.verifiers.thinking import after_thinking

LETTERS = tuple("ABCDEFGHIJ")
MAX_CHARACTERS = 500
"""length of what may name a choice; longer texts name none"""

_BOLD = re.compile(r"\*+|\$|\\(?:text|textbf|mathrm|mathbf)(?=\{)|[{}]|\\[()\[\]]")
_LETTER = re.compile(r"\(([A-J])\)|([A-J])(?=$|[.:),;\n]| *(?:$|[-–—]|because\b|since\b|as\b))", re.IGNORECASE)
_SECOND = re.compile(
    r"[\s.,;:)\]]*(?:\b(?:or|and|nor|not)\b|[/,&;+|])?\s*\(?[A-J]\)?(?=\s*(?:$|[.,;:)/&+|]|or\b|and\b))", re.IGNORECASE
)
_ANOTHER = re.compile(r"(?<![A-Za-z0-9])\(?([A-J])\)")
"""a letter with a bracket, as choices are listed"""


def multiple_choice(
    response: str,
    answer: str,
    row: Mapping[str, Any],
    prompt: str = "",
    raw_answer: Any = None,  # noqa: ANN401 - any JSON
) -> Verdict:
    """Give 1 when the response names the right choice; 0 when it names another, two, or none.

    ``answer``: a letter A to J, a label or the text of one of ``row["choices"]``, or its number counted from 0. A
    number in the data (``raw_answer``) is always the last, unless the choices have labels. Raises BadAnswer when it is
    none of these.
    """
    wanted, (labels, texts) = wanted_choice(answer, row, raw_answer), _choices(row)
    said, given = _given(after_thinking(response, prompt), labels, texts)
    if given is None:
        return Verdict.scored(0.0, "no choice is named" if said is None else f"{said[:80]!r} is no one choice")
    return Verdict.scored(float(given == wanted), f"{_shown(given)}, expected {_shown(wanted)}")


def choice_vote(response: str, row: Mapping[str, Any], prompt: str = "") -> str | None:
    """Return the letter of the one choice that the response names, as multiple_choice reads it; None when it names
    none.
    """
    _, given = _given(after_thinking(response, prompt), *_choices(row))
    return None if given is None else _shown(given)


def _given(response: str, labels: Sequence[str], texts: Sequence[str]) -> tuple[str | None, int | None]:
    """Return what the response says in the place for an answer, and the number of the choice that this names."""
    said = _said(response)
    return said, None if said is None else _named(said, labels, texts)


def _choices(row: Mapping[str, Any]) -> tuple[Sequence[str], Sequence[str]]:
    """Return (labels, normalised texts), both empty for a row without choices."""
    choices = row.get("choices") or []
    if isinstance(choices, Mapping):
        texts = [_text(text) for text in choices["text"]]
        return [str(label).upper() for label in choices.get("label", LETTERS[: len(texts)])], texts
    return LETTERS[: len(choices)], [_text(text) for text in choices]


def wanted_choice(answer: str, row: Mapping[str, Any], raw_answer: Any = None) -> int:  # noqa: ANN401 - any JSON
    """Read which choice is right, counted from 0. Raises BadAnswer when the answer names none."""
    labels, texts = _choices(row)
    if type(raw_answer) is int and isinstance(row.get("choices"), list) and 0 <= raw_answer < len(texts):
        return raw_answer
    bare = answer.strip().strip("().:").strip()
    if bare.upper() in labels:
        return list(labels).index(bare.upper())
    if not labels and len(bare) == 1 and bare.upper() in LETTERS:
        return LETTERS.index(bare.upper())
    if _text(answer) in texts:
        return texts.index(_text(answer))
    if bare.isdecimal() and int(bare) < len(texts):
        return int(bare)
    raise BadAnswer(
        f"the answer of a multiple choice is {answer[:80]!r}; expected a letter A to J, or with a column 'choices' of "
        f"{len(texts)} texts also one of them or its number, counted from 0"
    )


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


def _named(said: str, labels: Sequence[str], texts: Sequence[str]) -> int | None:
    """Return the number of the one choice that ``said`` names."""
    if not said.strip() or len(said) > MAX_CHARACTERS:
        return None
    said = _BOLD.sub("", said).strip()
    if _text(said) in texts:
        return texts.index(_text(said))
    if _text(said).upper() in labels:
        return list(labels).index(_text(said).upper())
    letter = _LETTER.match(said)
    if letter is None or _SECOND.match(said, letter.end()):
        return None
    named = (letter[1] or letter[2]).upper()
    if any(another[1] != named for another in _ANOTHER.finditer(said, letter.end())):
        return None
    number = LETTERS.index(named)
    return number if not texts or number < len(texts) else None


def _text(text: object) -> str:
    return " ".join(str(text).split()).strip(" .").casefold()


def _shown(number: int) -> str:
    return LETTERS[number] if number < len(LETTERS) else str(number)
