"""Every kind of file that people have, in one place, and what a folder or a pattern of them is."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lpo_ray.errors import DataError
from lpo_ray.tasks.sources.files import files_of
from lpo_ray.tasks.sources.rows import open_rows

ROWS = [{"problem": f'What, "is" {i}\n+3?', "answer": str(i + 3)} for i in range(5)]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS)
ARRAY = json.dumps(ROWS, indent=1)
CSV = "problem,answer\r\n" + "".join(f'"What, ""is"" {i}\n+3?",{i + 3}\r\n' for i in range(5))
TSV = CSV.replace('?",', '?"\t').replace("problem,", "problem\t")


def packed(content: bytes) -> bytes:
    """The same at every call: gzip's header has the time, and names of tests their content."""
    return gzip.compress(content, mtime=0)


def write(path: Path, content: str | bytes) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


def write_shards(folder: Path, *names: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(names):
        pq.write_table(pa.Table.from_pylist(ROWS[2 * number : 2 * number + 2]), folder / name)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("lines.jsonl", LINES),
        ("lines.JSONL", LINES),
        ("lines.ndjson", LINES),
        ("lines.json", LINES),
        ("crlf.jsonl", LINES.replace("\n", "\r\n")),
        ("bom.json", "\ufeff" + ARRAY),
        ("array.json", ARRAY),
        ("array.Json", json.dumps(ROWS)),
        ("object.json", json.dumps({"version": 1, "data": ROWS})),
        ("lines.jsonl.gz", packed(LINES.encode())),
        ("lines.jsonl.BZ2", bz2.compress(LINES.encode())),
        ("lines.jsonl.xz", lzma.compress(LINES.encode())),
        ("array.json.gz", packed(ARRAY.encode())),
        ("lines.json.gz", packed(LINES.encode())),
        ("table.csv", CSV),
        ("table.CSV.gz", packed(CSV.encode())),
        ("bom.csv", "\ufeff" + CSV),
        ("table.tsv", TSV),
        ("a, comma.jsonl", LINES),
    ],
)
def test_every_kind_of_file_is_read_by_pass_and_by_place(name: str, content: str | bytes, tmp_path: Path) -> None:
    rows = open_rows(write(tmp_path / name, content))
    assert list(rows) == ROWS
    assert [rows[place] for place in (4, 0, 2)] == [ROWS[4], ROWS[0], ROWS[2]]
    assert rows.number(1) == 2
    assert rows.where(1) == f"{tmp_path / name}, row 2"
    assert list(rows) == ROWS, "a second pass is the same"


def test_an_empty_field_of_a_table_is_no_value(tmp_path: Path) -> None:
    assert list(open_rows(write(tmp_path / "t.csv", "a,b\n1,\n"))) == [{"a": "1", "b": None}]


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.json", "[1]", "row 1 is 1; expected a JSON object"),
        ("a.json", '"text"', "expected a list of objects"),
        ("a.json", "[{", "is not JSON"),
        ("a.jsonl.gz", LINES, "cannot be read after row 0"),
        ("a.jsonl.gz", packed(LINES.encode())[:-20], "cannot be read after row"),
        ("a.jsonl.gz", packed(LINES.encode() + b"{half\n"), "row 6 is not JSON"),
        ("a.json", '[{"a": 1, "a": 2}]', "has the name 'a' twice"),
        ("a.json", '{"a": 1}\n{"a": 1, "a": 2}', "row 2 has the name 'a' twice"),
        ("a.jsonl.gz", packed(b'{"a": 1, "a": 2}'), "row 1 has the name 'a' twice"),
        ("a.json", '{"a": ' + "1" * 5000 + "}\n{}", "row 1 has an integer of more than 4300 digits"),
        ("a.csv", "a,a\n1,2\n", "expected names, each once"),
        ("a.csv", "a,\n1,2\n", "expected names, each once"),
        ("a.csv", "a,b\n1,2\n3\n", "row 2 has 1 fields; expected 2"),
        ("a.csv", 'a,b\n"1,2\n', "cannot be read after row 0"),
        ("a.csv", b"a,b\n\xff,2\n", "cannot be read after row 0"),
        ("a.txt", "x", "whose suffix says nothing"),
        ("a.parquet.gz", "x", "whose suffix says nothing"),
    ],
)
def test_what_cannot_be_read_names_file_and_row(name: str, content: str | bytes, expected: str, tmp_path: Path) -> None:
    path = write(tmp_path / name, content)
    with pytest.raises(DataError, match=expected) as caught:
        list(open_rows(path))
    assert path in str(caught.value)


