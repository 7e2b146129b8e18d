"""A process that is stopped from outside: the run says who it waits for, so does ``lpo-ray why``, and it goes on."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from tests.support.live_runs import Run

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(400)]
COLUMNS = re.compile(r"^\d\d:\d\d:\d\d (\S+ ){4}")
"""in front of each text, see telemetry.log"""


class Output:
    """The texts of what a run has printed so far; read all the time, since a full pipe would stop the run."""

    def __init__(self, run: Run) -> None:
        self.lines: list[str] = []
        self._run = run
        threading.Thread(target=self._read, daemon=True).start()

    @property
    def text(self) -> str:
        return "\n".join(self.lines)

    def wait_for(self, pattern: str, seconds: float, after: int = 0) -> str:
        """The line that matches, of those from ``after`` on."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            found = next((line for line in self.lines[after:] if re.search(pattern, line)), None)
            if found is not None:
                return found
            time.sleep(0.02)
        raise AssertionError(f"no line matches {pattern!r} in\n{self.text}")

    def _read(self) -> None:
        for line in self._run.process.stdout:
            self.lines.append(COLUMNS.sub("", line.rstrip("\n")))


def why(folder: Path) -> str:
    finished = subprocess.run(
        [sys.executable, "-m", "lpo_ray", "why", str(folder)], capture_output=True, text=True, timeout=100, check=False
    )
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


def find(run: Run, actor: str) -> psutil.Process:
    return next(process for process in run.descendants() if f"ray::{actor}" in " ".join(process.cmdline()))


@pytest.mark.parametrize(
    ("actor", "name", "doing"),
    [
        ("LearnerWorker", "learner rank 0", r"learner rank 0, [a-z_0-9 ]+ since \d+ s"),
        pytest.param(
            "RolloutWorker",
            "rollout worker 0",
            r"rollout worker 0, \d+ groups?, oldest train-\d{8} attempt \d+ since",
            marks=pytest.mark.long,
        ),
    ],
)
def test_who_is_stopped_is_named_and_the_run_goes_on(
    actor: str, name: str, doing: str, tmp_path: Path, tiny_policy: Path
) -> None:
    """The victim is stopped when a step is told, which is when sampling begins."""
    with Run(tmp_path, tiny_policy, "telemetry.stall_seconds=3") as run:
        output = Output(run)
        output.wait_for(r"^step 1/", 150)
        victim = find(run, actor)  # takes a while, so it is done a step ahead
        output.wait_for(r"^step [3-9]/", 60)
        before = len(output.lines)
        victim.send_signal(signal.SIGSTOP)
        output.wait_for(r"^nothing has moved for \d+ s\. The run waits for$", 20, before)
        output.wait_for(rf"^[a-z]+: \d+ s, .*{name}", 5, before)
        output.wait_for(rf"^{doing}.*: on [\d.]+, process {victim.pid} is stopped", 15, before)
        text = why(run.folder)
        assert "quickstart: running, step" in text
        assert re.search(rf"^waits for [a-z]+ since \d+ s: .*{name}", text, re.MULTILINE), text
        assert re.search(rf"^  {doing}", text, re.MULTILINE), text
        assert f"process {victim.pid} is stopped, " in text
        before = len(output.lines)
        victim.send_signal(signal.SIGCONT)
        output.wait_for(r"^continued after \d+ s$", 20, before)
        output.wait_for(r"^step \d+/", 60, before)
        run.process.send_signal(signal.SIGTERM)
        assert run.process.wait(timeout=90) == 143, output.text
        assert "quickstart: ended, step" in why(run.folder)
        run.assert_nothing_is_left()
