"""Meaning of a row's columns: prompt, answer and the rest, in the layouts that data sets come in.

==========  ==========================================================  ===================================
layout      prompt                                                      answer
==========  ==========================================================  ===================================
ours, TRL   ``prompt``, text or messages                                ``answer``, or none
verl        ``prompt``, messages                                        ``reward_model.ground_truth``
OpenRLHF    ``input``, ``context_messages`` or ``question``             ``answer`` or ``label``
==========  ==========================================================  ===================================

A column of a column is named with a dot. All columns reach verifiers as they are, but ``answer`` in a field of its own
and the prompt, text or messages, as ``prompt``. Our verifiers read the answer as text; others get the value itself.
"""

from __future__ import annotations

import base64
import datetime
import decimal
import json
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lpo_ray.errors import DataError
from lpo_ray.policy.tokenizer import Messages
from lpo_ray.verdict import BadAnswer

Row = Mapping[str, object]
Check = Callable[[str, Mapping[str, Any], Any], None]
"""answer as text, row, answer in its own type; raises BadAnswer when the verifier cannot read it"""
PROMPTS = ("prompt", "input", "context_messages", "question", "problem")
"""names of the prompt's column; the first that a row has is it"""
ANSWERS = ("answer", "label", "ground_truth", "final_answer", "solution")
"""names of the answer's column, likewise"""
IMAGES = ("images", "image")
MAX_DEPTH = 64
"""nesting of mappings and lists in a value"""
SHOWN = 80
"""characters of a value in a message"""


@dataclass(frozen=True, slots=True)
class Example:
    """Prompt, answer and the rest of one row.

    Example: ``Example("1+1=", "2", {"level": 3}, 0)``
    """

    prompt: str | Messages
    answer: str
    """as text; empty: there is none"""
    row: Mapping[str, Any]
    """plain values: what JSON has"""
    num_images: int
    raw_answer: Any = None
    """in its own type; None: there is none"""

    @property
    def text(self) -> str:
        """Text by which two prompts are compared: the prompt's own, or that of all its messages."""
        return self.prompt if isinstance(self.prompt, str) else "\0".join(message["content"] for message in self.prompt)


def anything(answer: str, row: Mapping[str, Any], raw_answer: Any) -> None:  # noqa: ANN401 - JSON
    """Take any answer: the ``Check`` of a verifier from outside."""


@dataclass(frozen=True, slots=True)
class Columns:
    """Names of the columns where prompt and answer stand.

    Example: ``Columns("prompt", "reward_model.ground_truth", True)``
    """

    prompt: str
    answer: str | None
    needs_answer: bool
    check: Check = anything
    """reads an answer as the verifier does"""

    def read(self, row: Row, where: str) -> Example:
        """Read the row's prompt, answer and rest. DataError that starts with ``where`` and names the column."""
        found = look_up(row, self.prompt)
        if found is None and self.prompt in row:
            raise DataError(f"{where}: {self.prompt} is empty; expected a text that is not empty, or messages")
        if found is None:
            raise _missing(row, self.prompt, where)
        if isinstance(found, bytes):
            found = _utf8(found, f"{where}: {self.prompt}")
        prompt, num_images = _prompt(found, f"{where}: {self.prompt}")
        left_out = {"prompt", self.prompt}
        rest = {name: plain(value, f"{where}: {name}") for name, value in row.items() if name not in left_out}
        rest["prompt"] = prompt
        raw = self._raw_answer(row, where)
        if self.answer in rest and self.answer != "prompt":
            rest[self.answer] = raw
        if self.answer == "answer":
            rest.pop("answer", None)
        answer = _unicode(as_text(raw), f"{where}: {self.answer}")
        num_images += sum(_count(row.get(name)) for name in IMAGES)
        return Example(prompt, answer, rest, num_images, raw)

    def _raw_answer(self, row: Row, where: str) -> Any:  # noqa: ANN401 - JSON
        """Read the answer in its own type; bytes are text. None where there is none."""
        if self.answer is None:
            return None
        name = f"{where}: {self.answer}"
        raw = plain(look_up(row, self.answer), name, binary=_utf8)
        return None if isinstance(raw, float) and not math.isfinite(raw) else raw  # pandas writes NaN for nothing

    def fault(self, example: Example) -> str | None:
        """Say why the example's answer cannot be used; None when it can."""
        if self.needs_answer and example.raw_answer is None:
            return f"{self.answer or 'answer'}: there is none"
        try:
            self.check(example.answer, example.row, example.raw_answer)
        except BadAnswer as error:
            return f"{self.answer or 'answer'}: {error}"
        return None


def recognised(
    rows: Sequence[Row],
    prompt: str | None,
    answer: str | None,
    where: str,
    *,
    needs_answer: bool,
    check: Check = anything,
) -> Columns:
    """Recognise the columns of a data set by its first ``rows``: one of them may lack what the others have. ``prompt``
    and ``answer`` are what the configuration says.

    DataError when there is no column for the prompt, or none for an answer that is needed.
    """
    is_verl = any("prompt" in row and look_up(row, "reward_model.ground_truth") is not None for row in rows)
    if prompt is None:
        prompt = _first_of(PROMPTS, rows)
    if prompt is None:
        raise DataError(
            f"{where} has no prompt; its columns are {_names(rows[0])}. Expected one of {', '.join(PROMPTS)}: set "
            "task.prompt_column to the one that is it"
        )
    if answer is None:
        answer = "reward_model.ground_truth" if is_verl else _first_of(ANSWERS, rows)
    if answer is None and needs_answer:
        raise DataError(
            f"{where} has no answer; its columns are {_names(rows[0])}. Expected one of {', '.join(ANSWERS)}: set "
            "task.answer_column to the one that is it, or take a task.verifier that needs none"
        )
    return Columns(prompt, answer, needs_answer, check)