def test_a_folder_of_shards_a_pattern_and_a_list_are_their_files_in_order(tmp_path: Path) -> None:
    shards = tmp_path / "shards"
    write_shards(shards, "train-00000-of-00003.parquet", "train-00001-of-00003.parquet", "train-00002-of-00003.parquet")
    write(shards / "README.md", "x")
    write(shards / "dataset_infos.json", "{}")
    write(shards / ".cache" / "train-x.parquet", "x")
    files = sorted(map(str, shards.glob("*.parquet")))
    for path in (str(shards), f"{shards}#train", f"{shards}/*.parquet", f"{tmp_path}/**/tr*.parquet", ", ".join(files)):
        rows = open_rows(path)
        assert list(rows) == ROWS
        assert [rows[place] for place in (4, 1)] == [ROWS[4], ROWS[1]]
        assert rows.where(3) == f"{files[1]}, row 2"
        assert rows.number(3) == 4


def test_files_of_several_kinds_follow_each_other_and_may_be_empty(tmp_path: Path) -> None:
    paths = [
        write(tmp_path / "a.jsonl", ""),
        write(tmp_path / "b.csv", CSV),
        write(tmp_path / "c.jsonl", "\n"),
        write(tmp_path / "d.json", ARRAY),
    ]
    rows = open_rows(",".join(paths))
    assert list(rows) == ROWS + ROWS
    assert (rows[5], rows.where(5)) == (ROWS[0], f"{paths[3]}, row 1")


def test_a_pass_that_is_left_early_knows_what_it_has_read(tmp_path: Path) -> None:
    paths = [write(tmp_path / "a.jsonl", LINES), write(tmp_path / "b.csv", CSV)]
    rows = open_rows(",".join(paths))
    for number, row in enumerate(rows):
        assert rows[number] == row
        if number == 6:
            break
    assert rows.where(6) == f"{paths[1]}, row 2"


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("nothing.jsonl", "'nothing.jsonl', which does not exist; expected a file (.parquet, .jsonl"),
        ("~/nothing", "'~/nothing', which does not exist"),
        ("./nothing", "'./nothing', which does not exist"),
        ("no/*.parquet", "'no/*.parquet', which no file matches"),
        ("a.jsonl,b.jsonl", "'b.jsonl', which does not exist"),
        ("a.jsonl,a.jsonl", "names a.jsonl twice"),
        ("a.jsonl,*.jsonl", "names a.jsonl twice"),
        ("empty", "dataset empty is a folder without data"),
        ("mixed", "has files of several splits; expected one of them, mixed#test, mixed#train"),
        ("mixed#dev", "dataset mixed#dev: the folder has no such split; it has mixed#test, mixed#train"),
        ("s3://bucket/x.jsonl", "'s3://bucket/x.jsonl', an address; expected a file here"),
        ("file:///x.jsonl", "an address"),
    ],
)
def test_files_that_are_not_there_or_not_clear_are_named(
    path: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    write(tmp_path / "a.jsonl", LINES)
    write_shards(tmp_path / "mixed" / "data", "train-0.parquet", "test-0.parquet")
    with pytest.raises(DataError) as caught:
        files_of(path)
    assert expected in str(caught.value)
    assert files_of("mixed#train") == ["mixed/data/train-0.parquet"]


@pytest.mark.parametrize("path", ["openai/gsm8k", "gsm8k", "openai/gsm8k#main/train", "org/name.v2#test"])
def test_names_on_the_hub_are_for_the_library(path: str) -> None:
    assert files_of(path) is None


def test_a_folder_that_the_library_saved_is_for_it(tmp_path: Path) -> None:
    write(tmp_path / "saved" / "state.json", "{}")
    assert files_of(f"{tmp_path}/saved#train") is None


@pytest.mark.parametrize(
    ("hidden_by", "expected"),
    [({}, "needs `pip install datasets`"), ({"__file__": "/work/datasets.py"}, "/work/datasets.py hides the datasets")],
)
def test_a_folder_or_file_named_datasets_does_not_pass_for_the_library(
    hidden_by: Mapping[str, str], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = ModuleType("datasets")
    vars(module).update(hidden_by)
    monkeypatch.setitem(sys.modules, "datasets", module)
    with pytest.raises(DataError, match=expected):
        open_rows("openai/gsm8k")
