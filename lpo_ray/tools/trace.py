"""`lpo-ray trace`: the whole history of one prompt, from the ledger and the samples of a run's folder.

Reads only, at any time, also while the run continues. Answers: how often was the prompt issued, what came back, what
did the verifier say, was it trained and by which step, and if not, why not.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow.dataset as ds
import pyarrow.parquet as pq
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from lpo_ray.common.redaction import redact
from lpo_ray.errors import ConfigError
from lpo_ray.records import ScoredGroup
from lpo_ray.telemetry.samples import samples_path
from lpo_ray.telemetry.segment_columns import by_response
from lpo_ray.training.call_store import read_calls
from lpo_ray.training.group_store import read_groups
from lpo_ray.training.ledger import read_ledger

NAMED = 5
"""prompt ids that an error names"""
SHOWN = 300
"""characters of a text in the terminal's table"""
LEGEND = "w*: share of the target; c: what its tokens' log-probs are multiplied by in the loss, below 0 is pushed up"
_COLUMNS = (
    "prompt_id", "attempt", "response_index", "prompt", "response", "answer", "verifier", "reward", "shaping", "detail",
    "target", "coefficient", "update", "finish_reason", "token_ids", "versions", "segment", "began", "context_ids",
    "turns", "ended", "environment_seconds",
)  # fmt: skip
_ENDS = {
    "issued": "at an engine, or waiting for one",
    "sampled": "waiting for its verdicts",
    "scored": "waiting to be trained",
    "lost": "not completed; the prompt is issued again",
    "stale": "not trained; the prompt is issued again",
    "filtered": "left out on purpose; the prompt is not issued again",
}


@dataclass(frozen=True, slots=True)
class Answered:
    """One response as the run recorded it. A number is None where it is not known yet, or was not recorded."""

    text: str | None
    """of a conversation all that was said, and where a segment begins"""
    reward: float
    """of the verifier"""
    shaping: float
    """what training added to it for the response's length"""
    detail: str | None
    target: float | None
    """w*, its share of the target"""
    coefficient: float | None
    """c, what its tokens entered the loss with"""
    tokens: int
    """that were sampled"""
    versions: tuple[int, int]
    """oldest and newest weights that sampled it"""
    finish_reason: str
    turns: tuple[int, ...] = ()
    """tokens of each turn of a conversation; empty for a single answer"""
    ended: str = ""
    """why the conversation ended"""


@dataclass(frozen=True, slots=True)
class Attempt:
    """One attempt at the prompt: a row of the ledger, with its responses where the run still has them."""

    number: int
    state: str
    reason: str | None
    step: int | None
    """that trained it, or whose update skipped it"""
    reused: tuple[int, ...]
    """steps that trained it again"""
    updated_at: float
    """Unix time of its last change"""
    responses: tuple[Answered, ...]
    calls: int = 0
    """of its agents that were answered, and are kept in case they have to run again"""


@dataclass(frozen=True, slots=True)
class Trace:
    """All that a run's folder says about one prompt."""

    prompt_id: str
    data_index: int
    prompt: str | None
    answer: str | None
    verifier: str | None
    attempts: tuple[Attempt, ...]


def trace(run_dir: Path, prompt: str) -> tuple[Trace, ...]:
    """Collect the history of ``prompt``: an id, or the row of a data set, which each pass over the data issues anew.

    A number is a row where the run reads a data set, and the place in the order of issue where it has none. ConfigError
    names ids that are there.
    """
    with read_ledger(run_dir) as db:
        db.execute("BEGIN")  # one moment for all that follows
        found = _prompts(db, prompt)
        if not found:
            some = db.execute(
                "SELECT DISTINCT prompt_id FROM attempts ORDER BY data_index LIMIT ?", (NAMED,)
            ).fetchall()
            ids = ", ".join(row[0] for row in some) or "none: nothing was issued yet"
            raise ConfigError(
                f"{run_dir} never issued a prompt {prompt!r}; expected a prompt's id or the number of its row, the "
                f"first ids are {ids}"
            )
        return tuple(_trace(run_dir, db, *known) for known in found)


def _prompts(db: sqlite3.Connection, prompt: str) -> list[tuple[str, int]]:
    """Ids and places in the order of issue of what ``prompt`` names, the oldest first."""
    ask = "SELECT DISTINCT prompt_id, data_index FROM attempts WHERE {} ORDER BY data_index"
    number = str(min(int(prompt), 2**63 - 1)) if prompt.isdecimal() and prompt.isascii() else None
    found = db.execute(ask.format("prompt_id = ?"), (prompt,)).fetchall()
    if not found and number is not None:
        found = db.execute(ask.format("prompt_id LIKE '%-row-' || ?"), (number,)).fetchall()
    if not found and number is not None and not db.execute(ask.format("prompt_id LIKE '%-row-%'")).fetchone():
        found = db.execute(ask.format("data_index = ?"), (int(number),)).fetchall()
    return found


def _trace(run_dir: Path, db: sqlite3.Connection, prompt_id: str, data_index: int) -> Trace:
    rows = db.execute(
        "SELECT attempt, state, reason, step, updated_at FROM attempts WHERE prompt_id = ? ORDER BY attempt",
        (prompt_id,),
    ).fetchall()
    reused = db.execute("SELECT attempt, step FROM reused WHERE prompt_id = ? ORDER BY step", (prompt_id,)).fetchall()
    recorded: dict[int, list[dict]] = {}
    for step in sorted({row[3] for row in rows if row[3] is not None}):
        for sample in _samples(run_dir, step, prompt_id):
            recorded.setdefault(sample["attempt"], []).append(sample)
    first = next((samples[0] for samples in recorded.values()), None)
    held, calls = read_groups(run_dir, prompt_id), read_calls(run_dir, prompt_id)
    attempts = tuple(
        Attempt(
            number, state, reason, step, tuple(again for of, again in reused if of == number), updated,
            _answered(recorded.get(number, ()), held.get(number)), sum(map(len, calls.get(number, {}).values())),
        )
        for number, state, reason, step, updated in rows
    )  # fmt: skip
    prompt = next((scored.group.prompt for scored in held.values()), None)
    return Trace(
        prompt_id,
        data_index,
        prompt=first["prompt"] if first else None,
        answer=first["answer"] if first else prompt.answer if prompt else None,
        verifier=first["verifier"] if first else prompt.verifier if prompt else None,
        attempts=attempts,
    )


