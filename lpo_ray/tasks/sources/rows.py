"""Files of rows: from end to end once, then any row by its number, with nothing in memory but where each row stands."""

from __future__ import annotations

import codecs
import os
from array import array
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, Protocol

from typing_extensions import override

from lpo_ray.errors import DataError
from lpo_ray.tasks.sources.columns import Row, shown
from lpo_ray.tasks.sources.files import files_of, kind_of
from lpo_ray.tasks.sources.json_text import parsed_json


class Rows(Protocol):
    """Rows of a data set, counted from 0. Errors are DataError and name the row, counted from 1 as people do."""

    def __iter__(self) -> Iterator[Row]:
        """Yield all rows in order. To be gone through once before any is asked for; it may be left early."""
        ...

    def __getitem__(self, index: int) -> Row:
        """Read row ``index``, which the pass has come by."""
        ...

    def number(self, index: int) -> int:
        """Return what messages call row ``index``; for files of lines, its line."""
        ...

    def where(self, index: int) -> str:
        """Return file and row of row ``index``, as messages begin."""
        ...


def open_rows(path: str) -> Rows:
    """Open the files that ``path`` names (see ``files.files_of``), or a Hugging Face data set. DataError when that
    cannot be opened.
    """
    files = files_of(path)
    if files is None:
        from lpo_ray.tasks.sources.tables import HubRows  # pyarrow takes a while to import

        return HubRows(path)
    parts = [_open_file(file) for file in files]
    return parts[0] if len(parts) == 1 else JoinedRows(parts)


def _open_file(path: str) -> Rows:
    if kind_of(path) == "parquet":
        from lpo_ray.tasks.sources.tables import ParquetRows

        return ParquetRows(path)
    from lpo_ray.tasks.sources.text_rows import text_rows

    return text_rows(path)


class JoinedRows(Rows):
    """Rows of several files, one after the other."""

    def __init__(self, parts: Sequence[Rows]) -> None:
        self._parts, self._starts = parts, [0]

    @override
    def __iter__(self) -> Iterator[Row]:
        self._starts = [0]
        for part in self._parts:
            self._starts.append(self._starts[-1])
            for row in part:
                self._starts[-1] += 1
                yield row

    @override
    def __getitem__(self, index: int) -> Row:
        part, place = self._place(index)
        return part[place]

    @override
    def number(self, index: int) -> int:
        """Return the number of a row among those of all files."""
        return index + 1

    @override
    def where(self, index: int) -> str:
        part, place = self._place(index)
        return part.where(place)

    def _place(self, index: int) -> tuple[Rows, int]:
        """Find a row's file, and its place there."""
        number = min(bisect_right(self._starts, index), len(self._parts)) - 1
        return self._parts[number], index - self._starts[number]


class NumberedRows(Rows):
    """Rows of one file of text, each known by its place and its number there. In memory: 16 bytes a row."""

    def __init__(self, path: str) -> None:
        self._path = Path(path)
        self._offsets, self._numbers = array("q"), array("q")

    @override
    def number(self, index: int) -> int:
        return self._numbers[index]

    @override
    def where(self, index: int) -> str:
        return f"{self._path}, row {self.number(index)}"


class JsonlRows(NumberedRows):
    """One JSON object a line, in UTF-8; empty lines are passed over."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self._stamp = (0, 0)

    @override
    def __iter__(self) -> Iterator[Row]:
        """Yield all rows in order, and note where each begins."""
        self._offsets, self._numbers = array("q"), array("q")
        offset = 0
        with self._open() as file:
            self._stamp = _stamp(file)
            for number, line in enumerate(file, start=1):
                if line.strip():
                    self._offsets.append(offset)
                    self._numbers.append(number)
                    yield self._parsed(line, number)
                offset += len(line)

    @override
    def __getitem__(self, index: int) -> Row:
        """Read row ``index``. DataError when the file is another than it was."""
        with self._open() as file:
            if _stamp(file) != self._stamp:
                raise DataError(
                    f"dataset {self._path} was changed after it was read; expected it to stay as it is while it is in "
                    "use: start again, so that the order of its rows is that of one file"
                )
            file.seek(self._offsets[index])
            return self._parsed(file.readline(), self._numbers[index])

    def _open(self) -> BinaryIO:
        try:
            return self._path.open("rb")
        except OSError as error:
            raise DataError(f"dataset {self._path} cannot be read: {error}; expected one JSON object a line") from error

    def _parsed(self, line: bytes, number: int) -> Row:
        where = f"{self._path}, row {number}"
        if number == 1:
            line = line.removeprefix(codecs.BOM_UTF8)
        try:
            text = line.decode("utf-8")
        except UnicodeDecodeError as error:
            raise DataError(f"{where} is not UTF-8 ({error.reason}): {shown(line)}") from error
        row = parsed_json(text, where)
        if not isinstance(row, dict):
            raise DataError(f"{where} is {shown(text.strip())}; expected a JSON object")
        return row


def _stamp(file: BinaryIO) -> tuple[int, int]:
    status = os.fstat(file.fileno())
    return status.st_size, status.st_mtime_ns
