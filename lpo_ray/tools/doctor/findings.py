"""Findings of checks, and how a check is run: with a deadline, and never with a traceback.

A check that hangs or breaks is itself a finding: FAIL, with where it stood.
"""

from __future__ import annotations

import queue
import sys
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from importlib import import_module
from pathlib import Path


class State(Enum):
    """Severity: nothing; a run works, but worse than it could; a run will not work."""

    ok = "OK"
    warn = "WARN"
    fail = "FAIL"


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the table. Example: ``Finding("swap", State.ok, "none", "none in use")``"""

    name: str
    state: State
    found: str
    expected: str
    advice: str = ""
    """what to do; empty when it is OK"""


@dataclass(frozen=True, slots=True)
class Surroundings:
    """Places where a run would write."""

    run_dir: Path
    cache_dir: Path
    temp_dir: Path


@dataclass(frozen=True, slots=True)
class Deferred:
    """Check that is imported when it is run, so that a package that is missing or broken is a finding of it alone."""

    module: str
    """file of this folder"""
    name: str

    def __call__(self, surroundings: Surroundings) -> Sequence[Finding]:
        """Import and run."""
        return getattr(import_module(f"{__package__}.{self.module}"), self.name)(surroundings)


@dataclass(frozen=True, slots=True)
class Check:
    """Row of the table of checks."""

    name: str
    run: Callable[[Surroundings], Sequence[Finding]]
    seconds: float
    """deadline"""
    slow: bool = False
    """left out by --quick"""


def judge(name: str, problem: State | None, found: str, expected: str, advice: str) -> Finding:
    """Judge by ``problem``: OK without one, and the advice is then dropped."""
    if problem is None:
        return Finding(name, State.ok, found, expected)
    return Finding(name, problem, found, expected, advice)


def examine(checks: Sequence[Check], surroundings: Surroundings, *, quick: bool) -> list[Finding]:
    """Run all checks, in order; with ``quick``, only those that take no process and no engine."""
    return [finding for check in checks if not (quick and check.slow) for finding in guarded(check, surroundings)]


def guarded(check: Check, surroundings: Surroundings) -> Sequence[Finding]:
    """Run a check on a thread of its own, which is left behind when it hangs (a dead network file system, a driver that
    does not answer): it cannot be ended from outside.
    """
    results: queue.SimpleQueue[Sequence[Finding] | BaseException] = queue.SimpleQueue()

    def work() -> None:
        try:
            results.put(check.run(surroundings))
        except BaseException as error:  # noqa: BLE001 - the finding below
            results.put(error)

    thread = threading.Thread(target=work, name=f"doctor: {check.name}", daemon=True)
    thread.start()
    try:
        result = results.get(timeout=check.seconds)
    except queue.Empty:
        found = f"no answer within {check.seconds:g} s; it stands at {_position(thread)}"
        return [broken(check.name, found, "what it asks (disk, driver, network or name service) does not answer")]
    return [_broke(check.name, result)] if isinstance(result, BaseException) else result


def _broke(name: str, error: BaseException) -> Finding:
    cause = root(error)
    frames = traceback.extract_tb(cause.__traceback__)
    where = f" at {_place(frames[-1].filename, frames[-1].lineno)}" if frames else ""
    missing = isinstance(error, ImportError)
    advice = "install what it names, or make setup" if missing else "the check itself broke; report this"
    return broken(name, f"{type(cause).__name__}: {cause}{where}", advice)


def root(error: BaseException) -> BaseException:
    """Return the error that ``error`` was raised from, at the very start."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def broken(name: str, found: str, advice: str) -> Finding:
    """Make the finding of a check that came to no end."""
    return Finding(name, State.fail, found, "the check ends with a finding", advice)


def passed(groups: Mapping[str, Sequence[Finding]]) -> bool:
    """Tell whether nothing fails."""
    return not failures(groups)


def failures(groups: Mapping[str, Sequence[Finding]]) -> list[str]:
    """List the checks that fail, each with its group."""
    return [
        f"{finding.name} ({group})"
        for group, findings in groups.items()
        for finding in findings
        if finding.state is State.fail
    ]


def _position(thread: threading.Thread) -> str:
    frame = sys._current_frames().get(thread.ident or 0)
    return _place(frame.f_code.co_filename, frame.f_lineno) if frame else "no frame"


def _place(file: str, line: int | None) -> str:
    return f"{'/'.join(Path(file).parts[-2:])}:{line}"