def look_up(row: Row, column: str) -> object:
    """Return the value of a column, or of a column of a column (of a list: its number, from 0); None when there is
    none.
    """
    value: object = row
    if column in row:
        return row[column]
    for name in column.split("."):
        if isinstance(value, list) and name.isdecimal():
            value = value[int(name)] if int(name) < len(value) else None
            continue
        if not isinstance(value, Mapping):
            return None
        value = value.get(name)
    return value


def _base64(value: bytes, where: str) -> str:
    return base64.b64encode(value).decode()


def _utf8(value: bytes, where: str) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError as error:
        raise DataError(
            f"{where} is bytes that are not UTF-8 ({error.reason}): {shown(value)}; expected text"
        ) from error


def plain(value: object, where: str, depth: int = 0, binary: Callable[[bytes, str], str] = _base64) -> Any:  # noqa: ANN401 - JSON
    """Turn ``value`` into JSON types: bytes by ``binary``, times in ISO format, decimals as text. DataError
    otherwise.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if depth >= MAX_DEPTH:
        raise DataError(f"{where} is nested deeper than {MAX_DEPTH} levels; expected a flatter value")
    if isinstance(value, Mapping):
        return {str(name): plain(item, where, depth + 1, binary) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item, where, depth + 1, binary) for item in value]
    if isinstance(value, bytes):
        return binary(value, where)
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, decimal.Decimal | datetime.timedelta):
        return str(value)
    raise DataError(f"{where} holds a {type(value).__name__}; expected text, numbers, lists and mappings of these")


def as_text(value: Any) -> str:  # noqa: ANN401 - JSON
    """Write an answer as our verifiers read it: true as True, 42.0 as 42, 1e21 in digits, lists and mappings as
    JSON.
    """
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return str(value)
    if isinstance(value, float) and (value == 0 or 1e-30 < abs(value) < 1e30):
        digits = f"{decimal.Decimal(repr(value + 0.0)):f}"  # of -0.0 the sign goes
        return digits.rstrip("0").rstrip(".") if "." in digits else digits
    return json.dumps(value)


def shown(value: object) -> str:
    """Write a value for a message, on one line and cut."""
    text = repr(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


def _prompt(value: object, where: str) -> tuple[str | Messages, int]:
    """Return the prompt, and the images among its messages."""
    if isinstance(value, str) and value.strip():
        return _unicode(value, where), 0
    if not isinstance(value, list | tuple) or not value:
        raise DataError(f"{where} is {shown(value)}; expected a text that is not empty, or messages")
    found = [_message(message, f"{where}, message {number}") for number, message in enumerate(value, start=1)]
    if not any(message["content"].strip() for message, _ in found):
        raise DataError(f"{where} is {shown(value)}; expected messages of which one has a text")
    return [message for message, _ in found], sum(images for _, images in found)


def _message(message: object, where: str) -> tuple[dict[str, Any], int]:
    """Return role, content as text, and whatever else a template may use; and the images that were in the content."""
    if not isinstance(message, Mapping):
        raise DataError(f"{where} is {shown(message)}; expected role and content")
    role, content, images = message.get("role"), message.get("content"), 0
    if not isinstance(role, str) or not role:
        raise DataError(f"{where} has the role {shown(role)}; expected system, user or assistant")
    if isinstance(content, list | tuple):
        images = sum(isinstance(part, Mapping) and str(part.get("type")).startswith("image") for part in content)
        texts = [part.get("text") for part in content if isinstance(part, Mapping) and part.get("type") == "text"]
        if len(texts) + images != len(content) or not all(isinstance(text, str) for text in texts):
            raise DataError(f"{where} has the content {shown(content)}; expected parts of type text or image")
        content = "".join(str(text) for text in texts)
    if not isinstance(content, str):
        raise DataError(f"{where} has the content {shown(content)}; expected a text")
    rest = {name: plain(value, where) for name, value in message.items() if value is not None}
    return {**rest, "role": role, "content": _unicode(content, where)}, images


def _unicode(text: str, where: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"{where} has half a surrogate pair at character {error.start}, {shown(text)}; expected valid Unicode"
        ) from error
    return text


def _first_of(names: Collection[str], rows: Sequence[Row]) -> str | None:
    return next((name for name in names if any(row.get(name) is not None for row in rows)), None)


def _missing(row: Row, column: str, where: str) -> DataError:
    return DataError(f"{where}: it has no {column}; its columns are {_names(row)}")


def _names(row: Row) -> str:
    text = ", ".join(map(repr, row)) or "none"
    return text if len(text) <= 4 * SHOWN else f"{text[: 4 * SHOWN]}..."


def _count(value: object) -> int:
    return len(value) if isinstance(value, list | tuple) else int(value is not None and value != "")
