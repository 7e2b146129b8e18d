"""A check in a process of its own: what crashes or hangs there is seen from outside, and ended."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import cast

from lpo_ray.records import Process
from lpo_ray.telemetry.monitor.process_state import describe
from lpo_ray.tools.doctor.findings import Finding, State

LINES = 6
"""lines of a process's last words"""
REST_SECONDS = 2.0
"""that they may take to be read"""


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """Result of a process."""

    exit_code: int | None
    """None: it was ended at the deadline; negative: a signal"""
    result: Mapping[str, object]
    """the JSON object on the last line of its standard output; empty when there is none"""
    evidence: str
    """what it was doing at the deadline, or its last words"""
    seconds: float

    @property
    def succeeded(self) -> bool:
        """Whether it ended by itself, with a result."""
        return self.exit_code == 0 and bool(self.result)


class Running:
    """Process of a Python module, with its descendants in one process group."""

    def __init__(self, module: Sequence[str], environment: Mapping[str, str]) -> None:
        """``module``: its name and arguments. ``environment`` is laid over this process's own."""
        self._started = time.monotonic()
        self._process = subprocess.Popen(
            [sys.executable, "-m", *module], env={**os.environ, **environment}, text=True, errors="replace",
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
        )  # fmt: skip

    def outcome(self, seconds: float) -> ProbeResult:
        """Wait for the end; after ``seconds`` look at what it does and end it."""
        doing = ""
        try:
            out, err = self._process.communicate(timeout=max(seconds, 0.0))
        except subprocess.TimeoutExpired:
            doing = describe(Process(self._process.pid, "", "", ()))
            self.end()
            out, err = self._said()
        self.end()  # what it has left running
        words = [line for line in err.splitlines() if line.strip()][-LINES:]
        evidence = "; ".join([*doing.splitlines(), *words])
        code = None if doing else self._process.returncode
        return ProbeResult(code, _last_object(out), evidence, time.monotonic() - self._started)

    def _said(self) -> tuple[str, str]:
        """Return what it has said, once it is killed; what left its group may hold the pipes for ever."""
        try:
            return self._process.communicate(timeout=REST_SECONDS)
        except subprocess.TimeoutExpired as held:
            out, err = ((part or b"").decode(errors="replace") for part in (held.output, held.stderr))
            return out, err

    def end(self) -> None:
        """Kill the process group."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)


def run(module: Sequence[str], seconds: float, environment: Mapping[str, str] | None = None) -> ProbeResult:
    """Run a module to its end."""
    return Running(module, environment or {}).outcome(seconds)


def failed(name: str, outcome: ProbeResult, seconds: float, expected: str, advice: str) -> Finding:
    """Make the finding for a process that did not succeed."""
    if outcome.exit_code is None:
        how = f"no end within {seconds:g} s"
    elif outcome.exit_code < 0:
        how = f"ended by {signal.Signals(-outcome.exit_code).name}"
    else:
        how = f"exit code {outcome.exit_code}"
    return Finding(name, State.fail, f"{how}: {outcome.evidence or 'it said nothing'}", expected, advice)


def _last_object(output: str) -> Mapping[str, object]:
    for line in reversed(output.splitlines()):
        with suppress(json.JSONDecodeError):
            if isinstance(found := json.loads(line), dict):
                return cast("Mapping[str, object]", found)
    return {}
