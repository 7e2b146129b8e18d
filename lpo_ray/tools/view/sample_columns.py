"""Columns of a samples file as arrays, of all its groups or of one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from lpo_ray.errors import DataError
from lpo_ray.records import DoubleArray, IntArray
from lpo_ray.telemetry.segment_columns import whole_responses

Key = tuple[str, int]
"""prompt_id and attempt: a group within its step"""


def stamp(path: Path) -> str:
    """Return a value that changes when the file does. DataError when it is gone."""
    try:
        found = path.stat()
    except OSError as error:
        raise DataError(f"{path.name} cannot be read: {error.strerror}; expected a step with samples") from error
    return f"{found.st_mtime_ns}.{found.st_size}"


def read_columns(
    path: Path, columns: Sequence[str], optional: Sequence[str], key: Key | None = None, *, by_segment: bool = False
) -> pa.Table:
    """Read these columns, of one group or of all; nulls for the optional ones that a file lacks. A row is a response,
    or ``by_segment`` a segment of one. DataError when the file is half written or none of ours.
    """
    try:
        with pq.ParquetFile(path) as file:
            names = dict.fromkeys((*columns, *optional, "segment"))
            present = [name for name in names if name in file.schema_arrow.names]
            parts = [_part(file, number, present, key) for number in range(file.num_row_groups)]
        table = pa.concat_tables(parts)
        table = table if by_segment else whole_responses(table)
        missing = [name for name in columns if name not in present]
        if missing or not len(table):
            lacks = f"has no {', '.join(missing)}" if missing else "has no such rows"
            raise DataError(f"{path.name} {lacks}; expected samples as lpo-ray train writes them")
    except (OSError, pa.ArrowException) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(f"{path.name} cannot be read: {reason}; expected a whole parquet file") from error
    for name in optional:
        if name not in present:
            table = table.append_column(name, pa.nulls(len(table)))
    return table


def floats(table: pa.Table, name: str) -> DoubleArray:
    """Return [N] values of a column; nan where there is none. DataError when they are no numbers."""
    try:
        return table[name].cast(pa.float64()).fill_null(math.nan).to_numpy()
    except pa.ArrowException as error:
        raise DataError(f"column {name} is {table[name].type}; expected numbers") from error


def softmax(logits: DoubleArray) -> DoubleArray:
    """Return [K] probabilities; nan for all where one is nan."""
    with np.errstate(invalid="ignore"):
        weights = np.exp(logits - logits.max())
        return weights / weights.sum()


def oldest_versions(versions: pa.ChunkedArray) -> tuple[IntArray, IntArray]:
    """Return [N] oldest version of each row's tokens (0 without tokens), and [N] their number."""
    try:
        lengths = pc.fill_null(pc.list_value_length(versions), 0).to_numpy()  # type: ignore[attr-defined]
        values = pc.list_flatten(versions).cast(pa.int64()).to_numpy()  # type: ignore[attr-defined]
    except pa.ArrowException as error:
        raise DataError(f"column versions is {versions.type}; expected lists of numbers") from error
    oldest = np.zeros(len(lengths), dtype=np.int64)
    some = lengths > 0
    if some.any():
        oldest[some] = np.minimum.reduceat(values, (np.cumsum(lengths) - lengths)[some])
    return oldest, lengths


def _part(file: pq.ParquetFile, number: int, columns: Sequence[str], key: Key | None) -> pa.Table:
    if key is None:
        return file.read_row_group(number, columns=list(columns))
    names = file.read_row_group(number, columns=["prompt_id", "attempt"])
    mask = pc.and_(pc.equal(names["prompt_id"], key[0]), pc.equal(names["attempt"], key[1]))  # type: ignore[attr-defined]
    if not pc.any(mask).as_py():  # type: ignore[attr-defined]
        return file.schema_arrow.empty_table().select(list(columns))
    return file.read_row_group(number, columns=list(columns)).filter(mask)
