from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lpo_ray.ledger import Ledger


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path / "ledger.sqlite")


def test_a_prompt_is_issued_scored_and_trained_once(ledger: Ledger) -> None:
    assert ledger.issue(0, "a") == 0
    ledger.scored("a", 0)
    ledger.commit(1, "digest", [("a", 0)])
    assert ledger.counts() == {"issued": 1, "in_flight": 0, "trained": 1, "lost": 0, "stale": 0, "filtered": 0}
    with pytest.raises(ValueError, match="step 2 trained a"):
        ledger.commit(2, "digest", [("a", 0)])


def test_a_lost_attempt_is_reissued_under_the_next_number(ledger: Ledger) -> None:
    ledger.issue(0, "a")
    ledger.lost("a", 0, "engine died")
    assert ledger.issue(0, "a") == 1
    with pytest.raises(ValueError, match="it cannot become 'scored'"):
        ledger.scored("a", 0)


def test_a_commit_is_all_or_nothing(ledger: Ledger) -> None:
    ledger.issue(0, "a")
    ledger.issue(1, "b")
    ledger.scored("a", 0)
    with pytest.raises(ValueError, match="trained b"):
        ledger.commit(1, "digest", [("a", 0), ("b", 0)])
    assert ledger.counts()["trained"] == 0
    ledger.scored("b", 0)
    ledger.commit(1, "digest", [("a", 0), ("b", 0)])
    assert ledger.counts()["trained"] == 2


def test_rewind_owes_what_was_in_flight_or_trained_after_the_checkpoint(ledger: Ledger) -> None:
    for index, name in enumerate("abcd"):
        ledger.issue(index, name)
    for name in "abc":
        ledger.scored(name, 0)
    ledger.commit(1, "one", [("a", 0)])
    ledger.commit(2, "two", [("b", 0)])
    assert ledger.rewind(1) == [(1, "b"), (2, "c"), (3, "d")]
    assert ledger.next_index() == 4
    assert ledger.counts()["in_flight"] == 0
    assert ledger.issue(1, "b") == 1
    ledger.scored("b", 1)
    ledger.commit(2, "two again", [("b", 1)])


def test_a_reader_sees_committed_steps_while_the_writer_is_open(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.sqlite")
    ledger.issue(0, "a")
    with sqlite3.connect(tmp_path / "ledger.sqlite") as reader:
        assert reader.execute("SELECT prompt_id, state FROM attempts").fetchall() == [("a", "issued")]


@settings(max_examples=30)
@given(st.lists(st.sampled_from(["score", "lose", "train", "rewind"]), max_size=40), st.integers(1, 4))
def test_any_history_balances(tmp_path_factory: pytest.TempPathFactory, moves: list[str], groups: int) -> None:
    """issued = in flight + trained + lost + stale, and a prompt is trained at most once, whatever happens."""
    ledger = Ledger(tmp_path_factory.mktemp("ledger") / "ledger.sqlite")
    step = 0
    attempts = {f"p{n}": ledger.issue(n, f"p{n}") for n in range(groups)}
    scored: set[str] = set()
    trained: set[str] = set()
    for number, move in enumerate(moves):
        name = f"p{number % groups}"
        if move == "score" and name not in scored | trained:
            ledger.scored(name, attempts[name])
            scored.add(name)
        elif move == "lose" and name not in scored | trained:
            ledger.lost(name, attempts[name], "test")
            attempts[name] = ledger.issue(number % groups, name)
        elif move == "train" and scored:
            step += 1
            ledger.commit(step, "digest", [(name, attempts[name]) for name in scored])
            trained |= scored
            scored = set()
        elif move == "rewind":
            owed = ledger.rewind(step)
            assert {name for _, name in owed} == set(attempts) - trained
            for index, name in owed:
                attempts[name] = ledger.issue(index, name)
            scored = set()
        counts = ledger.counts()
        assert counts["issued"] == sum(counts[state] for state in ("in_flight", "trained", "lost", "stale"))
        assert counts["trained"] == len(trained)
