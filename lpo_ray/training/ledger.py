"""Every prompt attempt of a run, one SQLite row each, committed with the step; the source of resume.

```
 issued ──▶ sampled ──▶ scored ──▶ trained (step)
    │          │           ├─────▶ stale      too old, or too far from the policy: its prompt is issued again
    ├──────────┴─▶ lost    │                  no answer, no verdict: its prompt is issued again
    └──────────────────────┴─────▶ filtered   left out on purpose: its prompt is not issued again
```
A lost or stale prompt is issued again under the next attempt number, so an answer that comes late has no row to go to.
The content of a scored group stays beside the ledger, in its ``GroupStore``, until a checkpoint holds what was learned
from it. A run that was killed takes up the groups it had, and recomputes the steps since its checkpoint from exactly
the groups that made them.
"""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from lpo_ray.common.database import open_database
from lpo_ray.common.redaction import redact
from lpo_ray.errors import ConfigError
from lpo_ray.records import Anchor, AnchorGroup, Key, ScoredGroup, WeightsVersion
from lpo_ray.training.call_store import CallStore
from lpo_ray.training.group_store import FILE, GroupStore
from lpo_ray.training.ledger_codec import anchor_from_bytes, anchor_to_bytes

T = TypeVar("T")
STATES = ("issued", "sampled", "scored", "trained", "lost", "stale", "filtered")
IN_FLIGHT = STATES[:3]
_SCHEMA = """
CREATE TABLE IF NOT EXISTS attempts (
    data_index   INTEGER NOT NULL,
    prompt_id    TEXT NOT NULL,
    attempt      INTEGER NOT NULL,
    state        TEXT NOT NULL
        CHECK (state IN ('issued', 'sampled', 'scored', 'trained', 'lost', 'stale', 'filtered')),
    step         INTEGER,
    reason       TEXT,
    leased_until REAL NOT NULL,
    newest       INTEGER,
    updated_at   REAL NOT NULL,
    PRIMARY KEY (prompt_id, attempt),
    CHECK (state NOT IN ('lost', 'stale', 'filtered') OR reason IS NOT NULL),
    CHECK (state <> 'trained' OR step IS NOT NULL)
) STRICT;
CREATE INDEX IF NOT EXISTS by_state ON attempts (state);
CREATE INDEX IF NOT EXISTS by_step ON attempts (step) WHERE step IS NOT NULL;
CREATE INDEX IF NOT EXISTS by_index ON attempts (data_index);
CREATE TABLE IF NOT EXISTS commits (step INTEGER PRIMARY KEY, digest TEXT NOT NULL, committed_at REAL NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS anchors (
    step INTEGER NOT NULL, prompt_id TEXT NOT NULL, attempt INTEGER NOT NULL, anchor BLOB NOT NULL,
    PRIMARY KEY (step, prompt_id, attempt)
) STRICT;
CREATE TABLE IF NOT EXISTS reused (
    step INTEGER NOT NULL, prompt_id TEXT NOT NULL, attempt INTEGER NOT NULL, PRIMARY KEY (step, prompt_id, attempt)
) STRICT;
DROP TABLE IF EXISTS contents; -- of earlier versions: such a run returns to its checkpoint
"""


@contextlib.contextmanager
def read_ledger(run_dir: Path) -> Iterator[sqlite3.Connection]:
    """Open the ledger of a run's folder, to read only. Raises ConfigError when it has none."""
    path = run_dir / "ledger.sqlite"
    if not path.is_file():
        raise ConfigError(f"{run_dir} has no ledger.sqlite; expected the folder of a run, such as runs/NAME")
    with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as db:
        yield db


@dataclass(frozen=True, slots=True)
class PendingWork:
    """Work that a resumed run does before new data."""

    prompts: tuple[tuple[int, str], ...]
    """(data index, prompt id) to issue again, in data order"""
    scored: tuple[ScoredGroup, ...]
    """groups that were not trained yet"""


