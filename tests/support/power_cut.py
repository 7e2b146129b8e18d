"""What a kill or a power cut leaves of a folder, at every moment at which the program writes.

Files and folders are looked at when Python syncs, names or removes something, and when a database commits. What a kill
leaves is what is there. What a power cut leaves is what was synced: the content that a file had at its last fsync, and
the names that a folder had at its own. SQLite is trusted: of the ledger everything is left, of the groups beside it
what was there when they were last synced.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lpo_ray.common.database import Database
from lpo_ray.training import group_store

CALLS = ("fsync", "replace", "rename", "unlink", "rmdir", "mkdir", "truncate")


class Moments:
    """Copies of ``root`` at every moment, made while ``watched``."""

    def __init__(self, root: Path, copies: Path) -> None:
        self._root, self._copies = root, copies
        self._contents: dict[int, bytes] = {}
        self._names: dict[int, dict[str, int]] = {}
        self._folders: set[int] = set()
        self._groups: dict[str, dict[str, bytes]] = {}
        """run -> what the files of its groups had when they were last synced"""
        self._held: dict[int, int] = {}
        """inode -> a descriptor of it, so that no later file gets the number of one that was removed"""
        self._lock = threading.RLock()
        self._looking: int | None = None
        """thread that copies: its own calls are no moments, those of other threads wait for it"""
        self.names: list[str] = []
        """what was about to happen, in order"""

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Look on while the block runs."""
        with pytest.MonkeyPatch.context() as patch:
            for name in CALLS:
                patch.setattr(os, name, self._watching(name, getattr(os, name)))
            execute = Database.execute

            def watching(db: Database, sql: str, parameters: object = ()) -> sqlite3.Cursor:
                with self._lock:  # no copy is made in the middle of it
                    if sql == "COMMIT":
                        self._moment(f"commit of {db.path.name}")
                    found = execute(db, sql, parameters)  # pyright: ignore
                    if sql == "COMMIT" and db.path.name == group_store.FILE:
                        files = db.path.parent.glob(f"{group_store.FILE}*")
                        self._groups[db.path.parent.name] = {file.name: file.read_bytes() for file in files}
                    return found

            patch.setattr(Database, "execute", watching)
            try:
                yield
            finally:
                for descriptor in self._held.values():
                    os.close(descriptor)
                self._held.clear()

    def after_kill(self, number: int) -> Path:
        """What is there at this moment."""
        return self._copies / str(number) / "kill"

    def after_power_cut(self, number: int) -> Path:
        """What is on disk at this moment."""
        return self._copies / str(number) / "power"

    def _watching(self, name: str, real: object) -> object:
        def call(*arguments: object, **named: object) -> object:
            if self._looking == threading.get_ident():
                return real(*arguments, **named)  # pyright: ignore
            with self._lock:
                self._moment(f"{name} {shown(arguments[0])}")
                result = real(*arguments, **named)  # pyright: ignore
                if name == "fsync":
                    self._synced(int(str(arguments[0])))
            return result

        return call

    def _synced(self, descriptor: int) -> None:
        found = os.fstat(descriptor)
        if stat.S_ISDIR(found.st_mode):
            path = os.readlink(f"/proc/self/fd/{descriptor}")
            self._folders.add(found.st_ino)
            self._hold(found.st_ino, path)
            for entry in os.scandir(path):
                self._hold(entry.inode(), entry.path)
            self._names[found.st_ino] = {entry.name: entry.inode() for entry in os.scandir(path)}
            self._folders |= {entry.inode() for entry in os.scandir(path) if entry.is_dir()}
        else:
            self._hold(found.st_ino, f"/proc/self/fd/{descriptor}")
            self._contents[found.st_ino] = Path(f"/proc/self/fd/{descriptor}").read_bytes()

    def _hold(self, inode: int, path: str) -> None:
        if inode not in self._held:
            self._held[inode] = os.open(path, os.O_PATH)

    def _moment(self, name: str) -> None:
        with self._lock:
            self._looking = threading.get_ident()
            try:
                number = len(self.names)
                self.names.append(name)
                kill, power = self.after_kill(number), self.after_power_cut(number)
                shutil.copytree(self._root, kill)
                power.mkdir()
                self._rebuild(os.stat(self._root).st_ino, power)
                for path in kill.glob("*/ledger.sqlite*"):
                    if (power / path.parent.name).is_dir():
                        shutil.copy(path, power / path.parent.name)
                for run, files in self._groups.items():
                    for name, content in files.items():
                        if (power / run).is_dir():
                            (power / run / name).write_bytes(content)
                for path in (self._copies / str(number)).glob("*/*/.lock"):
                    path.unlink()  # of a process that is no more
            finally:
                self._looking = None

    def _rebuild(self, inode: int, target: Path) -> None:
        for name, of in self._names.get(inode, {}).items():
            if of in self._folders:
                (target / name).mkdir()
                self._rebuild(of, target / name)
            else:
                (target / name).write_bytes(self._contents.get(of, b""))


def shown(argument: object) -> str:
    return os.readlink(f"/proc/self/fd/{argument}") if isinstance(argument, int) else str(argument)
