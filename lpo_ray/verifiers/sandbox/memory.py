"""A limit on the memory of all processes of a sandbox together, by a control group of the kernel (its first or second
version), where this process may make one.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

_LIMITS = {"cgroup": "memory.limit_in_bytes", "cgroup2": "memory.max"}
"""kind of file system -> the file in a group's folder"""
_NAME = "lpo-ray-sandbox-"
_JOIN = 'echo $$ > "$0" && exec "$@"'
_PATIENCE = 1.0
"""seconds until the last process has left a group"""


@dataclass(frozen=True, slots=True)
class Group:
    """Control group with a limit on memory. ``folder``: in the kernel's file system."""

    folder: Path

    def command(self) -> list[str]:
        """Return what comes before a command that is to run within the group."""
        return ["/bin/sh", "-c", _JOIN, str(self.folder / "cgroup.procs")]

    def remove(self) -> None:
        """Remove the group after its processes were killed; they need a moment to go. May be called again."""
        deadline = time.monotonic() + _PATIENCE
        while self.folder.exists():
            try:
                self.folder.rmdir()
            except OSError:
                if time.monotonic() > deadline:
                    return  # the next process that looks for a parent tries again
                time.sleep(0.002)


def make_group(num_bytes: int) -> Group | None:
    """Make a group that may use so much memory; None where there are none."""
    found = _parent()
    return None if found is None else _make(*found, num_bytes)


def limits_memory() -> bool:
    """Tell whether groups can be made."""
    return _parent() is not None


@cache
def _parent() -> tuple[Path, str] | None:
    """Find this process's group, if it may make groups below it that limit memory, and the file that does."""
    for folder, limit in _candidates():
        _sweep(folder)
        try:
            group = _make(folder, limit, 2**24)
        except OSError:
            continue
        works = subprocess.run([*group.command(), "true"], capture_output=True, check=False).returncode == 0
        group.remove()
        if works:
            return folder, limit
    return None


def _sweep(folder: Path) -> None:
    """Remove what processes left that were killed."""
    for left in folder.glob(f"{_NAME}*"):
        if not Path("/proc", left.name.removeprefix(_NAME).partition("-")[0]).exists():
            with contextlib.suppress(OSError):
                left.rmdir()


def _make(parent: Path, limit: str, num_bytes: int) -> Group:
    group = Group(parent / f"{_NAME}{os.getpid()}-{secrets.token_hex(4)}")
    group.folder.mkdir()
    try:
        (group.folder / limit).write_text(str(num_bytes))
    except OSError:
        group.remove()
        raise
    with contextlib.suppress(OSError):
        (group.folder / "memory.swap.max").write_text("0")
    return group


def _candidates() -> Iterator[tuple[Path, str]]:
    """List the folders of the groups that this process is in and that may limit memory."""
    try:
        groups = [line.split(":", 2) for line in Path("/proc/self/cgroup").read_text().splitlines()]
        mounts = [line.split() for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    except OSError:
        return
    for mount in mounts:
        kind, options = mount[mount.index("-") + 1], mount[-1].split(",")
        for _, controllers, path in groups:
            is_it = not controllers if kind == "cgroup2" else "memory" in controllers.split(",") and "memory" in options
            if kind in _LIMITS and is_it:
                within = os.path.relpath(path, mount[3]) if path.startswith(mount[3]) else "."
                yield Path(mount[4]) / within, _LIMITS[kind]
