"""Agents on the real stack: an engine, the endpoint, an agent's process and the driver are killed in the middle."""

from __future__ import annotations

import re
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import pytest

from lpo_ray.policy.tokenizer import Tokenizer
from lpo_ray.telemetry.samples import read_step
from lpo_ray.training.ledger_audit import audit
from tests.support.e2e_agents import MARKS, share_of_digits
from tests.support.live_runs import Run, find, finish
from tests.support.watched_calls import Watched, watching

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(600)]
AGENT = f"{Path(__file__).parents[1]}/support/e2e_agents.py"
OPTIONS = (
    f"task.agent={AGENT}:slow", "sampling.max_tokens=8", "learner.lr=1e-3", "pipeline.groups_per_step=2",
    "rollout.num_workers=2", "environment.processes=2", "verifier.num_processes=1", "supervision.backoff_seconds=0.1",
)  # fmt: skip


@dataclass
class Killed:
    """A run that lost everything once, and came to its end."""

    folder: Path
    first: str
    """what the terminal showed until the driver was killed"""
    steps: int
    watched: Watched


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory, tiny_policy: Path) -> Iterator[Killed]:
    """Kill one after the other, each while agents are between two calls; then resume."""
    folder, marks = tmp_path_factory.mktemp("runs"), tmp_path_factory.mktemp("marks")
    with pytest.MonkeyPatch.context() as patch, watching(folder / "quickstart") as watched:
        patch.setenv(MARKS, str(marks))
        with Run(folder, tiny_policy, *OPTIONS) as run:
            run.wait_for_step(1)
            for process in (lambda: find(run, "RolloutWorker")[0], lambda: find(run, "EndpointService")[0],
                            lambda: psutil.Process(_marked(marks))):  # fmt: skip
                _marked(marks)
                process().kill()
                run.wait_for_step(len(run.steps()) + 2)  # one of them began after it
            _marked(marks)
            for process in run.descendants():
                process.kill()
            first = run.process.communicate(timeout=60)[0]
            run.assert_nothing_is_left()
        steps = len(run.steps()) + 1
        output = finish(run := Run(folder, tiny_policy, *OPTIONS, "run.resume=auto", f"run.steps={steps}"))
        assert run.process.returncode == 0, output
        run.assert_nothing_is_left()
        yield Killed(run.folder, first, steps, watched)


def _marked(folder: Path) -> int:
    """Wait until an agent is between two calls; returns its process."""
    deadline = time.monotonic() + 60
    while True:
        for mark in folder.iterdir():
            pid = int(mark.name.partition("-")[0])
            if psutil.pid_exists(pid):
                return pid
        assert time.monotonic() < deadline, "no agent came to its second call"
        time.sleep(0.02)


def test_the_books_balance_and_every_loss_has_its_cause(killed: Killed) -> None:
    assert audit(killed.folder).violations == ()
    with sqlite3.connect(killed.folder / "ledger.sqlite") as ledger:
        reasons = [reason for (reason,) in ledger.execute("SELECT reason FROM attempts WHERE state = 'lost'")]
    assert any("exit code -9" in reason for reason in reasons), reasons
    assert any("on its way when the run ended" in reason for reason in reasons), reasons
    causes = ("exit code -9", "on its way when the run ended", "did not outlive the endpoint")
    assert all(any(cause in reason for cause in causes) for reason in reasons), reasons
    assert "is taken out of the pool" in killed.first
    assert "endpoint service is replaced" in killed.first


def test_every_token_that_was_trained_was_drawn_by_an_engine(killed: Killed, tiny_policy: Path) -> None:
    """Behind its context, with its log-prob and its weights version, by the record; and the verdict is of these."""
    tokenizer, seen = Tokenizer.load(str(tiny_policy)), 0
    for path in sorted((killed.folder / "samples").glob("step_*.parquet")):
        for target in read_step(path).targets:
            group = target.group
            for k, (response, reward) in enumerate(zip(group.responses, target.scored.rewards, strict=True)):
                conversation = response.conversation
                assert conversation is not None
                assert [len(s.token_ids) > 0 for s in response.segments] == [True, True]
                turns = killed.watched.check(group, k)
                assert len(turns) == 4
                aside = tuple(tokenizer.encode("*\n").tolist())
                trunk = [turn[1] for turn in turns if turn[0][-len(aside) :] != aside]
                assert len(trunk) == 3
                said = "".join(tokenizer.decode(np.array(ids)) for ids in trunk)
                assert 0.0 <= float(reward) <= 1.0
                assert float(reward) == pytest.approx(share_of_digits(said), abs=1e-6)
                seen += 1
    assert seen == 2 * 4 * killed.steps


def test_what_was_answered_was_not_drawn_again(killed: Killed) -> None:
    """Of an attempt that was lost with its agents' process or the driver: the next one that came to its end has the
    same turns, but for those of weights that the run went back from.
    """
    log = (killed.folder / "log.jsonl").read_text()
    resumed = int(re.findall(r"resumed after step (\d+)", log)[-1])
    calls, kept = killed.watched.calls, 0
    for (prompt_id, attempt, k), before in calls.items():
        after = calls.get((prompt_id, attempt + 1, k), {})
        if len(after) == 4:
            valid = {turn for turn in before.values() if max(turn[3]) <= resumed}
            assert valid <= set(after.values())
            kept += len(valid)
    assert kept


def test_no_key_is_in_a_file_of_the_run(killed: Killed) -> None:
    assert "lpo-session" not in killed.first
    for path in killed.folder.rglob("*"):
        assert not path.is_file() or b"lpo-session" not in path.read_bytes(), path


def test_the_run_that_was_killed_is_the_run_that_was_not(killed: Killed) -> None:
    """All steps from the first weights on give the same weights, bit for bit, and no agent runs."""
    steps = ("--step", str(killed.steps), "--from-start")
    command = [sys.executable, "-m", "lpo_ray", "replay", str(killed.folder), *steps]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.endswith(", equal\n")
