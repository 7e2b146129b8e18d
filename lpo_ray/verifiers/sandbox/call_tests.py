"""Tests that call a program's functions: the program in one sandbox, its tests in another, values between them.

What the tests expect never reaches the program, and what it answers reaches the tests as values of plain types
(``inside.wire``); so all that it can do to a test is to give an answer. Which names of the tests stand for values of
the program's is decided before it runs::

    inside.program_side  <- questions, answers ->  inside.tests_side  - a line per test ->  this process, which
    started both
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, BinaryIO

from lpo_ray.verifiers.sandbox.limits import Limits
from lpo_ray.verifiers.sandbox.process import READY, Program, code_of, kill, start
from lpo_ray.verifiers.sandbox.program import patiently, run_program, working_kind

_STARTED = b'{"started": true}\n'
"""what the tester says first"""
_LINES_KIB = 1024
"""least output limit of the tests' own process, which is not the program"""


Test = tuple[Any, ...]
"""``("code", text)`` or ``("named", "test_f" or "Class.test_f")``, which passes when it raises nothing; or
``("call", arguments, value)`` of the entry point. Plain values, which marshal can write
"""


@dataclass(frozen=True, slots=True)
class Changes:
    """Variables of the tests that the program may change in place also where a test reads what its call returns.

    Example: ``Changes(("nums",), ("original",))`` for ``original = nums[:]; k = f(nums)``.
    """

    may: tuple[str, ...] = ()
    copies: tuple[str, ...] = ()
    """those that must hold copies of their own for that"""
    may_not: tuple[str, ...] = ()
    """those that are given to the program, and stay as they were"""


@dataclass(frozen=True, slots=True)
class CallTests:
    """Tests in Python that call what the program defines.

    Example: ``CallTests((("code", "assert f(4) == 2"), ("code", "assert f(9) == 3")), names=("f",))``
    """

    tests: tuple[Test, ...]
    names: tuple[str, ...] = ()
    """names in them that are the program's; every other one is theirs, whatever the program defines"""
    entry_point: str | None = None
    """what the program must define; the tests may call it ``candidate``"""
    owner: str = "Solution"
    """class whose methods count as what the program defines too"""
    setup: str = ""
    """runs before the tests, on their side"""
    given: str = ""
    """the task's own code, such as its imports and its TreeNode: runs before the program and before ``setup``, on both
    sides; instances of its classes cross by value
    """
    changes: Changes = Changes()


@dataclass(frozen=True, slots=True)
class Marks:
    """Results of the tests. With ``trouble`` or ``unreadable`` the rest is void."""

    passed: int
    why: str
    """the first one did not pass, if one did not"""
    trouble: str | None = None
    """why a sandbox failed, if one did"""
    unreadable: str | None = None
    """why the tests themselves cannot run, if so"""


def run_call_tests(source: str, calls: CallTests, limits: Limits) -> Marks:
    """Run all tests within Limits.seconds. A test in which the program ends fails; the next ones get a new process of
    it, whose start is the program's own time.
    """
    left = limits.seconds
    first, passed, why = 0, 0, ""
    while first < len(calls.tests) and left > 0:
        rest = replace(calls, tests=calls.tests[first:])
        attempt = partial(_run, source, rest, replace(limits, seconds=left).restarted(first > 0))
        lines, trouble, starting, ran = patiently(attempt, lambda found: found[1])
        left -= ran + (starting if first else 0.0)
        if trouble is not None:
            if first > 0 and left <= 0:  # the time was spent by the program
                break
            return Marks(passed, why, trouble)
        if "unreadable" in lines[-1]:
            return Marks(passed, why, unreadable=lines[-1]["unreadable"])
        marks = [line for line in lines if "test" in line]
        passed += sum(line["passed"] for line in marks)
        failed = [f"test {first + line['test']}: {line['why']}" for line in marks if not line["passed"]]
        why = why or (failed[0] if failed else "")
        if "failed" in lines[-1]:
            return Marks(passed, why or lines[-1]["failed"])
        first += len(marks)
        if len(marks) < len(rest.tests) and not (marks and marks[-1]["lost"]):  # it ended the tester, or the time did
            why = why or f"test {first}: out of time or memory"
            first += 1
    return Marks(passed, why or ("" if passed == len(calls.tests) else f"test {first}: out of time"))


def _run(source: str, calls: CallTests, limits: Limits) -> tuple[list[dict[str, Any]], str | None, float, float]:
    """Return the tester's lines, the first of which says that the program's sandbox works, or what trouble there was;
    seconds until both sandboxes worked and after.
    """
    launched = time.monotonic()
    most = limits.output_kib * 1024
    kind = working_kind(limits.kind)
    with _pipe() as (asked, ask), _pipe() as (answers, answer), open(os.memfd_create("stderr"), "w+b") as words:
        program = Program(code_of("program_side"), (source, calls.given, most), "program_side.py", ("wire",))
        try:
            solver = start(kind, program, limits, asked.fileno(), answer.fileno(), words.fileno())
        except OSError as error:
            return [], f"the {kind} sandbox does not start: {error}", time.monotonic() - launched, 0.0
        try:
            asked.close()
            answer.close()
            fds = (answers.fileno(), ask.fileno())
            argument = {
                "given": calls.given, "setup": calls.setup, "tests": calls.tests, "names": list(calls.names),
                "entry_point": calls.entry_point, "owner": calls.owner, "changed": calls.changes.may,
                "copies": calls.changes.copies, "fds": fds, "most": most, "ready": READY,
            }  # fmt: skip
            room = replace(limits, output_kib=max(limits.output_kib, _LINES_KIB))
            tester = Program(code_of("tests_side"), argument, "tests_side.py", ("wire", "link", "in_place", "judging"))
            outcome = run_program(tester, b"", room, fds, begins_with=_STARTED)
        finally:
            kill(solver)
        starting = time.monotonic() - launched - outcome.seconds
        lines = [json.loads(line) for line in outcome.stdout.splitlines(keepends=True) if line.endswith(b"\n")]
        if outcome.trouble is not None:
            return [], outcome.trouble, starting, outcome.seconds
        if not lines or not lines[0]["started"]:
            words.seek(0)
            said = (
                words.read().decode(errors="replace").strip()[-300:] or f"not ready within {limits.start_seconds:g} s"
            )
            return [], f"the program's {kind} sandbox does not start: {said}", starting, outcome.seconds
        return lines, None, starting, outcome.seconds


@contextlib.contextmanager
def _pipe() -> Iterator[tuple[BinaryIO, BinaryIO]]:
    read, write = os.pipe()
    with open(read, "rb") as reader, open(write, "wb") as writer:
        yield reader, writer
