"""Rows of files whose rows cannot be found again by a place in the file: packed lines, arrays of JSON, tables of text.

They are written once, as lines of JSON, to a temporary file without a name, which ends with the process.
"""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
import sys
import tempfile
from array import array
from collections.abc import Callable, Iterator, Mapping
from typing import IO, cast

from typing_extensions import override

from lpo_ray.errors import DataError
from lpo_ray.tasks.sources.columns import Row, shown
from lpo_ray.tasks.sources.files import kind_of
from lpo_ray.tasks.sources.json_text import parsed_json
from lpo_ray.tasks.sources.rows import JsonlRows, NumberedRows, Rows

OPENERS = cast("Mapping[str, Callable[[str], IO[bytes]]]", {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open})
UNREADABLE = (OSError, EOFError, UnicodeDecodeError, lzma.LZMAError, csv.Error)
csv.field_size_limit(sys.maxsize)
Numbered = Iterator[tuple[int, Row]]
"""rows with what messages call them, counted from 1"""


def text_rows(path: str) -> Rows:
    """Choose how a text file is read: in its place where its lines are its rows, else by a copy."""
    if kind_of(path) == "lines" and not _packed(path):
        return JsonlRows(path)
    if kind_of(path) == "json" and not _packed(path) and _has_lines(path):
        return JsonlRows(path)
    return SpooledRows(path)


class SpooledRows(NumberedRows):
    """Rows that are copied to a temporary file at the pass."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self._copy = cast("IO[bytes]", tempfile.TemporaryFile())  # noqa: SIM115 - it ends with the object

    @override
    def __iter__(self) -> Iterator[Row]:
        self._copy.seek(0)
        self._copy.truncate()
        self._offsets, self._numbers = array("q"), array("q")
        try:
            for number, row in self._read():
                self._offsets.append(self._copy.seek(0, io.SEEK_END))
                self._numbers.append(number)
                self._copy.write(json.dumps(row).encode() + b"\n")
                yield row
        except UNREADABLE as error:
            raise DataError(f"dataset {self._path} cannot be read after row {len(self._numbers)}: {error}") from error

    @override
    def __getitem__(self, index: int) -> Row:
        self._copy.seek(self._offsets[index])
        return json.loads(self._copy.readline())

    def _read(self) -> Numbered:
        path = str(self._path)
        kind = kind_of(path)
        with _opened(path) as file:
            text = io.TextIOWrapper(file, encoding="utf-8-sig", newline="" if kind in ("csv", "tsv") else None)
            if kind in ("csv", "tsv"):
                yield from _table(text, path, "\t" if kind == "tsv" else ",")
            elif kind == "lines":
                yield from _lines(text, path)
            else:
                yield from _json(text, path)


def _table(file: io.TextIOWrapper, path: str, delimiter: str) -> Numbered:
    """Read a table of text whose first line names the columns. An empty field is no value."""
    rows = csv.reader(file, delimiter=delimiter, strict=True)
    names = next(rows, [])
    if len(set(names)) < len(names) or not all(names):
        raise DataError(f"dataset {path} has the columns {shown(names)} in its first line; expected names, each once")
    for number, fields in enumerate((row for row in rows if row), start=1):
        if len(fields) != len(names):
            raise DataError(f"{path}, row {number} has {len(fields)} fields; expected {len(names)}: {shown(names)}")
        yield number, {name: field or None for name, field in zip(names, fields, strict=True)}


def _lines(file: io.TextIOWrapper, path: str) -> Numbered:
    for number, line in enumerate(file, start=1):
        if line.strip():
            yield number, _object(parsed_json(line, f"{path}, row {number}"), f"{path}, row {number}")


def _json(file: io.TextIOWrapper, path: str) -> Numbered:
    """Read an array of objects, an object with one such array in it, or lines of objects."""
    text = file.read()
    if "\n" in text.strip() and _is_object(text.lstrip().partition("\n")[0]):
        yield from _lines(cast("io.TextIOWrapper", io.StringIO(text)), path)
        return
    whole = parsed_json(text, f"dataset {path}")
    lists = [value for value in whole.values() if isinstance(value, list)] if isinstance(whole, dict) else []
    if len(lists) == 1 and lists[0] and all(isinstance(item, dict) for item in lists[0]):
        whole = lists[0]
    rows = [whole] if isinstance(whole, dict) else whole
    if not isinstance(rows, list):
        raise DataError(f"dataset {path} is {shown(whole)}; expected a list of objects")
    for number, row in enumerate(rows, start=1):
        yield number, _object(row, f"{path}, row {number}")


def _object(row: object, where: str) -> Row:
    if not isinstance(row, dict):
        raise DataError(f"{where} is {shown(row)}; expected a JSON object")
    return row


def _is_object(line: str) -> bool:
    try:
        return isinstance(json.loads(line, parse_int=str), dict)  # integers of any length
    except (ValueError, RecursionError):
        return False


def _has_lines(path: str) -> bool:
    """Whether the first line is an object and a second line follows."""
    try:
        with _opened(path) as file:
            first, second = file.readline(), file.readline()
        return bool(second.strip()) and _is_object(first.decode("utf-8-sig"))
    except UNREADABLE:
        return False


def _packed(path: str) -> str:
    return next((suffix for suffix in OPENERS if path.lower().endswith(suffix)), "")


def _opened(path: str) -> IO[bytes]:
    opener = OPENERS.get(_packed(path))
    return open(path, "rb") if opener is None else opener(path)