def render(found: Sequence[Trace]) -> RenderableType:
    """Lay the histories out for a terminal. Texts of a run are shown as text: markup in them means nothing."""
    return Group(*(part for one in found for part in _parts(one)), Text(LEGEND, style="dim"))


def _parts(found: Trace) -> Sequence[RenderableType]:
    parts: list[RenderableType] = [Text(f"{found.prompt_id}  issued as number {found.data_index}", style="bold")]
    for name, text in (("prompt", found.prompt), ("answer", found.answer), ("verifier", found.verifier)):
        if text is not None:
            parts.append(Text(f"{name}: {_shown(text)}"))
    for attempt in found.attempts:
        parts.append(Text(f"attempt {attempt.number}: {_end(attempt)}", style="bold"))
        if attempt.responses:
            parts.append(_table(attempt.responses))
    return parts


def _samples(run_dir: Path, step: int, prompt_id: str) -> Sequence[dict]:
    """Rows of one prompt in the samples of ``step``; none where they were not recorded or are of another shape."""
    path = samples_path(run_dir, step)
    if not path.is_file():
        return ()
    have = set(pq.read_schema(path).names)
    table = pq.read_table(
        path, columns=[name for name in _COLUMNS if name in have], filters=ds.field("prompt_id") == prompt_id
    )
    return sorted(table.to_pylist(), key=lambda row: (row["response_index"], row.get("segment") or 0))


def _answered(samples: Sequence[Mapping], scored: ScoredGroup | None) -> tuple[Answered, ...]:
    """From the samples, which have texts and targets; else from what the run still holds of a scored group."""
    if samples:
        return tuple(_recorded(rows) for rows in by_response(samples))
    if scored is None:
        return ()
    return tuple(
        Answered(
            None,
            float(reward),
            float(shaped - reward),
            None,
            None,
            None,
            len(r.token_ids),
            _span(r.versions.tolist()),
            r.finish_reason,
            () if r.conversation is None else r.conversation.turns,
            "" if r.conversation is None else r.conversation.ended,
        )
        for r, reward, shaped in zip(scored.group.responses, scored.rewards, scored.shaped, strict=True)
    )


def _recorded(rows: Sequence[Mapping]) -> Answered:
    """From the rows of a response: one, or one for each segment."""
    first = rows[0]
    versions = [version for row in rows for version in row["versions"]]
    parts = []
    for number, row in enumerate(rows):
        if number or row.get("context_ids") is not None:
            why, size = row["began"] or "another context", len(row["context_ids"] or ())
            parts.append(f"\n[segment {number + 1}, behind {size} tokens: {why}] ")
        parts.append(row["response"])
    return Answered(
        "".join(parts), first["reward"], first.get("shaping", 0.0), first.get("detail"), first.get("target"),
        first.get("coefficient"), len(versions), _span(versions), first["finish_reason"],
        tuple(first.get("turns") or ()), first.get("ended") or "",
    )  # fmt: skip


def _span(versions: Sequence[int]) -> tuple[int, int]:
    return (min(versions), max(versions)) if versions else (-1, -1)


def _end(attempt: Attempt) -> str:
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(attempt.updated_at))
    if attempt.state == "trained":
        again = f", and again by {', '.join(map(str, attempt.reused))}" if attempt.reused else ""
        text = f"trained by step {attempt.step}{again}"
    else:
        text = f"{attempt.state}, {_ENDS[attempt.state]}" + (f": {redact(attempt.reason)}" if attempt.reason else "")
    kept = f"; {attempt.calls} answered calls of its agents are kept" if attempt.calls else ""
    return f"{text}{kept}  ({when})"


def _table(responses: Sequence[Answered]) -> Table:
    table = Table(show_lines=False)
    for name in ("k", "reward", "w*", "c", "tokens"):
        table.add_column(name, justify="right")
    table.add_column("weights")
    table.add_column("response", overflow="fold")
    for number, response in enumerate(responses):
        old, new = response.versions
        said = "not recorded" if response.text is None else _shown(response.text)
        if response.detail:
            said += f"\nverifier: {_shown(response.detail)}"
        cut = " (cut at the limit)" if response.finish_reason == "length" else ""
        if response.turns:
            said += f"\n{len(response.turns)} turns of {', '.join(map(str, response.turns))} tokens, ended by "
            said += _shown(response.ended)
        reward = f"{response.reward:g}" + (f" {response.shaping:+.3g}" if response.shaping else "")
        numbers = ("" if value is None else f"{value:.3f}" for value in (response.target, response.coefficient))
        table.add_row(
            str(number), reward, *numbers, f"{response.tokens}{cut}",
            str(new) if old == new else f"{old} to {new}", Text(said),
        )  # fmt: skip
    return table


def _shown(text: str) -> str:
    """One line of printable characters, at most SHOWN of them."""
    line = "".join(character if character.isprintable() else "⏎" if character == "\n" else "·" for character in text)
    return line if len(line) <= SHOWN else f"{line[:SHOWN]}… ({len(line)} characters)"
