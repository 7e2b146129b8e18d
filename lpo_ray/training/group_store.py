"""Contents of the groups that a run may train, in a file beside its ledger: ``groups.sqlite``.

A ledger's rows are small, and the loop writes them. A group of long responses is megabytes: it is written by a thread,
here, so that nobody waits for it. The ledger says what became of each group; what is here without a row there, or with
one that needs it no more, is removed.
"""

from __future__ import annotations

import contextlib
import sqlite3
import threading
from collections.abc import Iterable
from pathlib import Path

from lpo_ray.common.database import open_database
from lpo_ray.records import Key, ScoredGroup
from lpo_ray.training.ledger_codec import from_bytes, to_bytes

FILE = "groups.sqlite"
_SCHEMA = """
CREATE TABLE IF NOT EXISTS contents (
    prompt_id TEXT NOT NULL, attempt INTEGER NOT NULL, content BLOB NOT NULL, PRIMARY KEY (prompt_id, attempt)
) STRICT;
CREATE TABLE IF NOT EXISTS synced (one INTEGER PRIMARY KEY, times INTEGER NOT NULL) STRICT;
"""
_CONTENT = "SELECT content FROM contents WHERE prompt_id = ? AND attempt = ?"


class GroupStore:
    """Store of scored groups by name. Its methods may be called from any thread; each waits for the one before."""

    def __init__(self, path: Path) -> None:
        """Open or create ``path``."""
        self._lock = threading.Lock()
        self._db = open_database(path)
        self._db.executescript(_SCHEMA)

    def close(self) -> None:
        """Close the file; everything written is durable."""
        with self._lock:
            self._db.close()

    def put(self, scored: ScoredGroup) -> None:
        """Keep a group. It survives a kill at once, a power cut from the next ``sync`` on."""
        content = to_bytes(scored)
        with self._lock:
            self._db.execute("INSERT OR REPLACE INTO contents VALUES (?, ?, ?)", (*scored.group.key, content))

    def get(self, key: Key) -> ScoredGroup | None:
        """Read a group; None: it is not here."""
        with self._lock:
            row = self._db.execute(_CONTENT, key).fetchone()
        return from_bytes(row[0]) if row else None

    def keys(self) -> set[Key]:
        """Names of all groups that are here."""
        with self._lock:
            return set(self._db.execute("SELECT prompt_id, attempt FROM contents").fetchall())

    def remove(self, keys: Iterable[Key]) -> None:
        """Remove groups, one by one: others wait for one at most."""
        for key in keys:
            with self._lock:
                self._db.execute("DELETE FROM contents WHERE prompt_id = ? AND attempt = ?", key)

    def sync(self) -> None:
        """Put everything on disk."""
        with self._lock, self._db.transaction(durable=True):
            # a transaction that changes nothing would sync nothing
            self._db.execute("INSERT INTO synced VALUES (1, 1) ON CONFLICT DO UPDATE SET times = times + 1")


def read_groups(run_dir: Path, prompt_id: str) -> dict[int, ScoredGroup]:
    """Read the groups of one prompt that the store of a run's folder still has, by attempt."""
    path = run_dir / FILE
    if not path.is_file():
        return {}
    with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as db:
        rows = db.execute("SELECT attempt, content FROM contents WHERE prompt_id = ?", (prompt_id,)).fetchall()
    return {attempt: from_bytes(content) for attempt, content in rows}
