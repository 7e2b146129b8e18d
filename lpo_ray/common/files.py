"""Whole files: a reader sees the old content or the new, never a part of it, also after a power cut, and no secret.

What is written here is on disk when the function returns: the file's content first, then its name in the folder. So a
record that is written afterwards never speaks of something that a power cut can still take away.
"""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

from lpo_ray.common.redaction import redact

PARTIAL = ".partial-"
"""prefix of what is being written, or removed: nobody reads it, and a later start removes it"""
FULL = (errno.ENOSPC, errno.EDQUOT)


class DiskFull(OSError):
    """A write for which there is no room; names the path and the room that its disk has."""


def write_json(path: Path, value: Mapping[str, object], *, durable: bool = True) -> None:
    """Replace the file by ``value`` as JSON, with null for NaN and Inf."""
    write_text(path, json.dumps(finite(value), indent=2) + "\n", durable=durable)


def write_text(path: Path, text: str, *, durable: bool = True) -> None:
    """Replace the file's content at once. Folders of runs are passed on, so the value of a secret, which the last words
    of a process may contain, becomes its name. ``durable=False``: for what is written every second and can be lost.
    """
    with replacing(path, durable=durable) as partial:
        partial.write_text(redact(text), encoding="utf-8", errors="replace")


def append_text(path: Path, text: str) -> None:
    """Add ``text`` to the end of the file, which is made when there is none."""
    is_new = not path.exists()
    with explained(path), path.open("a", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    if is_new:
        sync(path.parent)


@contextlib.contextmanager
def replacing(path: Path, *, durable: bool = True) -> Iterator[Path]:
    """Give a path to write to; what is there when the block ends takes the place of ``path``, at once."""
    partial = path.with_name(f"{PARTIAL}{path.name}")
    try:
        with explained(path):
            yield partial
            if durable:
                sync(partial)
            os.replace(partial, path)
            if durable:
                sync(path.parent)
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise


def make_folder(folder: Path) -> None:
    """Make a folder with its parents, each durably; nothing happens when it is there."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for path in reversed(missing):
        sync(path.parent)


def publish_folder(partial: Path, final: Path) -> None:
    """Give a folder that is complete its name. All files in it are on disk before; raises OSError when ``final`` is
    a folder with something in it.
    """
    sync_tree(partial)
    partial.rename(final)
    sync(final.parent)


def remove_folder(folder: Path) -> None:
    """Remove a folder. It loses its name first, so that nobody takes the rest of a removal for the whole."""
    leaving = folder.with_name(f"{PARTIAL}removed-{folder.name}")
    shutil.rmtree(leaving, ignore_errors=True)
    folder.rename(leaving)
    shutil.rmtree(leaving, ignore_errors=True)


def sync_tree(folder: Path) -> None:
    """Put every file beneath ``folder`` on disk, then every folder, the innermost first."""
    for root, _, names in os.walk(folder, topdown=False):
        for name in names:
            sync(Path(root, name))
        sync(Path(root))


def sync(path: Path) -> None:
    """Put a file's content, or the names in a folder, on disk. Some network file systems know it for files only."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP) or not path.is_dir():
            raise
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def explained(path: Path) -> Iterator[None]:
    """Raise DiskFull, which names ``path`` and the room there is, where the block finds no room to write."""
    try:
        yield
    except DiskFull:
        raise
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise disk_full(path, error.errno) from error


def disk_full(path: Path, number: int = errno.ENOSPC) -> DiskFull:
    """Make the error of a write to ``path`` for which there was no room."""
    return DiskFull(number, f"{os.strerror(number)} ({room(path)})", str(path))


def room(path: Path) -> str:
    """Say how much room the disk of ``path`` has."""
    there = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
    usage = shutil.disk_usage(there)
    return f"{_size(usage.free)} of {_size(usage.total)} are free there"


def finite(value: object) -> object:
    """Return ``value`` with None for NaN and Inf, at any depth: JSON has neither."""
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:.1f} GiB" if num_bytes >= 2**30 else f"{num_bytes / 2**20:.1f} MiB"
