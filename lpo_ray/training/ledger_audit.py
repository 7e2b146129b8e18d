"""Audit of a ledger: what became of every prompt, and whether the books balance. The run may be live."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from lpo_ray.training.ledger import STATES, read_ledger

REASONS = 8
"""most frequent reasons, that are shown"""
_NUMBER = re.compile(r"\d+(\.\d+)?")
_RULES = {
    "an attempt of prompt {0} is missing: it has {1} attempts, numbered up to {2}":
        "SELECT prompt_id, COUNT(*), MAX(attempt) FROM attempts GROUP BY prompt_id HAVING COUNT(*) <> MAX(attempt) + 1",
    "prompt {0} was issued again after attempt {1}, which was {2}":
        "SELECT prompt_id, attempt, state FROM attempts AS a WHERE state NOT IN ('lost', 'stale') AND EXISTS "
        "(SELECT 1 FROM attempts WHERE prompt_id = a.prompt_id AND attempt > a.attempt)",
    "data index {0} was never issued, though {1} was":
        "SELECT data_index + 1, (SELECT MAX(data_index) FROM attempts) FROM attempts AS a WHERE NOT EXISTS "
        "(SELECT 1 FROM attempts WHERE data_index = a.data_index + 1) "
        "AND data_index < (SELECT MAX(data_index) FROM attempts)",
    "data index {0} has {1} prompts": "SELECT data_index, COUNT(DISTINCT prompt_id) FROM attempts GROUP BY data_index "
        "HAVING COUNT(DISTINCT prompt_id) > 1",
    "{0} (attempt {1}) is {2} without a reason":
        "SELECT prompt_id, attempt, state FROM attempts WHERE state IN ('lost', 'stale', 'filtered') "
        "AND COALESCE(reason, '') = ''",
    "{0} (attempt {1}) belongs to step {2}, which was not committed":
        "SELECT prompt_id, attempt, step FROM attempts WHERE step IS NOT NULL AND step NOT IN "
        "(SELECT step FROM commits)",
    "step {0} was committed without a group":
        "SELECT step FROM commits WHERE step NOT IN (SELECT step FROM attempts WHERE step IS NOT NULL)",
    "step {0} was not committed, though step {1} was":
        "SELECT step - 1, step FROM commits WHERE step > 1 AND step - 1 NOT IN (SELECT step FROM commits)",
    "{0} (attempt {1}) was reused by step {2} before it was trained":
        "SELECT prompt_id, attempt, r.step FROM reused AS r JOIN attempts AS a USING (prompt_id, attempt) "
        "WHERE a.state <> 'trained' OR a.step >= r.step",
}  # fmt: skip
"""what must never be -> query of the rows that show it"""


@dataclass(frozen=True, slots=True)
class Accounting:
    """Books of a run."""

    attempts: Mapping[str, int]
    """number by state"""
    prompts: Mapping[str, int]
    """number by the state of the last attempt"""
    reasons: tuple[tuple[str, str, int], ...]
    """(state, reason with N for its numbers, attempts), most frequent first"""
    steps: int
    reused: int
    """times that a trained group was trained again (pipeline.reused_groups_per_step)"""
    violations: tuple[str, ...]
    """what does not balance"""


def audit(run_dir: Path) -> Accounting:
    """Read the books of a run's folder. Raises ConfigError when it has none."""
    with read_ledger(run_dir) as db:
        db.execute("BEGIN")  # one moment for all that follows
        attempts = dict(db.execute("SELECT state, COUNT(*) FROM attempts GROUP BY state").fetchall())
        prompts = dict(
            db.execute(
                "SELECT state, COUNT(*) FROM attempts AS a WHERE attempt = "
                "(SELECT MAX(attempt) FROM attempts WHERE prompt_id = a.prompt_id) GROUP BY state"
            ).fetchall()
        )
        reasons = Counter[tuple[str, str]]()
        for state, reason in db.execute("SELECT state, reason FROM attempts WHERE reason IS NOT NULL"):
            reasons[state, _NUMBER.sub("N", reason)] += 1
        violations = [text.format(*row) for text, query in _RULES.items() for row in db.execute(query).fetchmany(3)]
        steps = db.execute("SELECT COUNT(*) FROM commits").fetchone()[0]
        reused = db.execute("SELECT COUNT(*) FROM reused").fetchone()[0]
    return Accounting(
        {state: attempts.get(state, 0) for state in STATES},
        {state: prompts.get(state, 0) for state in STATES},
        tuple((state, reason, count) for (state, reason), count in reasons.most_common(REASONS)),
        steps,
        reused,
        tuple(violations),
    )


def render(books: Accounting) -> RenderableType:
    """Render the books for a terminal."""
    table = Table(title=f"{books.steps} steps committed", title_justify="left")
    for column in ("state", "attempts", "prompts, by their last attempt"):
        table.add_column(column, justify="left" if column == "state" else "right")
    owed = {"lost": " (owed)", "stale": " (owed)"}
    for state in STATES:
        count = books.prompts[state]
        table.add_row(state, str(books.attempts[state]), f"{count}{owed.get(state, '') if count else ''}")
    table.add_section()
    table.add_row("all", str(sum(books.attempts.values())), str(sum(books.prompts.values())))
    parts: list[RenderableType] = [table]
    if books.reused:
        parts.append(Text(f"{books.reused} times a trained group was reused"))
    parts += [Text(f"{count} x {state}: {reason}") for state, reason, count in books.reasons]
    parts += [Text(f"does not balance: {violation}", style="red") for violation in books.violations]
    if not books.violations:
        parts.append(Text("balances: every prompt is accounted for, none was trained twice", style="green"))
    return Group(*parts)
