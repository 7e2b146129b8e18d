"""SQLite as runs write it: a log beside the file (WAL), and errors of the disk that say what to do about them."""

from __future__ import annotations

import contextlib
import errno
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from lpo_ray.common.files import disk_full


class Database(sqlite3.Connection):
    """Connection whose errors of the disk are OSErrors that name the file: DiskFull, or EIO with SQLite's words."""

    path: Path

    def execute(self, sql: str, parameters: Sequence[object] = ()) -> sqlite3.Cursor:
        """Execute one statement."""
        with self._explained():
            return super().execute(sql, parameters)  # pyright: ignore[reportArgumentType] - of types SQLite knows

    def executemany(self, sql: str, parameters: Iterable[Sequence[object]]) -> sqlite3.Cursor:
        """Execute one statement for each of ``parameters``."""
        with self._explained():
            return super().executemany(sql, parameters)  # pyright: ignore[reportArgumentType] - as above

    def executescript(self, script: str) -> sqlite3.Cursor:
        """Execute several statements."""
        with self._explained():
            return super().executescript(script)

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.OperationalError as error:
            code = error.sqlite_errorcode & 0xFF
            if code == sqlite3.SQLITE_FULL:
                raise disk_full(self.path) from error
            if code in (sqlite3.SQLITE_IOERR, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN):
                raise OSError(errno.EIO, str(error), str(self.path)) from error
            raise

    @contextlib.contextmanager
    def transaction(self, *, durable: bool = False) -> Iterator[None]:
        """Open a transaction, which leaves no trace when the block raises. ``durable``: it survives a power cut, with
        everything before it.
        """
        if durable:
            self.execute("PRAGMA synchronous=FULL")
        self.execute("BEGIN IMMEDIATE")
        try:
            yield
            self.execute("COMMIT")
        except BaseException:
            if self.in_transaction:  # a full disk ends it by itself
                self.execute("ROLLBACK")
            raise
        finally:
            if durable:
                self.execute("PRAGMA synchronous=NORMAL")


def open_database(path: Path) -> Database:
    """Open or create ``path``, to be used by any thread, one at a time. What is not durable survives a kill only."""
    found = sqlite3.connect(path, isolation_level=None, timeout=30, factory=Database, check_same_thread=False)
    found.path = path
    found.execute("PRAGMA journal_mode=WAL")
    found.execute("PRAGMA synchronous=NORMAL")
    return found
