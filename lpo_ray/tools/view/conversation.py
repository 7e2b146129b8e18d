"""Conversations of a group, for reading: who wrote which tokens, what was called, where segments begin, and why."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from lpo_ray.agents.tools.calls import ONE_ARGUMENT, PARSERS, ToolCall, parse
from lpo_ray.errors import DataError
from lpo_ray.records import BoolArray, IntArray
from lpo_ray.tools.view.run_folders import task_of
from lpo_ray.tools.view.sample_columns import Key, read_columns

LONGEST_CONTEXT = 20_000
"""tokens, and characters, of a context that are shown: its end"""
LONGEST_TURN = 20_000
"""tokens of a turn that are read for tool calls"""
LONGEST_CALL = 300
"""characters of a tool call that are shown"""
FACTS = ("turns", "authors", "began", "ended", "environment_seconds", "moved", "redrawn", "dropped")
ARRAYS = ("segment_ids", "sampled", "context_ids")
Show = Callable[[IntArray], str]
"""makes text of tokens"""


@dataclass(frozen=True, slots=True)
class Mark:
    """Place before a token at which something begins."""

    at: int
    """number of the token, among all of the response's segments"""
    kind: Literal["turn", "author", "segment"]
    text: str
    """its number; the role of whoever writes; why it began"""
    tokens: int
    """of the turn, or of what was written; of a segment those of its context, 0 where that is the prompt"""
    calls: Sequence[str] = ()
    """tool calls of a turn, which tools answered"""
    context: str | None = None
    """text that a segment stands behind, where it is not the prompt"""


@dataclass(frozen=True)
class RecordedConversation:
    """Conversation of a response, from its rows in the samples: one a segment."""

    rows: Sequence[Mapping[str, Any]]
    """FACTS of each"""
    segment_ids: Sequence[IntArray]
    """tokens of each segment"""
    masks: Sequence[BoolArray]
    contexts: Sequence[IntArray | None]
    parsers: Sequence[str]
    """rows of PARSERS by which its tool calls may be written"""

    @cached_property
    def token_ids(self) -> IntArray:
        """Tokens of all segments."""
        return np.concatenate(self.segment_ids)

    @cached_property
    def sampled(self) -> BoolArray:
        """Whether the policy sampled each token, of all segments."""
        return np.concatenate(self.masks)

    def facts(self) -> dict[str, object]:
        """Return what the page says of it beside its tokens."""
        first = self.rows[0]
        return {
            "turns": len(first["turns"]),
            "environment_tokens": int(np.count_nonzero(~self.sampled)),
            "segments": len(self.rows),
            **{name: first[name] for name in ("ended", "environment_seconds", "moved", "redrawn", "dropped")},
        }

    def spread(self, values: Sequence[Any], start: int, stop: int) -> list[Any]:
        """Give each token from ``start`` to ``stop`` its value, of those of the sampled ones; None for others."""
        found = iter(values[int(np.count_nonzero(self.sampled[:start])) :])
        return [next(found, None) if sampled else None for sampled in self.sampled[start:stop]]

    def marks(self, start: int, stop: int, show: Show) -> list[Mark]:
        """List what begins at the tokens from ``start`` to ``stop``."""
        found = [*self._segments(start, stop, show), *self._turns(start, stop, show), *self._others(start, stop)]
        order = ("segment", "turn", "author")
        return sorted(found, key=lambda mark: (mark.at, order.index(mark.kind)))

    @cached_property
    def _turn_starts(self) -> IntArray:
        """Number of the sampled token, among these alone, that each turn begins with."""
        return np.cumsum([0, *self.rows[0]["turns"]])[:-1]

    def _segments(self, start: int, stop: int, show: Show) -> Iterator[Mark]:
        starts = itertools.accumulate((len(ids) for ids in self.segment_ids), initial=0)
        for number, (at, row, context) in enumerate(zip(starts, self.rows, self.contexts, strict=False)):
            if not start <= at < stop or (context is None and not number):
                continue
            text = "" if context is None else show(context[-LONGEST_CONTEXT:])
            if context is not None and (len(context) > LONGEST_CONTEXT or len(text) > LONGEST_CONTEXT):
                text = f"... {text[-LONGEST_CONTEXT:]}"
            size = 0 if context is None else len(context)
            yield Mark(at, "segment", row["began"] or "", size, context=text or None)

    def _turns(self, start: int, stop: int, show: Show) -> Iterator[Mark]:
        positions = np.flatnonzero(self.sampled)
        turns, authors = self.rows[0]["turns"], self.rows[0]["authors"]
        for number, (begin, size) in enumerate(zip(self._turn_starts, turns, strict=True)):
            at = int(positions[begin]) if begin < len(positions) else -1
            if not start <= at < stop:
                continue
            calls: list[str] = []
            if number < len(authors) and authors[number] == "tool":
                calls = self._calls(show(self.token_ids[positions[begin : begin + min(size, LONGEST_TURN)]]))
            yield Mark(at, "turn", str(number + 1), size, calls)

    def _calls(self, text: str) -> list[str]:
        found = (parse(parser, text)[1] for parser in self.parsers)
        return [_written(call) for call in next(filter(None, found), [])]

    def _others(self, start: int, stop: int) -> Iterator[Mark]:
        """Marks of what the policy did not write."""
        sampled, authors = self.sampled, self.rows[0]["authors"]
        edges = np.flatnonzero(np.diff(np.concatenate([[True], sampled, [True]])))
        for at, end in edges.reshape(-1, 2).tolist():
            if start <= at < stop:
                turn = int(np.searchsorted(self._turn_starts, np.count_nonzero(sampled[:at]))) - 1
                author = authors[turn] if 0 <= turn < len(authors) else ""
                yield Mark(at, "author", author or "environment", end - at)


