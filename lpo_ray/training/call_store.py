"""Calls of agents that a run may have to answer again, in a file beside its ledger: ``calls.sqlite``.

A call is here before its agent is answered. When the agent has to run again, because a process or a machine was lost,
the next attempt at its prompt gets the same answers for as long as it asks the same. The ledger says what became of
each attempt: calls of a prompt that was trained or left out are removed.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sqlite3
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import cast

import numpy as np
from safetensors.numpy import load, save
from typing_extensions import override

from lpo_ray.common.database import open_database
from lpo_ray.interfaces import CallRecord
from lpo_ray.records import Answered, Call, ConversationId, FinishReason, Sampling, Turn

FILE = "calls.sqlite"
_SCHEMA = """
CREATE TABLE IF NOT EXISTS calls (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    prompt_id TEXT NOT NULL, attempt INTEGER NOT NULL, response INTEGER NOT NULL, number INTEGER NOT NULL,
    sampling TEXT NOT NULL, newest INTEGER NOT NULL, answered_at REAL NOT NULL, content BLOB NOT NULL
) STRICT;
CREATE INDEX IF NOT EXISTS by_prompt ON calls (prompt_id, attempt);
"""


class CallStore(CallRecord):
    """Store of answered calls. Methods that are not awaited may be called from any thread."""

    def __init__(self, path: Path) -> None:
        """Open or create ``path``."""
        self._lock = threading.Lock()
        self._db = open_database(path)
        self._db.executescript(_SCHEMA)

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._db.close()

    @override
    async def begin(self, prompt_id: str, attempt: int, sampling: Sampling) -> Mapping[int, list[Answered]]:
        if attempt == 0:  # an evaluation has the same prompts again
            await self.forget(prompt_id)
            return {}
        return await asyncio.to_thread(self.before, prompt_id, attempt, sampling)

    @override
    async def put(self, conversation: ConversationId, answered: Answered, sampling: Sampling) -> None:
        adding = asyncio.ensure_future(asyncio.to_thread(self.add, conversation, answered, sampling))
        try:
            await asyncio.shield(adding)
        except asyncio.CancelledError:
            await adding  # a thread goes on: what is forgotten next shall have this in it
            raise

    @override
    async def forget(self, prompt_id: str) -> None:
        await asyncio.to_thread(self.remove, [prompt_id])

    def add(self, conversation: ConversationId, answered: Answered, sampling: Sampling) -> None:
        """Keep a call. It survives a kill at once; a power cut may take the last ones, with the agents they are for."""
        newest = int(answered.turn.versions.max())
        row = (
            *conversation, answered.call.number, _distribution(sampling), newest, time.time(), call_to_bytes(answered)
        )  # fmt: skip
        with self._lock:
            self._db.execute("INSERT INTO calls VALUES (NULL, ?, ?, ?, ?, ?, ?, ?, ?)", row)

    def before(self, prompt_id: str, attempt: int, sampling: Sampling) -> dict[int, list[Answered]]:
        """Read the calls of the attempts before ``attempt``, by response, those of the last one first, as far as
        ``sampling`` draws alike.
        """
        with self._lock:
            rows = self._db.execute(
                "SELECT response, content FROM calls WHERE prompt_id = ? AND attempt < ? AND sampling = ? "
                "ORDER BY attempt DESC, id",
                (prompt_id, attempt, _distribution(sampling)),
            ).fetchall()
        found: dict[int, list[Answered]] = {}
        for response, content in rows:
            found.setdefault(response, []).append(call_from_bytes(content))
        return found

    def prompts(self) -> set[str]:
        """Ids of the prompts that have calls here."""
        with self._lock:
            return {row[0] for row in self._db.execute("SELECT DISTINCT prompt_id FROM calls")}

    def remove(self, prompt_ids: Iterable[str]) -> None:
        """Remove all calls of some prompts."""
        for prompt_id in prompt_ids:
            with self._lock:
                self._db.execute("DELETE FROM calls WHERE prompt_id = ?", (prompt_id,))

    def remove_attempts(self, prompt_id: str, last: int) -> None:
        """Remove the calls of a prompt's attempts up to number ``last``."""
        with self._lock:
            self._db.execute("DELETE FROM calls WHERE prompt_id = ? AND attempt <= ?", (prompt_id, last))

    def remove_newer(self, step: int) -> None:
        """Remove calls that weights newer than those of ``step`` answered: the run went back."""
        with self._lock:
            self._db.execute("DELETE FROM calls WHERE newest > ?", (step,))


def read_calls(run_dir: Path, prompt_id: str) -> dict[int, dict[int, list[Answered]]]:
    """Read the calls of one prompt that a run's folder still has, by attempt and response."""
    path = run_dir / FILE
    if not path.is_file():
        return {}
    with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as db:
        rows = db.execute(
            "SELECT attempt, response, content FROM calls WHERE prompt_id = ? ORDER BY id", (prompt_id,)
        ).fetchall()
    found: dict[int, dict[int, list[Answered]]] = {}
    for attempt, response, content in rows:
        found.setdefault(attempt, {}).setdefault(response, []).append(call_from_bytes(content))
    return found


def call_to_bytes(answered: Answered) -> bytes:
    """Encode a call and its answer: 4 bytes a token of the context, 12 of the answer, and the request."""
    call, turn = answered.call, answered.turn
    plain = [call.number, call.max_tokens, call.stop, call.began, call.author, turn.finish_reason, turn.engine]
    return save(
        {
            "plain": np.frombuffer(json.dumps(plain).encode(), dtype=np.uint8),
            "request": np.frombuffer(call.request, dtype=np.uint8),
            "context": call.context_ids.astype(np.int32),
            "token_ids": turn.token_ids.astype(np.int32),
            "logprobs": turn.behaviour_logprobs.astype(np.float32),
            "versions": turn.versions.astype(np.int32),
        }
    )


def call_from_bytes(content: bytes) -> Answered:
    """Decode the call that ``call_to_bytes`` was given."""
    found = load(content)
    number, max_tokens, stop, began, author, finish, engine = json.loads(found["plain"].tobytes())
    context = found["context"].astype(np.int64)
    call = Call(number, context, found["request"].tobytes(), max_tokens, tuple(stop), began, author)
    versions, logprobs = found["versions"].astype(np.int64), cast("np.ndarray", found["logprobs"])
    turn = Turn(found["token_ids"].astype(np.int64), logprobs, versions, cast("FinishReason", finish), engine)
    return Answered(call, turn)


def _distribution(sampling: Sampling) -> str:
    """Write what decides how a turn is drawn: not how many, and not when a conversation ends."""
    left_out = ("group_size", "max_turns", "max_conversation_tokens")
    return json.dumps({name: value for name, value in asdict(sampling).items() if name not in left_out})
