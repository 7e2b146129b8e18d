"""Layouts of published data sets that have prompt or answer in other places than ours: their rows get ``prompt``,
``answer`` and ``choices`` beside what they have.

===========================================  =======================================================================
row                                          gets
===========================================  =======================================================================
``Problem``, ``Answer`` in capitals          the same in small letters
ShareGPT's ``from`` and ``value``            ``role`` and ``content``
``messages``, ``conversations``              ``prompt``: the turns before the assistant's last, which is an answer
a prompt that is JSON of messages            the messages
``choices`` (MMLU, ARC), ``options``         ``prompt``: the question and its choices, one a line, with letters
GPQA's right and wrong answers               ``choices`` in an order of the question's own, ``answer`` is a letter
``nums`` or ``numbers`` with ``target``      ``prompt``: the game in words, ``answer``: a Countdown problem
``instruction`` (Alpaca)                     ``prompt``: that and its ``input``
``"0"``, ``"1"`` (Open-Reasoner-Zero)        ``prompt`` and ``answer``
``expected_answer``, ``reward_spec``, ...    ``answer``
===========================================  =======================================================================
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from string import ascii_uppercase
from typing import Any

from typing_extensions import override

from lpo_ray.tasks.sources.columns import ANSWERS, PROMPTS, Row, look_up
from lpo_ray.tasks.sources.countdown_problems import Problem, render
from lpo_ray.tasks.sources.rows import Rows

CONVERSATIONS = ("messages", "conversations", "conversation", "chat")
OTHER_PROMPTS = ("question_stem", "query")
OTHER_ANSWERS = (
    "expected_answer", "reward_spec.ground_truth", "answerKey", "answer_key", "answer_idx", "answer_index", "cop",
    "correct", "golden_answers",
)  # fmt: skip
SHAREGPT = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "model": "assistant", "observation": "tool"}
RIGHT, WRONG = ("Correct Answer", "correct_answer"), ("Incorrect Answer ", "distractor")
"""of GPQA and SciQ"""
MEDMCQA = ("opa", "opb", "opc", "opd")
MOST_CHOICES = len(ascii_uppercase)
"""letters that multiple_choice knows"""


class Recast(Rows):
    """Rows in our layout, whatever they were."""

    def __init__(self, rows: Rows) -> None:
        self._rows = rows

    @override
    def __iter__(self) -> Iterator[Row]:
        return map(recast, self._rows)

    @override
    def __getitem__(self, index: int) -> Row:
        return recast(self._rows[index])

    @override
    def number(self, index: int) -> int:
        return self._rows.number(index)

    @override
    def where(self, index: int) -> str:
        return self._rows.where(index)


def recast(row: Row) -> Row:
    """Add to a row what its layout has elsewhere. A row in a layout of ours stays as it is."""
    made = dict(row)
    for name, value in row.items():
        if (small := name.lower()) in PROMPTS + ANSWERS:
            made.setdefault(small, value)
    for name in (*PROMPTS, *CONVERSATIONS):
        if name in made:
            made[name] = _messages(made[name])
    if not _has_answer(made):
        _add(made, "answer", _answer(made))
    if not any(made.get(name) is not None for name in PROMPTS):
        _add(made, "prompt", _prompt(made))
    elif "instruction" in made and not made.get("prompt"):
        _add(made, "prompt", _instruction(made))
    _add_choices(made)
    for answer in (made.get("answer"), look_up(made, "reward_model.ground_truth")):
        if isinstance(answer, dict) and "nums" in answer:
            answer.setdefault("numbers", answer["nums"])
    return made


def _add(row: dict[str, object], name: str, value: object) -> None:
    if value is not None:
        row[name] = value


def _has_answer(row: Row) -> bool:
    return any(row.get(name) is not None for name in ANSWERS) or look_up(row, "reward_model.ground_truth") is not None


def _answer(row: Row) -> object:
    """Find an answer that stands under another name."""
    if (game := _countdown(row)) is not None:
        return {"numbers": list(game.numbers), "target": game.target}
    second = row.get("1")
    if isinstance(second, Mapping):
        found = second.get("ground_truth")
        return found.get("value") if isinstance(found, Mapping) else found
    return next((value for name in OTHER_ANSWERS if (value := look_up(row, name)) is not None), None)


def _prompt(row: Row) -> object:
    """Find a prompt that stands under another name, or make one of what there is."""
    for name in CONVERSATIONS:
        turns = row.get(name)
        if isinstance(turns, list | tuple) and turns:
            return _asked(turns)
    if isinstance(first := row.get("0"), Mapping):
        return _messages([first])
    if (game := _countdown(row)) is not None:
        return render(game, "chat")
    if row.get("instruction"):
        return _instruction(row)
    return next((row[name] for name in OTHER_PROMPTS if row.get(name) is not None), None)


def _instruction(row: Row) -> str:
    return "\n\n".join(str(row[name]) for name in ("instruction", "input") if row.get(name))


def _countdown(row: Row) -> Problem | None:
    """Read a row that is a Countdown problem."""
    numbers, target = row.get("nums", row.get("numbers")), row.get("target")
    if not isinstance(numbers, list | tuple) or not numbers or not isinstance(target, int):
        return None
    return Problem(tuple(numbers), target, "") if all(isinstance(number, int) for number in numbers) else None


def _asked(turns: Sequence[Any]) -> Sequence[Any]:
    """Cut what the assistant says last: in a column of whole conversations it is an answer, not a beginning."""
    last = len(turns)
    while last > 1 and isinstance(turns[last - 1], Mapping) and turns[last - 1].get("role") == "assistant":
        last -= 1
    return turns[:last]


def _messages(value: object) -> object:
    """Turn messages in ShareGPT's form, or in JSON, into ours; anything else stays."""
    if isinstance(value, str) and value.lstrip().startswith("[{"):
        try:
            parsed = json.loads(value)
        except (ValueError, RecursionError):
            return value
        is_messages = isinstance(parsed, list) and all(
            isinstance(turn, dict) and ({"role", "content"} <= set(turn) or {"from", "value"} <= set(turn))
            for turn in parsed
        )
        return _messages(parsed) if is_messages else value
    if not isinstance(value, list | tuple):
        return value
    return [
        {"role": SHAREGPT.get(str(turn["from"]).lower(), turn["from"]), "content": turn["value"]}
        if isinstance(turn, Mapping) and "from" in turn and "value" in turn
        else turn
        for turn in value
    ]


