"""Rows of Arrow tables: parquet files and Hugging Face data sets. Values are as stored: no image is decoded."""

from __future__ import annotations

from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from typing_extensions import override

from lpo_ray.errors import DataError
from lpo_ray.tasks.sources.columns import Row, shown
from lpo_ray.tasks.sources.files import EXPECTED
from lpo_ray.tasks.sources.rows import Rows

BATCH = 1024
"""rows that are made Python values at once"""
KEPT_BYTES = 256 * 2**20
"""size of row groups as Arrow has them: a file of this size is read from disk once. One row group is always kept"""
SAFE_DATASETS = 4
"""major version of the datasets library from which on it runs no code of a data set"""


class ParquetRows(Rows):
    """A parquet file. In memory: the row groups that were used last, up to KEPT_BYTES."""

    def __init__(self, path: str) -> None:
        self._path = path
        try:
            self._file = pq.ParquetFile(path)
            names = self._file.schema_arrow.names
        except (OSError, pa.ArrowException) as error:
            raise DataError(f"dataset {path} cannot be read as parquet: {error}") from error
        if len(set(names)) < len(names):
            raise DataError(f"dataset {path} has the columns {shown(names)}; expected names, each once")
        metadata = self._file.metadata
        sizes = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
        self._starts = list(accumulate(sizes, initial=0))
        self._kept: OrderedDict[int, pa.Table] = OrderedDict()

    @override
    def __iter__(self) -> Iterator[Row]:
        first = 0
        try:
            for batch in self._file.iter_batches(batch_size=BATCH):
                yield from rows_of(batch, self._path, first)
                first += batch.num_rows
        except (OSError, pa.ArrowException) as error:
            raise DataError(f"dataset {self._path} cannot be read after row {first}: {error}") from error

    @override
    def __getitem__(self, index: int) -> Row:
        group = bisect_right(self._starts, index) - 1
        return rows_of(self._group(group).slice(index - self._starts[group], 1), self._path, index)[0]

    @override
    def number(self, index: int) -> int:
        return index + 1

    @override
    def where(self, index: int) -> str:
        return f"{self._path}, row {index + 1}"

    def _group(self, group: int) -> pa.Table:
        if group not in self._kept:
            try:
                table = self._file.read_row_group(group)
            except (OSError, pa.ArrowException) as error:
                raise DataError(f"dataset {self._path}, row group {group} cannot be read: {error}") from error
            self._kept[group] = table
            while len(self._kept) > 1 and sum(kept.nbytes for kept in self._kept.values()) > KEPT_BYTES:
                self._kept.popitem(last=False)
        self._kept.move_to_end(group)
        return self._kept[group]


class HubRows(Rows):
    """A Hugging Face data set: a folder that ``save_to_disk`` wrote, or a name on the hub. In memory: nothing, the
    library maps its files.

    ``NAME#SPLIT`` and ``NAME#CONFIG/SPLIT`` say which part of it; without, it is the split "train".
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._data = _loaded(path).with_format("arrow")

    @override
    def __iter__(self) -> Iterator[Row]:
        for first in range(0, len(self._data), BATCH):
            yield from rows_of(self._data[first : first + BATCH], self._path, first)

    @override
    def __getitem__(self, index: int) -> Row:
        return rows_of(self._data[index : index + 1], self._path, index)[0]

    @override
    def number(self, index: int) -> int:
        return index + 1

    @override
    def where(self, index: int) -> str:
        return f"{self._path}, row {index + 1}"


def rows_of(table: pa.Table | pa.RecordBatch, path: str, first: int) -> list[Row]:
    """Return a table's rows, the first of which is row ``first`` of the file. DataError when one cannot be read."""
    try:
        return table.to_pylist()
    except (ValueError, OverflowError) as error:  # text that is not UTF-8, dates that Python has not
        if table.num_rows > 1:
            return [
                row for index in range(table.num_rows) for row in rows_of(table.slice(index, 1), path, first + index)
            ]
        raise DataError(f"{path}, row {first + 1} cannot be read: {_column_at_fault(table)}{error}") from error


def _column_at_fault(table: pa.Table | pa.RecordBatch) -> str:
    for name in table.schema.names:
        try:
            table.column(name).to_pylist()
        except (ValueError, OverflowError):
            return f"{name}: "
    return ""


def _loaded(path: str) -> Any:  # noqa: ANN401 - datasets is not a package we need
    try:
        import datasets  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise _not_installed(path) from error
    if getattr(datasets, "load_dataset", None) is None:  # a folder or file of the working folder has that name
        if getattr(datasets, "__file__", None) is None:
            raise _not_installed(path)
        raise DataError(
            f"task.path is {path!r}, and {datasets.__file__} hides the datasets library; expected another name for "
            "that file, or another working folder"
        )
    if int(datasets.__version__.partition(".")[0]) < SAFE_DATASETS:
        raise DataError(
            f"task.path is {path!r}, and datasets {datasets.__version__} would run a script that a data set brings "
            f"along; expected version {SAFE_DATASETS} or later: pip install --upgrade datasets"
        )
    name, _, part = path.partition("#")
    config, _, split = part.rpartition("/")
    try:
        if Path(name).is_dir():
            return _split_of(datasets.load_from_disk(name), split, path)
        arguments = (name, config) if config else (name,)
        return datasets.load_dataset(*arguments, split=split or "train")
    except (OSError, ValueError, ConnectionError) as error:
        raise DataError(f"dataset {path!r} could not be loaded: {error}") from error


def _not_installed(path: str) -> DataError:
    return DataError(
        f"dataset {path!r} is neither a file nor a folder here, and what is on the hub needs `pip install datasets`; "
        f"expected {EXPECTED}"
    )


def _split_of(loaded: Any, split: str, path: str) -> Any:  # noqa: ANN401 - as above
    """Choose a data set out of a folder that may hold several."""
    if not isinstance(loaded, dict):
        if split:
            raise DataError(f"dataset {path!r} has no splits; expected {path.partition('#')[0]!r}")
        return loaded
    if (wanted := split or "train") not in loaded:
        names = ", ".join(f"#{name}" for name in loaded)
        raise DataError(f"dataset {path!r} has no split {wanted!r}; expected its name with one of {names}")
    return loaded[wanted]
