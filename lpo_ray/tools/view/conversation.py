"""Conversations of a group, for reading: who wrote which tokens, where turns and segments begin, and why."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from lpo_ray.records import IntArray
from lpo_ray.tools.view.sample_columns import Key, read_columns

LONGEST_CONTEXT = 20_000
"""characters of a context that are shown"""
COLUMNS = ("turns", "authors", "began", "ended", "environment_seconds", "segment_ids", "context_ids", "sampled")


@dataclass(frozen=True, slots=True)
class Mark:
    """Place before a token at which something begins."""

    at: int
    """number of the token, among all of the response's segments"""
    kind: Literal["turn", "author", "segment"]
    text: str
    """its number; the role of whoever writes; why it began"""
    context: str | None = None
    """text that a segment stands behind, where it is not the prompt"""
    context_tokens: int = 0


@dataclass(frozen=True, slots=True)
class RecordedConversation:
    """Conversation of a response, from its rows in the samples: one a segment."""

    rows: Sequence[Mapping[str, Any]]

    @property
    def segment_ids(self) -> Sequence[Sequence[int]]:
        """Tokens of each segment."""
        return [row["segment_ids"] for row in self.rows]

    @property
    def sampled(self) -> Sequence[bool]:
        """Whether the policy sampled each token, of all segments."""
        return [sampled for row in self.rows for sampled in row["sampled"]]

    def facts(self) -> dict[str, object]:
        """Return what the page says of it beside its tokens."""
        first, sampled = self.rows[0], self.sampled
        return {
            "turns": len(first["turns"]),
            "ended": first["ended"],
            "environment_tokens": len(sampled) - sum(sampled),
            "environment_seconds": first["environment_seconds"],
            "segments": len(self.rows),
        }

    def spread(self, values: Sequence[Any]) -> list[Any]:
        """Give each token its value: those of the sampled ones, in order; None for the others."""
        found = iter(values)
        return [next(found) if sampled else None for sampled in self.sampled]

    def marks(self, start: int, stop: int, show: Callable[[IntArray], str]) -> list[Mark]:
        """List what begins at the tokens from ``start`` to ``stop``. ``show``: makes text of tokens."""
        found = [*self._segments(show), *self._turns()]
        order = ("segment", "turn", "author")
        return sorted(
            (mark for mark in found if start <= mark.at < stop), key=lambda mark: (mark.at, order.index(mark.kind))
        )

    def _segments(self, show: Callable[[IntArray], str]) -> list[Mark]:
        starts = itertools.accumulate((len(ids) for ids in self.segment_ids), initial=0)
        marks = []
        for number, (at, row) in enumerate(zip(starts, self.rows, strict=False)):
            context = row["context_ids"]
            if context is None and not number:
                continue
            text = "" if context is None else show(np.array(context, dtype=np.int64))
            if len(text) > LONGEST_CONTEXT:
                text = f"... {text[-LONGEST_CONTEXT:]}"
            marks.append(Mark(at, "segment", row["began"] or "", text or None, len(context or ())))
        return marks

    def _turns(self) -> list[Mark]:
        """Marks of the policy's turns, and of what was written behind each."""
        sampled, turns, authors = self.sampled, self.rows[0]["turns"], self.rows[0]["authors"]
        begins = {number: turn for turn, number in enumerate(itertools.accumulate(turns, initial=0))}
        marks: list[Mark] = []
        said, before = 0, True
        for at, of_policy in enumerate(sampled):
            if of_policy and said in begins:
                marks.append(Mark(at, "turn", str(begins[said] + 1)))
            elif not of_policy and before:
                turn = begins.get(said, 0) - 1
                marks.append(Mark(at, "author", (authors[turn] if 0 <= turn < len(authors) else "") or "environment"))
            said += of_policy
            before = of_policy
        return marks


def read_conversations(path: Path, key: Key) -> dict[int, RecordedConversation]:
    """Read the conversations of a group, by the index of their response. DataError as ``read_columns``."""
    rows = read_columns(path, ("response_index",), COLUMNS, key, by_segment=True).to_pylist()
    found: dict[int, list[Mapping[str, Any]]] = {}
    for row in rows:
        if row["segment_ids"] is not None:
            found.setdefault(row["response_index"], []).append(row)
    return {index: RecordedConversation(of) for index, of in found.items()}
