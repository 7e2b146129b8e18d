r"""Multiple choice. The choice that a response names last counts: in a ``\boxed{C}``, in ``<answer>C</answer>``, after
"answer is" or "answer:", or as a letter alone, which is then the whole response or its last line.

A choice is named by its letter (``C``, ``(C)``, ``**C.**``, ``C) the moon``) or by its text, where the row has
``choices``: a list of texts, or a mapping with lists ``text`` and ``label``. Naming two at once is wrong.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from lpo_ray.verdict import Verdict
from lpo_ray.verifiers.boxed import last_box
from lpo_ray.verifiers.tags import CLOSE, OPEN, last_answer, last_said

LETTERS = tuple("ABCDEFGHIJ")
MAX_CHARACTERS = 500
"""length of what may name a choice; longer texts name none"""

_BOLD = re.compile(r"\*+|\$|\\(?:text|textbf|mathrm|mathbf)(?=\{)|[{}]|\\[()\[\]]")
_LETTER = re.compile(r"\(([A-J])\)|([A-J])(?=$|[.:),;\n]| *(?:$|[-–—]|because\b|since\b|as\b))", re.IGNORECASE)
_SECOND = re.compile(r"[\s.,;)]*(?:or|and|/|,|&)\s*\(?[A-J]\)?(?=$|[\s.,;:)])")


def multiple_choice(response: str, answer: str, row: Mapping[str, Any], raw_answer: Any = None) -> Verdict:  # noqa: ANN401 - any JSON
    """Give 1 when the response names the right choice; 0 when it names another, two, or none.

    ``answer``: a letter A to J, a label or the text of one of ``row["choices"]``, or its number counted from 0. A
    number in the data (``raw_answer``) is always the last, unless the choices have labels. Raises ValueError when it is
    none of these.
    """
    labels, texts = _choices(row)
    is_number = type(raw_answer) is int and isinstance(row.get("choices"), list) and 0 <= raw_answer < len(texts)
    wanted = raw_answer if is_number else _wanted(answer, labels, texts)
    said, given = _given(response, labels, texts)
    if given is None:
        return Verdict.scored(0.0, "no choice is named" if said is None else f"{said[:80]!r} is no one choice")
    return Verdict.scored(float(given == wanted), f"{_shown(given)}, expected {_shown(wanted)}")


def named_choice(response: str, row: Mapping[str, Any]) -> str | None:
    """Return the letter of the one choice that the response names, as multiple_choice reads it; None when it names
    none.
    """
    _, given = _given(response, *_choices(row))
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


def _wanted(answer: str, labels: Sequence[str], texts: Sequence[str]) -> int:
    bare = answer.strip().strip("().:").strip()
    if bare.upper() in labels:
        return list(labels).index(bare.upper())
    if not labels and len(bare) == 1 and bare.upper() in LETTERS:
        return LETTERS.index(bare.upper())
    if _text(answer) in texts:
        return texts.index(_text(answer))
    if bare.isdecimal() and int(bare) < len(texts):
        return int(bare)
    raise ValueError(
        f"the answer of a multiple choice is {answer[:80]!r}; expected a letter A to J, or with a column 'choices' of "
        f"{len(texts)} texts also one of them or its number, counted from 0"
    )


def _said(response: str) -> str | None:
    """Find the text that is meant to name a choice: of all places for it, the last one in the response."""
    places: list[tuple[int, str]] = []
    if "\\boxed{" in response:  # one that is not closed was cut off, and names nothing
        places.append((response.rfind("\\boxed{"), last_box(response) or ""))
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
    number = LETTERS.index((letter[1] or letter[2]).upper())
    return number if not texts or number < len(texts) else None


def _text(text: object) -> str:
    return " ".join(str(text).split()).strip(" .").casefold()


def _shown(number: int) -> str:
    return LETTERS[number] if number < len(LETTERS) else str(number)
