"""Conversations in the samples of a step: one row for each segment, and columns that say where its tokens stand.

The columns of tokens (``TOKENS``) have those that were sampled, here as everywhere. All other columns but those of
``SCHEMA`` that are a segment's own are the response's, the same in each of its rows. A file without conversations has
none of these columns, and one row for each response.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lpo_ray.records import Conversation, IntArray, PromptGroup, Segment

COUNTS = ("moved", "redrawn", "dropped")
"""of a Conversation"""
TOKENS = ("token_ids", "behaviour_logprobs", "versions", "token_log_ratio")
_IDS = pa.list_(pa.int64())
SCHEMA: Mapping[str, pa.DataType] = {
    "segment": pa.int64(), "began": pa.string(), "context_ids": _IDS, "segment_ids": _IDS,
    "sampled": pa.list_(pa.bool_()), "turns": _IDS, "authors": pa.list_(pa.string()), "ended": pa.string(),
    "environment_seconds": pa.float64(), **dict.fromkeys(COUNTS, pa.int64()), "output": pa.string(),
}  # fmt: skip
"""segment: its number in the response. began: why. context_ids: what stands before it; null: the prompt. segment_ids:
all its tokens, the environment's too. sampled: which of these the policy sampled. turns: sampled tokens of each turn
of the response. output: of an agent. Null for a single answer, but for the number
"""


def by_segment(
    group: PromptGroup, columns: Mapping[str, Iterable[Any]], decode: Callable[[IntArray], str]
) -> Mapping[str, Sequence[Any]]:
    """Make the columns of a group's segments from those of its responses, [K] each."""
    counts = [len(response.segments) for response in group.responses]
    owner = np.repeat(np.arange(len(counts)), counts)
    made: dict[str, list[Any]] = {}
    for name, values in columns.items():
        rows = list(values)
        made[name] = [rows[k] for k in owner]
        if name in TOKENS:
            made[name] = [part for k, row in enumerate(rows) for part in _parts(row, group.responses[k].segments)]
    own = [_own(response.conversation) for response in group.responses]
    for name in SCHEMA:
        made[name] = [row[name] for rows in own for row in rows]
    for at, ids in enumerate(made["segment_ids"]):
        if ids is not None:
            made["response"][at] = decode(ids)
    return made


def _parts(values: np.ndarray | None, segments: Sequence[Segment]) -> Sequence[np.ndarray | None]:
    if values is None:
        return [None] * len(segments)
    return np.split(values, np.cumsum([segment.num_sampled for segment in segments])[:-1])


def _own(conversation: Conversation | None) -> list[dict[str, Any]]:
    if conversation is None:
        return [{**dict.fromkeys(SCHEMA), "segment": 0}]
    return [
        {
            "segment": number,
            "began": segment.began,
            "context_ids": segment.context_ids,
            "segment_ids": segment.token_ids,
            "sampled": segment.sampled,
            "turns": conversation.turns,
            "authors": conversation.authors,
            "ended": conversation.ended,
            "environment_seconds": conversation.environment_seconds,
            **{name: getattr(conversation, name) for name in COUNTS},
            "output": conversation.output,
        }
        for number, segment in enumerate(conversation.segments)
    ]


def conversation_of(rows: Sequence[Mapping[str, Any]]) -> Conversation | None:
    """Read the conversation from the rows of a response. Its verdict is not in them: their reward is."""
    first = rows[0]
    if first.get("segment_ids") is None:
        return None
    segments = tuple(
        Segment(
            np.array(row["segment_ids"], dtype=np.int64),
            np.array(row["sampled"], dtype=np.bool_),
            None if row["context_ids"] is None else np.array(row["context_ids"], dtype=np.int64),
            row["began"],
        )
        for row in rows
    )
    return Conversation(
        segments, tuple(first["turns"]), tuple(first["authors"]), None, first["ended"], first["environment_seconds"],
        **{name: first.get(name) or 0 for name in COUNTS}, output=first.get("output"),  # not in samples of before
    )  # fmt: skip


def by_response(rows: Iterable[Mapping[str, Any]]) -> list[list[Mapping[str, Any]]]:
    """Gather the rows of each response of a group, in the order of its segments."""
    return [list(found) for _, found in itertools.groupby(rows, lambda row: row["response_index"])]


def whole_responses(table: pa.Table) -> pa.Table:
    """Return the table with one row for each response: the first of its rows, whose lists of ``TOKENS`` are those of
    all. A table without the column ``segment`` is that already.
    """
    if "segment" not in table.column_names:
        return table
    starts = np.flatnonzero(table["segment"].to_numpy() == 0)
    columns = [
        _runs_joined(table[name], starts) if name in TOKENS and pa.types.is_list(table[name].type)
        else table[name].take(starts)
        for name in table.column_names
    ]  # fmt: skip
    return pa.table(dict(zip(table.column_names, columns, strict=True)))


def _runs_joined(column: pa.ChunkedArray, starts: IntArray) -> pa.Array:
    """Join the lists from each of ``starts`` to the next; null where the first is."""
    lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy()  # type: ignore[attr-defined]
    offsets = np.cumsum([0, *lengths])[[*starts, len(lengths)]]
    values = pc.list_flatten(column)  # type: ignore[attr-defined]
    values = values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values
    mask = pc.is_null(column).to_numpy()[starts]  # type: ignore[attr-defined]
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), values, column.type, mask=pa.array(mask))
