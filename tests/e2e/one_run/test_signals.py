"""Ending a run from outside: SIGTERM, SIGINT, and SIGKILL of the driver; then resume. No process stays behind."""

from __future__ import annotations

import json
import signal
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.live_runs import Run, find, steps_of
from tests.support.run_history import Ended, History, Output, end

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture
def run(tmp_path: Path, tiny_policy: Path) -> Iterator[Run]:
    with Run(tmp_path, tiny_policy) as started:
        yield started


def states(folder: Path) -> dict[str, int]:
    with sqlite3.connect(folder / "ledger.sqlite") as ledger:
        return dict(ledger.execute("SELECT state, COUNT(*) FROM attempts GROUP BY state").fetchall())


def check_end(ended: Ended, number: int, code: int) -> None:
    """A signal ended the run with a checkpoint, and no process was left."""
    assert ended.code == code, ended.output
    last = ended.steps[-1]
    assert f"stopped by signal {number} after step {last}; continue with run.resume=auto" in ended.output
    assert ended.checkpoints[-1] == f"step_{last:06d}"
    assert ended.summary["steps"] == last
    assert ended.has_report


def test_ctrl_c_ends_the_run_with_a_checkpoint_and_no_process(history: History) -> None:
    check_end(history.interrupted, 2, 130)


@pytest.mark.long
def test_a_signal_ends_the_run_with_a_checkpoint_and_no_process(run: Run) -> None:
    output = Output(run)
    run.wait_for_step(2)
    check_end(end(run, output, signal.SIGTERM), 15, 143)


def test_a_killed_driver_leaves_no_orphan_and_the_run_resumes(history: History) -> None:
    reached = history.reached[-1]
    assert history.code == 0, history.resumed
    assert f"resumed after step {history.saved}" in history.resumed
    assert 0 <= reached - history.saved < 6  # every third step is saved, and the last one of these may be on its way
    assert steps_of(history.folder) == list(range(1, reached + 3))
    with sqlite3.connect(history.folder / "ledger.sqlite") as ledger:
        trained = ledger.execute("SELECT data_index FROM attempts WHERE state = 'trained' ORDER BY 1").fetchall()
        in_flight = ledger.execute("SELECT COUNT(*) FROM attempts WHERE state IN ('issued', 'scored')").fetchone()
    assert [index for (index,) in trained] == list(range(8 * (reached + 2)))
    assert in_flight == (0,)
    assert set(states(history.folder)) <= {"trained", "lost"}


def kill(run: Run, actor: str) -> None:
    find(run, actor)[0].kill()


@pytest.mark.long
def test_a_learner_that_dies_too_often_ends_the_run_with_its_name(tmp_path: Path, tiny_policy: Path) -> None:
    """The other rank waits in a collective for ever; the run must not wait with it."""
    with Run(tmp_path, tiny_policy, "learner.world_size=2", "supervision.max_restarts=0") as run:
        run.wait_for_step(1)
        kill(run, "LearnerWorker")
        output, _ = run.process.communicate(timeout=90)
        assert run.process.returncode == 1, output
        assert "ComponentDied: learner rank" in output
        assert "the learner's 0 of 0 restarts in 3600 s are spent (supervision)" in output
        assert json.loads((run.folder / "summary.json").read_text())["steps"] == run.steps()[-1]
        run.assert_nothing_is_left()


@pytest.mark.long
def test_the_only_engine_is_replaced_until_its_restarts_are_spent(tmp_path: Path, tiny_policy: Path) -> None:
    with Run(tmp_path, tiny_policy, "supervision.max_restarts=1") as run:
        run.wait_for_step(1)
        kill(run, "RolloutWorker")
        run.wait_for_step(run.steps()[-1] + 3)
        kill(run, "RolloutWorker")
        output, _ = run.process.communicate(timeout=90)
        assert run.process.returncode == 1, output
        assert "rollout worker 0 is taken out of the pool: rollout worker 0 died: " in output
        assert "(1 of 1 restarts in 3600 s)" in output
        assert "its 1 of 1 restarts in 3600 s are spent (supervision) and it is given up" in output
        assert "no rollout worker is left" in output
        assert run.steps() == list(range(1, run.steps()[-1] + 1))
        assert json.loads((run.folder / "summary.json").read_text())["groups"]["lost"] > 0
        run.assert_nothing_is_left()


def test_a_signal_while_the_components_start_ends_at_once(run: Run) -> None:
    deadline = time.monotonic() + 60
    while len(run.descendants()) < 4:
        assert time.monotonic() < deadline
        time.sleep(0.2)
    time.sleep(4)
    run.process.send_signal(signal.SIGTERM)
    output, _ = run.process.communicate(timeout=60)
    assert run.process.returncode == 143, output
    run.assert_nothing_is_left()
