"""Books that do not balance, made so by hand, and what the audit says of them."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from lpo_ray.training.ledger import Ledger
from lpo_ray.training.ledger_audit import audit
from tests.support.ledgers import commit, scored_by

BROKEN = {
    "UPDATE attempts SET attempt = 5 WHERE data_index = 1": "an attempt of prompt train-00000001 is missing",
    "INSERT INTO attempts SELECT 0, prompt_id, 1, 'trained', 2, NULL, 0, 0, 0 FROM attempts WHERE data_index = 0":
        "prompt train-00000000 was issued again after attempt 0, which was trained",
    "DELETE FROM attempts WHERE data_index = 1": "data index 1 was never issued, though 2 was",
    "UPDATE attempts SET state = 'lost', reason = '' WHERE data_index = 2": "(attempt 0) is lost without a reason",
    "UPDATE attempts SET step = 9 WHERE data_index = 0": "belongs to step 9, which was not committed",
    "DELETE FROM commits WHERE step = 1": "step 1 was not committed, though step 2 was",
    "INSERT INTO commits VALUES (3, 'd', 0)": "step 3 was committed without a group",
    "INSERT INTO reused VALUES (1, 'train-00000001', 0)": "was reused by step 1 before it was trained",
}  # fmt: skip


@pytest.mark.parametrize(("change", "found"), BROKEN.items())
def test_books_that_do_not_balance_say_why(tmp_path: Path, change: str, found: str) -> None:
    ledger = Ledger(tmp_path / "ledger.sqlite")
    groups = [scored_by(ledger, number) for number in range(3)]
    commit(ledger, 1, groups[:1])
    commit(ledger, 2, groups[1:2])
    assert audit(tmp_path).violations == ()
    with sqlite3.connect(tmp_path / "ledger.sqlite") as broken:
        broken.execute(change)
    assert any(found in violation for violation in audit(tmp_path).violations), audit(tmp_path).violations