class Ledger:
    """Ledger of a run. One writer, this process; readers may open the file at any time (WAL).

    Its methods may be called from any thread, and wait for the disk. An event loop must not: it calls them ``in_turn``,
    and those that read or write contents, which takes long, in other threads: ``scored``, ``sync``, ``settle``,
    ``batch``, ``trained_since`` and ``resume``. The others wait for none of these.
    """

    def __init__(self, path: Path, check: Callable[[], None] = lambda: None, calls: CallStore | None = None) -> None:
        """Open or create ``path``, and the store beside it. ``check`` raises when this process may not write any more:
        it is asked before each step and each checkpoint. ``calls``: those of agents, if there are any.
        """
        self.check = check
        self.calls = calls
        self._lock = threading.RLock()
        """held for each statement, and for the whole of a transaction"""
        self._db = open_database(path)
        self._db.execute("PRAGMA wal_autocheckpoint=0")  # see ``sync``
        self._db.executescript(_SCHEMA)
        self._log = open_database(path)
        """empties SQLite's log into the file"""
        self._groups = GroupStore(path.parent / FILE)
        self._rows = ThreadPoolExecutor(1, thread_name_prefix="ledger rows")
        self.contents = ThreadPoolExecutor(1, thread_name_prefix="ledger contents")
        """thread for ``scored`` and ``sync``: one, so that groups arrive in the order in which they were scored"""
        self._ended: list[Key] = []
        """scored groups that were left out since the last step was committed"""
        self._removable: list[Key] = []
        """those of before, whose end is on disk"""
        self._counts: Counter[str] = Counter()
        self._count()

    def close(self) -> None:
        """Close the files, once everything that was asked for is done; all of it is durable then."""
        self.contents.shutdown()
        self._rows.shutdown()
        with self._lock:
            self._groups.close()
            if self.calls is not None:
                self.calls.close()
            self._log.close()
            self._db.close()

    def in_turn(self, method: Callable[..., T], *arguments: object) -> asyncio.Future[T]:
        """Have a thread call ``method``, after all that was asked of it before, and whether or not somebody still waits
        for the result.
        """
        return asyncio.shield(asyncio.get_running_loop().run_in_executor(self._rows, method, *arguments))

    def issue(self, data_index: int, prompt_id: str, lease_seconds: float) -> int:
        """Record that the prompt goes to sampling, to come back scored within the lease. Returns its attempt number, 0
        for the first.
        """
        with self._lock:
            row = self._db.execute("SELECT MAX(attempt) FROM attempts WHERE prompt_id = ?", (prompt_id,)).fetchone()
            attempt, now = (0 if row[0] is None else row[0] + 1), time.time()
            self._db.execute(
                "INSERT INTO attempts VALUES (?, ?, ?, 'issued', NULL, NULL, ?, NULL, ?)",
                (data_index, prompt_id, attempt, now + lease_seconds, now),
            )
            self._counts["issued"] += 1
        return attempt

    def sampled(self, key: Key) -> None:
        """Record that all K responses are there."""
        with self._lock:
            self._move(key, ("issued",), "sampled")

    def scored(self, scored: ScoredGroup) -> None:
        """Record that all K responses have a verdict, and keep the group until ``settle``."""
        key = scored.group.key
        self._groups.put(scored)
        with self._transaction():
            self._ended.append(key)  # unless it can move: it may have been cut meanwhile
            self._move(key, ("sampled",), "scored", newest=scored.group.newest_version)
            self._ended.remove(key)

    def lost(self, key: Key, reason: str) -> None:
        """Record that the attempt cannot be completed. Secrets are cut out of the reason, which may be a plug-in's."""
        with self._lock:
            self._move(key, ("issued", "sampled"), "lost", reason=redact(reason))

    def unscored(self, key: Key, reason: str) -> None:
        """Record that the attempt has no verdict through its own fault: the next one is not to go the same way."""
        self.lost(key, reason)
        self._forget_calls(key)

    def stale(self, key: Key, reason: str) -> None:
        """Record that the attempt is not trained because of its age, or of how far the policy has moved since."""
        self._leave(key, ("scored",), "stale", reason)
        self._forget_calls(key)

    def filtered(self, key: Key, reason: str) -> None:
        """Record that the attempt is left out on purpose."""
        self._leave(key, IN_FLIGHT, "filtered", reason)

    def unusable(self, data_index: int, prompt_id: str, reason: str) -> None:
        """Record that a prompt is left out before it is sampled."""
        with self._transaction():
            self.filtered((prompt_id, self.issue(data_index, prompt_id, 0.0)), reason)

    def sync(self) -> None:
        """Put the contents of all groups on disk, which ``step`` leans on, and remove those that nobody needs. Empties
        SQLite's log meanwhile: SQLite itself would let others wait for the disk.
        """
        with self._lock:
            removable, self._removable = self._removable, []
        self._groups.remove(removable)
        self._groups.sync()
        if self.calls is not None:
            known = "SELECT 1 FROM attempts WHERE prompt_id = ? LIMIT 1"
            ended = "SELECT 1 FROM attempts WHERE prompt_id = ? AND state IN ('trained', 'filtered') LIMIT 1"
            found = self.calls.prompts()
            self.calls.remove(name for name in found if self._all(ended, name) or not self._all(known, name))
        self._log.execute("PRAGMA wal_checkpoint(PASSIVE)")

    @contextlib.contextmanager
    def step(
        self,
        version: WeightsVersion,
        trained: Sequence[Key],
        skipped: Mapping[Key, str] | None = None,
        reused: Sequence[Key] = (),
        anchors: Mapping[Key, AnchorGroup] | None = None,
    ) -> Iterator[None]:
        """Open one transaction around what else belongs to the step: its groups are trained, or skipped by an update
        for the reason given, or trained again. ``anchors``: those of all these groups when the step was made; they are
        kept with the groups, since another pass over them might round differently. The contents of all of them have
        been put on disk before (``sync``).

        It commits, durably, when the block ends, and leaves no trace when the block raises or the process dies in it.
        Raises ValueError for a group that is not scored.
        """
        with self._transaction(durable=True):
            for key in trained:
                self._move(key, ("scored",), "trained", step=version.step)
            for key, reason in (skipped or {}).items():
                self._move(key, ("scored",), "filtered", reason=reason, step=version.step)
            self._db.executemany("INSERT INTO reused VALUES (?, ?, ?)", [(version.step, *key) for key in reused])
            rows = [(version.step, *key, anchor_to_bytes(anchor)) for key, anchor in (anchors or {}).items()]
            self._db.executemany("INSERT INTO anchors VALUES (?, ?, ?, ?)", rows)
            self._db.execute("INSERT INTO commits VALUES (?, ?, ?)", (version.step, version.digest, time.time()))
            ended, self._ended = self._ended, []
            yield
        with self._lock:
            self._removable += ended

    def settle(self, step: int, keep_steps: int) -> None:
        """Forget the contents of groups that were trained up to ``step``, whose checkpoint is whole; keep those of the
        last ``keep_steps`` steps, which may be reused.
        """
        self._groups.remove(self._those(self._groups.keys(), "step <= ?", step - keep_steps))
        with self._lock:
            self._db.execute("DELETE FROM anchors WHERE step <= ?", (step,))

    def commits_after(self, step: int) -> list[WeightsVersion]:
        """Versions of the steps that were committed after ``step``, in order."""
        rows = self._all("SELECT step, digest FROM commits WHERE step > ? ORDER BY step", step)
        return [WeightsVersion(*row) for row in rows]

    def batch(self, step: int) -> tuple[list[ScoredGroup], Anchor]:
        """The groups that made ``step``, in their order there: those it trained (or skipped), then those it reused; and
        their anchor. Empty when they are no longer here.
        """
        rows = self._all(
            "SELECT prompt_id, attempt, anchor FROM (SELECT 0 AS again, prompt_id, attempt FROM attempts "
            "WHERE step = ?1 UNION ALL SELECT 1, prompt_id, attempt FROM reused WHERE step = ?1) "
            "LEFT JOIN (SELECT prompt_id, attempt, anchor FROM anchors WHERE step = ?1) USING (prompt_id, attempt) "
            "ORDER BY again, prompt_id",
            step,
        )
        groups = [self._groups.get((prompt_id, attempt)) for prompt_id, attempt, _ in rows]
        found = [scored for scored in groups if scored is not None]
        if len(found) < len(rows) or any(anchor is None for *_, anchor in rows):
            return [], ()
        return found, tuple(anchor_from_bytes(anchor) for *_, anchor in rows)

    def trained_since(self, step: int) -> list[ScoredGroup]:
        """Groups that were trained after ``step`` and whose contents are still here."""
        return self._held("state = 'trained' AND step > ?", step)

    def resume(self, step: int) -> PendingWork:
        """Continue after ``step``. Groups in flight are lost, and their prompts owed. Groups that were trained later
        become scored again, unless they were sampled by weights newer than ``step``.
        """
        held = self._groups.keys()
        with self._transaction(durable=True):
            now = time.time()
            self._db.execute(
                "UPDATE attempts SET state = 'scored', step = NULL, reason = NULL, updated_at = ?2 "
                "WHERE state IN ('trained', 'filtered') AND step > ?1",
                (step, now),
            )
            self._db.execute(
                "UPDATE attempts SET state = 'lost', updated_at = ?2, "
                "reason = 'sampled by weights ' || newest || '; the run went back to ' || ?1 "
                "WHERE state = 'scored' AND newest > ?1",
                (step, now),
            )
            self._db.execute(
                "UPDATE attempts SET state = 'lost', updated_at = ?1, reason = 'on its way when the run ended' "
                "WHERE state IN ('issued', 'sampled')",
                (now,),
            )
            self._db.executemany(
                "UPDATE attempts SET state = 'lost', updated_at = ?, reason = 'what it held was settled' "
                "WHERE prompt_id = ? AND attempt = ?",
                [(now, *key) for key in self._keys("state = 'scored'") if key not in held],
            )
            self._db.execute("DELETE FROM commits WHERE step > ?", (step,))
            self._db.execute("DELETE FROM reused WHERE step > ?", (step,))
            self._db.execute("DELETE FROM anchors WHERE step > ?", (step,))
        self._groups.remove(held - set(self._those(held, "state = 'scored' OR step IS NOT NULL")))
        if self.calls is not None:
            self.calls.remove_newer(step)
        self._count()
        prompts = self._all(
            "SELECT DISTINCT data_index, prompt_id FROM attempts WHERE prompt_id NOT IN "
            "(SELECT prompt_id FROM attempts WHERE state IN ('trained', 'filtered', 'scored')) ORDER BY data_index"
        )
        return PendingWork(tuple(prompts), tuple(self._held("state = 'scored'")))

    def end(self, reason: str) -> None:
        """Mark what is in flight as lost: the run is over. Scored groups stay, for a run that continues."""
        with self._lock:
            self._db.execute(
                "UPDATE attempts SET state = 'lost', reason = ?, updated_at = ? WHERE state IN ('issued', 'sampled')",
                (redact(reason), time.time()),
            )
        self._count()

    def next_index(self) -> int:
        """Data index of the first prompt that was never issued."""
        return self._all("SELECT COALESCE(MAX(data_index) + 1, 0) FROM attempts")[0][0]

    def index_of(self, prompt_id: str) -> int:
        """Data index under which the prompt was issued."""
        return self._all("SELECT data_index FROM attempts WHERE prompt_id = ?", prompt_id)[0][0]

    def counts(self) -> dict[str, int]:
        """Number of attempts by state: "issued" are all that were ever issued, "in_flight" those without an end."""
        with self._lock:
            return {
                "issued": sum(self._counts.values()),
                "in_flight": sum(self._counts[state] for state in IN_FLIGHT),
                **{state: self._counts[state] for state in ("trained", "lost", "stale", "filtered")},
            }

    def _count(self) -> None:
        with self._lock:
            self._counts = Counter(dict(self._all("SELECT state, COUNT(*) FROM attempts GROUP BY state")))

    def _all(self, sql: str, *parameters: object) -> list[Any]:
        with self._lock:
            return self._db.execute(sql, parameters).fetchall()

    def _keys(self, where: str, *parameters: object) -> list[Key]:
        """Names of the attempts that meet ``where``, in data order."""
        return self._all(f"SELECT prompt_id, attempt FROM attempts WHERE {where} ORDER BY prompt_id", *parameters)

    def _those(self, keys: Iterable[Key], where: str, *parameters: object) -> list[Key]:
        """Those of ``keys`` whose attempts meet ``where``; one by one, as there are many attempts and few contents."""
        ask = f"SELECT 1 FROM attempts WHERE prompt_id = ? AND attempt = ? AND ({where})"
        return [key for key in keys if self._all(ask, *key, *parameters)]

    def _held(self, where: str, *parameters: object) -> list[ScoredGroup]:
        """Read the groups whose attempts meet ``where`` and whose contents are here, one after the other."""
        found = map(self._groups.get, self._keys(where, *parameters))
        return [scored for scored in found if scored is not None]

    def _forget_calls(self, key: Key) -> None:
        if self.calls is not None:
            self.calls.remove_attempts(*key)

    def _leave(self, key: Key, old: tuple[str, ...], state: str, reason: str) -> None:
        with self._transaction():
            self._move(key, old, state, reason=redact(reason))
            self._ended.append(key)

    def _move(
        self,
        key: Key,
        old: tuple[str, ...],
        new: str,
        *,
        reason: str | None = None,
        step: int | None = None,
        newest: int | None = None,
    ) -> None:
        row = self._db.execute("SELECT state FROM attempts WHERE prompt_id = ? AND attempt = ?", key).fetchone()
        if row is None or row[0] not in old:
            state = "not issued" if row is None else row[0]
            raise ValueError(f"{key[0]} (attempt {key[1]}) is {state}; only {' or '.join(old)} can become {new}")
        self._db.execute(
            "UPDATE attempts SET state = ?, reason = ?, step = ?, newest = COALESCE(?, newest), updated_at = ? "
            "WHERE prompt_id = ? AND attempt = ?",
            (new, reason, step, newest, time.time(), *key),
        )
        self._counts[row[0]] -= 1
        self._counts[new] += 1

    @contextlib.contextmanager
    def _transaction(self, *, durable: bool = False) -> Iterator[None]:
        """Open a transaction, or continue the one that is open. ``durable``: it survives a power cut, with everything
        before it. Other threads wait for its end.
        """
        with self._lock:
            if self._db.in_transaction:
                yield
            else:
                with self._begun(durable=durable):
                    yield

    @contextlib.contextmanager
    def _begun(self, *, durable: bool) -> Iterator[None]:
        before = self._counts.copy()
        if durable:
            self.check()
        try:
            with self._db.transaction(durable=durable):
                yield
        except BaseException:
            self._counts = before
            raise