def _add_choices(row: dict[str, object]) -> None:
    """Add ``choices`` as multiple_choice reads them, and to a question that does not show them a prompt that does."""
    found = _right_and_wrong(row) or _choices(row.get("choices")) or _choices(row.get("options"))
    found = found or _choices([row[name] for name in MEDMCQA if name in row])
    question = next((row[name] for name in PROMPTS if row.get(name) is not None), None)
    if found is None or not isinstance(question, str):
        return
    labels, texts = found
    row.setdefault("choices", {"label": labels, "text": texts})
    if not all(text in question for text in texts):
        lines = [f"{label}. {text}" for label, text in zip(labels, texts, strict=True)]
        row["prompt"] = "\n".join([question.rstrip(), *lines])


def _choices(value: object) -> tuple[list[str], list[str]] | None:
    """Read labels and texts of a list of texts, of ARC's mapping of two lists, or of one from labels to texts."""
    if isinstance(value, Mapping) and isinstance(value.get("text"), list | tuple):
        texts, labels = value["text"], value.get("label") or ascii_uppercase[: len(value["text"])]
    elif isinstance(value, Mapping) and set(value) <= set(ascii_uppercase):
        kept = {label: text for label, text in sorted(value.items()) if text is not None}
        texts, labels = list(kept.values()), list(kept)
    elif isinstance(value, list | tuple):
        texts, labels = value, ascii_uppercase[: len(value)]
    else:
        return None
    if all(re.match(rf"{label}[).]", str(text)) for label, text in zip(labels, texts, strict=False)):  # AQuA-RAT
        texts = [str(text)[2:].strip() for text in texts]
    known = 2 <= len(texts) <= MOST_CHOICES and len(labels) == len(texts) and all(isinstance(t, str) for t in texts)
    return ([str(label) for label in labels], list(texts)) if known else None


def _right_and_wrong(row: dict[str, object]) -> tuple[list[str], list[str]] | None:
    """Put the right answer among the wrong ones, in an order that the question decides; the answer is its letter."""
    right = next((row[name] for name in RIGHT if name in row), None)
    wrong = [text for name, text in sorted(row.items()) if name.startswith(WRONG) and isinstance(text, str)]
    if not isinstance(right, str) or not wrong:
        return None
    texts = [right, *wrong]
    random.Random(str(row.get("question"))).shuffle(texts)
    labels = list(ascii_uppercase[: len(texts)])
    row["answer"] = labels[texts.index(right)]
    row["choices"] = {"label": labels, "text": texts}
    return labels, texts
