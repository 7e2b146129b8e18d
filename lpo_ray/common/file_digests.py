"""Digests of files, computed once as long as a file's size and time of change stay."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from blake3 import blake3


@dataclass(frozen=True, slots=True)
class FileDigest:
    """Content of a file."""

    size: int
    """bytes"""
    changed: int
    """when it was written last, in unix nanoseconds"""
    digest: str
    """BLAKE3, in hexadecimal"""


def files_of(path: Path) -> dict[str, Path]:
    """List the files beneath a folder by their name in it, sorted; a file alone is named "". Left out is what does not
    decide what a model or data set is: ``*.md`` and what is hidden, such as a hub's ``.cache`` or ``.git``.
    """
    if not path.is_dir():
        return {"": path} if path.is_file() else {}
    names = {str(file.relative_to(path)): file for file in sorted(path.rglob("*")) if file.is_file()}
    return {name: file for name, file in names.items() if file.suffix != ".md" and not _is_hidden(name)}


def _is_hidden(name: str) -> bool:
    return any(part.startswith(".") for part in Path(name).parts)


def digests(files: Mapping[str, Path], known: Mapping[str, FileDigest]) -> Iterator[tuple[str, FileDigest]]:
    """Yield each file's name and digest, in order. One whose size and time are as ``known`` is not read again."""
    for name, path in files.items():
        status, before = path.stat(), known.get(name)
        if before is not None and (before.size, before.changed) == (status.st_size, status.st_mtime_ns):
            yield name, before
        else:
            digest = blake3(max_threads=blake3.AUTO).update_mmap(path).hexdigest()
            yield name, FileDigest(status.st_size, status.st_mtime_ns, digest)
