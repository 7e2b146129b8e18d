"""Which prompt was issued, lost, scored or trained: one SQLite row for each attempt, committed with the step.

States: issued -> scored -> trained, or issued -> lost, or scored -> stale. A prompt that was lost or stale is issued
again under the next attempt number. The ledger is the source of resume: what is not trained by the restored
checkpoint is issued again, and the data order goes on behind the last prompt that was ever issued.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterable, Mapping
from contextlib import closing
from pathlib import Path

_SCHEMA = """
CREATE TABLE IF NOT EXISTS attempts (
    data_index INTEGER NOT NULL,
    prompt_id  TEXT NOT NULL,
    attempt    INTEGER NOT NULL,
    state      TEXT NOT NULL CHECK (state IN ('issued', 'scored', 'trained', 'lost', 'stale', 'filtered')),
    step       INTEGER,
    reason     TEXT,
    updated_at REAL NOT NULL,
    PRIMARY KEY (prompt_id, attempt)
) STRICT;
CREATE INDEX IF NOT EXISTS by_state ON attempts (state);
CREATE TABLE IF NOT EXISTS commits (step INTEGER PRIMARY KEY, digest TEXT NOT NULL, committed_at REAL NOT NULL) STRICT;
"""


class Ledger:
    """The run's accounting. One writer (the loop); readers may open the file at any time (WAL)."""

    def __init__(self, path: Path) -> None:
        """Open or create ``path``."""
        self._db = sqlite3.connect(path, isolation_level=None, timeout=30)
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=NORMAL")
        self._db.executescript(_SCHEMA)

    def close(self) -> None:
        """Close the file; everything written is durable."""
        self._db.close()

    def issue(self, data_index: int, prompt_id: str) -> int:
        """Record that the prompt goes to sampling; returns its attempt number, 0 for the first."""
        row = self._db.execute("SELECT MAX(attempt) FROM attempts WHERE prompt_id = ?", (prompt_id,)).fetchone()
        attempt = 0 if row[0] is None else row[0] + 1
        self._db.execute(
            "INSERT INTO attempts VALUES (?, ?, ?, 'issued', NULL, NULL, ?)",
            (data_index, prompt_id, attempt, time.time()),
        )
        return attempt

    def scored(self, prompt_id: str, attempt: int) -> None:
        """All K responses have a verdict."""
        self._move(prompt_id, attempt, "issued", "scored", None)

    def lost(self, prompt_id: str, attempt: int, reason: str) -> None:
        """The attempt cannot be completed."""
        self._move(prompt_id, attempt, "issued", "lost", reason)

    def stale(self, prompt_id: str, attempt: int, reason: str) -> None:
        """The attempt is older than the staleness bound allows."""
        self._move(prompt_id, attempt, "scored", "stale", reason)

    def commit(
        self,
        step: int,
        digest: str,
        trained: Iterable[tuple[str, int]],
        filtered: Mapping[tuple[str, int], str] | None = None,
    ) -> None:
        """In one transaction: the (prompt id, attempt) pairs are trained by ``step``, which made weights ``digest``, or
        were left out of it for the reason given.
        """
        with closing(self._db.cursor()) as cursor:
            cursor.execute("BEGIN IMMEDIATE")
            try:
                now = time.time()
                moves = [("trained", None, key) for key in trained]
                moves += [("filtered", reason, key) for key, reason in (filtered or {}).items()]
                for state, reason, (prompt_id, attempt) in moves:
                    cursor.execute(
                        "UPDATE attempts SET state = ?, reason = ?, step = ?, updated_at = ? "
                        "WHERE prompt_id = ? AND attempt = ? AND state = 'scored'",
                        (state, reason, step, now, prompt_id, attempt),
                    )
                    if cursor.rowcount != 1:
                        raise ValueError(f"step {step} {state} {prompt_id} (attempt {attempt}), which was not scored")
                cursor.execute("INSERT INTO commits VALUES (?, ?, ?)", (step, digest, now))
                cursor.execute("COMMIT")
            except BaseException:
                cursor.execute("ROLLBACK")
                raise

    def rewind(self, step: int) -> list[tuple[int, str]]:
        """Go back to the checkpoint of ``step``: what was trained later, or is in flight, is lost and owed again.

        Returns the (data index, prompt id) pairs to issue again, in data order.
        """
        with closing(self._db.cursor()) as cursor:
            cursor.execute("BEGIN IMMEDIATE")
            cursor.execute(
                "UPDATE attempts SET state = 'lost', reason = 'resumed from step ' || ?1, step = NULL, updated_at = ?2 "
                "WHERE state IN ('issued', 'scored') OR (state IN ('trained', 'filtered') AND step > ?1)",
                (step, time.time()),
            )
            cursor.execute("DELETE FROM commits WHERE step > ?", (step,))
            cursor.execute("COMMIT")
        return self._db.execute(
            "SELECT DISTINCT data_index, prompt_id FROM attempts WHERE prompt_id NOT IN "
            "(SELECT prompt_id FROM attempts WHERE state IN ('trained', 'filtered')) ORDER BY data_index"
        ).fetchall()

    def next_index(self) -> int:
        """Data index of the first prompt that was never issued."""
        return self._db.execute("SELECT COALESCE(MAX(data_index) + 1, 0) FROM attempts").fetchone()[0]

    def index_of(self, prompt_id: str) -> int:
        """Data index under which the prompt was issued."""
        return self._db.execute("SELECT data_index FROM attempts WHERE prompt_id = ?", (prompt_id,)).fetchone()[0]

    def counts(self) -> dict[str, int]:
        """Attempts by state, and "issued" = all attempts ever issued."""
        states = dict(self._db.execute("SELECT state, COUNT(*) FROM attempts GROUP BY state").fetchall())
        total = sum(states.values())
        return {
            "issued": total,
            "in_flight": states.get("issued", 0) + states.get("scored", 0),
            **{state: states.get(state, 0) for state in ("trained", "lost", "stale", "filtered")},
        }

    def _move(self, prompt_id: str, attempt: int, old: str, new: str, reason: str | None) -> None:
        cursor = self._db.execute(
            "UPDATE attempts SET state = ?, reason = ?, updated_at = ? "
            "WHERE prompt_id = ? AND attempt = ? AND state = ?",
            (new, reason, time.time(), prompt_id, attempt, old),
        )
        if cursor.rowcount != 1:
            raise ValueError(f"{prompt_id} (attempt {attempt}) is not {old!r}; it cannot become {new!r}")
