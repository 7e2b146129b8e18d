"""Which files a data set is: one, several, those that match a pattern, or the shards of a folder."""

from __future__ import annotations

import glob
import re
from pathlib import Path

from lpo_ray.errors import DataError

KINDS = {
    ".parquet": "parquet", ".jsonl": "lines", ".ndjson": "lines", ".csv": "csv", ".tsv": "tsv", ".json": "json",
}  # fmt: skip
"""suffix in any case -> kind, in the order in which a folder is searched"""
PACKED = (".gz", ".bz2", ".xz")
"""suffixes after those of text files"""
EXPECTED = f"a file ({', '.join(KINDS)}, text also with {', '.join(PACKED)})"
SAVED = ("dataset_info.json", "dataset_dict.json", "state.json")
"""files of a folder that ``save_to_disk`` of the datasets library wrote"""
SPLITS = {"train": "train", "test": "test", "val": "validation", "valid": "validation", "validation": "validation",
          "dev": "validation", "eval": "test", "heldout": "test"}  # fmt: skip


def kind_of(path: str) -> str | None:
    """Return the kind of a file by its name; None when it has no suffix of ours."""
    name = path.lower()
    packed = next((suffix for suffix in PACKED if name.endswith(suffix)), "")
    kind = KINDS.get(Path(name.removesuffix(packed)).suffix)
    return None if packed and kind == "parquet" else kind


def files_of(path: str) -> list[str] | None:
    """List the files that ``path`` names, separated by commas: files, patterns such as ``data/*.parquet``, folders, and
    ``FOLDER#SPLIT``. None when it is for the datasets library: a folder that it saved, or a name on the hub. Raises
    DataError for files that are not there, or that cannot be told apart.
    """
    if Path(path).is_file():
        return [_known(path, path)]
    if _is_saved(path):
        return None
    parts = [part.strip() for part in path.split(",")]
    if len(parts) == 1 and _is_hub_name(path):
        return None
    found = [file for part in parts for file in _files_of_part(part, path)]
    if twice := next((file for file in found if found.count(file) > 1), None):
        raise DataError(f"dataset {path} names {twice} twice; expected each file once")
    return found


def _files_of_part(part: str, path: str) -> list[str]:
    if re.match(r"[a-z0-9]+://", part):
        raise DataError(f"dataset {path} names {part!r}, an address; expected a file here: copy it first")
    folder, _, split = part.partition("#")
    if Path(part).is_file():
        return [_known(part, path)]
    if Path(folder).is_dir():
        return _shards(folder, split)
    if glob.has_magic(part):
        found = sorted(file for file in glob.glob(part, recursive=True) if Path(file).is_file())
        if not found:
            raise DataError(f"dataset {path} names {part!r}, which no file matches; expected a pattern of files")
        return [_known(file, path) for file in found]
    raise DataError(
        f"dataset {path} names {part!r}, which does not exist; expected {EXPECTED}, a folder of them, or a pattern"
    )


def _shards(folder: str, split: str) -> list[str]:
    """List the files of the first kind that a folder has, all of one split."""
    by_kind: dict[str, list[Path]] = {}
    for file in sorted(Path(folder).rglob("*")):
        kind = kind_of(file.name)
        if kind and file.is_file() and not any(name.startswith(".") for name in file.relative_to(folder).parts):
            by_kind.setdefault(kind, []).append(file)
    files = next((by_kind[kind] for kind in KINDS.values() if kind in by_kind), [])
    splits: dict[str, list[str]] = {}
    for file in files:
        splits.setdefault(_split_of(file.relative_to(folder)), []).append(str(file))
    if not splits:
        raise DataError(f"dataset {folder} is a folder without data; expected in it {EXPECTED}")
    if split:
        if wanted := splits.get(SPLITS.get(split, split)):
            return wanted
        raise DataError(f"dataset {folder}#{split}: the folder has no such split; it has {_named(folder, splits)}")
    if len(splits) > 1:
        raise DataError(
            f"dataset {folder} has files of several splits; expected one of them, {_named(folder, splits)}, or a "
            "pattern of files"
        )
    return next(iter(splits.values()))


def _split_of(file: Path) -> str:
    """Read the split out of a file's name, else out of its folders'; empty when none says."""
    for part in reversed(file.parts):
        for word in re.split(r"[^a-z]+", part.lower()):
            if word in SPLITS:
                return SPLITS[word]
    return ""


def _named(folder: str, splits: dict[str, list[str]]) -> str:
    return ", ".join(f"{folder}#{name}" if name else f"{files[0]} and its like" for name, files in splits.items())


def _is_saved(path: str) -> bool:
    folder = Path(path.partition("#")[0])
    return any((folder / name).is_file() for name in SAVED)


def _is_hub_name(path: str) -> bool:
    """Whether a name that is no path here looks like one on the hub: NAME or OWNER/NAME, no file's suffix."""
    name = path.partition("#")[0]
    is_name = re.fullmatch(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?", name) is not None
    return is_name and kind_of(name) is None and not Path(name).exists()


def _known(file: str, path: str) -> str:
    if kind_of(file) is None:
        raise DataError(f"dataset {path} names {file}, whose suffix says nothing; expected {EXPECTED}")
    return file
