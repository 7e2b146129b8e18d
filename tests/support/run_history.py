"""The life of one run, for all that is asked of it: a rank is stopped and goes on, Ctrl-C, a resume, its driver is
killed, another resume, and its end.
"""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from lpo_ray.training.checkpoint import list_checkpoints
from tests.support.live_runs import DIGITS, Run, find

OPTIONS = (DIGITS, "learner.lr=1e-3", "run.resume=auto", "telemetry.stall_seconds=3")
COLUMNS = re.compile(r"^\d\d:\d\d:\d\d (\S+ ){4}")
"""in front of each text, see telemetry.log"""


class Output:
    """The texts of what a run has printed so far; read all the time, since a full pipe would stop the run."""

    def __init__(self, run: Run) -> None:
        self.lines: list[str] = []
        self._run = run
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def text(self) -> str:
        return "\n".join(self.lines)

    def wait_for(self, pattern: str, seconds: float, after: int = 0) -> None:
        """Wait for a line that matches, of those from ``after`` on."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if any(re.search(pattern, line) for line in self.lines[after:]):
                return
            time.sleep(0.02)
        raise AssertionError(f"no line matches {pattern!r} in\n{self.text}")

    def to_the_end(self, seconds: float) -> str:
        """Wait for the end of the run; all that it has printed."""
        self._run.process.wait(timeout=seconds)
        self._reader.join(timeout=10)
        return self.text

    def _read(self) -> None:
        for line in self._run.process.stdout:
            self.lines.append(COLUMNS.sub("", line.rstrip("\n")))


def why(folder: Path) -> str:
    finished = subprocess.run(
        [sys.executable, "-m", "lpo_ray", "why", str(folder)], capture_output=True, text=True, timeout=100, check=False
    )
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


@dataclass
class Pause:
    """What was said while a process of a run was stopped, and that the run went on."""

    victim: int
    told: str
    """by the run"""
    why: str
    """by ``lpo-ray why``"""


def pause(run: Run, output: Output, actor: str) -> Pause:
    """Stop the first process of ``actor`` when a step is told, which is when sampling begins, until it is named."""
    output.wait_for(r"^step 1/", 300)
    victim = find(run, actor)[0]  # takes a while, so it is done a step ahead
    output.wait_for(r"^step [3-9]/", 120)
    before = len(output.lines)
    victim.send_signal(signal.SIGSTOP)
    output.wait_for(r"^nothing has moved for \d+ s\. The run waits for$", 20, before)
    output.wait_for(rf"process {victim.pid} is stopped", 20, before)
    text, after = why(run.folder), len(output.lines)
    victim.send_signal(signal.SIGCONT)
    output.wait_for(r"^continued after \d+ s$", 20, after)
    output.wait_for(r"^step \d+/", 60, after)
    return Pause(victim.pid, "\n".join(output.lines[before:after]), text)


@dataclass
class Ended:
    """What was there once a run had ended at a signal. Its processes were all gone."""

    code: int
    output: str
    steps: list[int]
    checkpoints: list[str]
    summary: dict[str, object]
    has_report: bool
    why: str


def end(run: Run, output: Output, number: int) -> Ended:
    """Send a signal, and wait for the end that it brings."""
    assert len(run.descendants()) > 5
    run.process.send_signal(number)
    text = output.to_the_end(90)
    run.assert_nothing_is_left()
    return Ended(
        run.process.returncode,
        text,
        run.steps(),
        [path.name for path in list_checkpoints(run.folder / "checkpoints")],
        json.loads((run.folder / "summary.json").read_text()),
        (run.folder / "report.html").exists(),
        why(run.folder),
    )


@dataclass
class History:
    """A run that has ended at last, and what was seen on the way."""

    folder: Path
    paused: Pause
    """when rank 0 was stopped"""
    interrupted: Ended
    reached: list[int]
    """steps that were done when the driver was killed; no process was left"""
    saved: int
    """step of the newest checkpoint that was whole then"""
    resumed: str
    """what the last part of it printed"""
    code: int

    @property
    def steps(self) -> int:
        """Steps of the run."""
        return self.reached[-1] + 2


def live(folder: Path, policy: Path) -> History:
    """Have a run live through all of it. It is resumed twice: after Ctrl-C, and after the driver was killed."""
    with Run(folder, policy, *OPTIONS) as run:
        output = Output(run)
        paused = pause(run, output, "LearnerWorker")
        interrupted = end(run, output, signal.SIGINT)
    with Run(folder, policy, *OPTIONS) as run:
        run.wait_for_step(interrupted.steps[-1] + 4)
        run.process.kill()
        run.process.wait()
        run.assert_nothing_is_left()
        reached, saved = run.steps(), list_checkpoints(run.folder / "checkpoints")[-1].name
    with Run(folder, policy, *OPTIONS, f"run.steps={reached[-1] + 2}") as run:
        resumed, _ = run.process.communicate(timeout=200)
        run.assert_nothing_is_left()
    return History(
        run.folder, paused, interrupted, reached, int(saved.removeprefix("step_")), resumed, run.process.returncode
    )
