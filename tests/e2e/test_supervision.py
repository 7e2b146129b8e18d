"""Every role is killed in one run, one after the other: it goes on, and what it learned is what its groups say."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from lpo_ray.telemetry.log import read_log
from lpo_ray.training.ledger_audit import audit
from tests.support.live_runs import Run, find

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(900)]
ROLES = ("LearnerWorker", "VerifierService", "TargetBuilder", "RolloutWorker")


def test_every_role_dies_and_the_run_goes_on(tmp_path: Path, tiny_policy: Path) -> None:
    """A rank is killed twice, once right after the other ranks were started again; the steps between are those of an
    undisturbed run, since replay computes the last ones again from their recorded groups, bit for bit.
    """
    with Run(tmp_path, tiny_policy, "learner.world_size=2", "checkpoint.every=4", "run.steps=23") as run:
        reached = 2
        for role in (*ROLES, "LearnerWorker"):
            run.wait_for_step(reached)
            find(run, role)[-1].kill()
            reached = run.steps()[-1] + 3
        output, _ = run.process.communicate(timeout=600)
        assert run.process.returncode == 0, output
        assert run.steps() == list(range(1, 24))
        assert "the learner's ranks are started again: learner rank 1 died" in output
        assert output.count("the learner is back at step ") == 2
        assert "verifier service is back after" in output
        assert "target builder is back after" in output
        assert "rollout worker 0 is taken out of the pool" in output
        started = [line.text for line in read_log(run.folder / "log.jsonl") if "its engine is up" in line.text]
        assert ["without weights" in text for text in started] == [False, True]  # the second is brought all of them
        books = audit(run.folder)
        assert books.violations == ()
        assert books.attempts["trained"] == 23 * 8
        run.assert_nothing_is_left()
    command = [sys.executable, "-m", "lpo_ray", "replay", str(run.folder), "--step", "23"]
    replayed = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert replayed.returncode == 0, replayed.stderr


@pytest.mark.long
def test_a_rank_that_hangs_is_given_up_for_its_silence(tmp_path: Path, tiny_policy: Path) -> None:
    with Run(tmp_path, tiny_policy, "learner.world_size=2", "learner.silence_seconds=20", "run.steps=12") as run:
        run.wait_for_step(3)
        find(run, "LearnerWorker")[0].send_signal(signal.SIGSTOP)
        output, _ = run.process.communicate(timeout=300)
        assert run.process.returncode == 0, output
        assert "the learner's ranks are started again: learner rank" in output
        assert "is stopped" in output
        assert run.steps() == list(range(1, 13))
        assert audit(run.folder).violations == ()
        run.assert_nothing_is_left()