def read_conversations(folder: Path, path: Path, key: Key) -> dict[int, RecordedConversation]:
    """Read the conversations of a group of the run in ``folder``, by the index of their response. DataError as
    ``read_columns``, or for columns of something else.
    """
    table = read_columns(path, ("response_index",), (*FACTS, *ARRAYS), key, by_segment=True)
    found: dict[int, list[int]] = {}
    for number, index in enumerate(table["response_index"].to_pylist()):
        if table["segment_ids"][number].is_valid:
            found.setdefault(index, []).append(number)
    rows, parsers = table.select(FACTS).to_pylist(), _parsers(folder)
    try:
        return {
            index: RecordedConversation(
                [rows[number] for number in of],
                [_array(table, "segment_ids", number) for number in of],
                [_array(table, "sampled", number) for number in of],
                [
                    _array(table, "context_ids", number) if table["context_ids"][number].is_valid else None
                    for number in of
                ],
                parsers,
            )
            for index, of in found.items()
        }
    except (AttributeError, TypeError, ValueError) as error:
        raise DataError(
            f"{path.name} has conversations that cannot be read: {error}; expected those of a run"
        ) from error


def _array(table: pa.Table, name: str, row: int) -> Any:  # noqa: ANN401 - of the column's kind
    return table[name][row].values.to_numpy(zero_copy_only=False)


def _parsers(folder: Path) -> Sequence[str]:
    """Choose the parsers by the run's configuration: all where only the model's template says which."""
    task = task_of(folder)
    if task.get("template") == "plain":
        return ("brackets",)
    named = task.get("tool_parser")
    return (named,) if isinstance(named, str) and named in PARSERS else [name for name in PARSERS if name != "brackets"]


def _written(call: ToolCall) -> str:
    """Write a tool call in a line."""
    name, arguments = call["function"]["name"], call["function"]["arguments"]
    if isinstance(arguments, dict) and set(arguments) == {ONE_ARGUMENT}:
        text = str(arguments[ONE_ARGUMENT])
    else:
        text = f"{name}({arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)})"
    return text if len(text) <= LONGEST_CALL else f"{text[:LONGEST_CALL]} ..."
