"""The fraction of unit tests that the program in a response passes (LPO paper: the reward of the code task).

``layouts`` says what the tests may look like, ``program_text`` which part of the response is the program. A program
that is malformed, crashes, or takes too much of anything fails the tests that it does so in; tests that the time did
not suffice for are failed. An answer that is no set of tests, and a sandbox that does not work, leave the response
unscored.

What a program prints or returns is compared outside its sandbox: it never sees what was expected.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from lpo_ray.verdict import BadAnswer, Verdict
from lpo_ray.verifiers.sandbox.call_tests import CallTests, Marks, run_call_tests
from lpo_ray.verifiers.sandbox.limits import Limits
from lpo_ray.verifiers.sandbox.stdin_tests import Printed, run_for_each
from lpo_ray.verifiers.unit_tests.layouts import PrintTests, parsed_answer
from lpo_ray.verifiers.unit_tests.program_text import program_of

_NUMBER = re.compile(rb"[+-]?\d{0,300}(\.\d{0,300})?([eE][+-]?\d{1,3})?")


def unit_tests(response: str, answer: str, row: Mapping[str, Any], sandbox: Limits, prompt: str = "") -> Verdict:
    """Give the fraction of tests passed, within ``verifier.sandbox.seconds`` for all together. Raises BadAnswer."""
    tests = parsed_answer(answer, row, prompt)
    if isinstance(tests, CallTests):
        names = [tests.entry_point] if tests.entry_point else tests.names
        program = program_of(response, names, tests.given)
        total, marks = len(tests.tests), run_call_tests(program, tests, sandbox)
    else:
        program = program_of(response, reads=any(tests.inputs))
        total, marks = len(tests.inputs), _run_print_tests(program, tests, sandbox)
    if marks.unreadable is not None:
        raise BadAnswer(f"the answer of unit_tests is {answer[:80]!r}: {marks.unreadable}")
    if marks.trouble is not None:
        return Verdict.failed(marks.trouble)
    said = [f"{marks.passed} of {total} tests passed", *filter(None, [marks.why])]
    if isinstance(tests, CallTests) and tests.changes.may_not and marks.passed < total:
        names = ", ".join(tests.changes.may_not)
        said.append(f"changes in place to {names} do not count where a call's value is read: the tests compute with it")
    return Verdict.scored(marks.passed / total, "; ".join(said))


def _run_print_tests(source: str, tests: PrintTests, limits: Limits) -> Marks:
    runs, trouble = run_for_each(source, tests.inputs, limits)
    failed = [
        (number, run)
        for number, (run, expected) in enumerate(zip(runs, tests.outputs, strict=False))  # time may not suffice for all
        if run.exit_code != 0 or run.over_output or not _same_text(run.stdout, expected)
    ]
    why = _why(*failed[0]) if failed else "" if len(runs) == len(tests.inputs) else f"test {len(runs)}: out of time"
    return Marks(len(runs) - len(failed), why, trouble)


def _why(number: int, run: Printed) -> str:
    if run.over_output:
        return f"test {number}: prints too much"
    said = (run.stderr.strip().splitlines() or [b""])[-1][-100:].decode(errors="replace")
    return f"test {number}: exit code {run.exit_code}, printed {run.stdout[:60].decode(errors='replace')!r} {said}"


def _same_text(printed: bytes, expected: bytes) -> bool:
    """Compare two texts word for word, with decimals within 1e-6."""
    left, right = printed.split(), expected.split()
    return len(left) == len(right) and all(map(_same_word, left, right))


def _same_word(printed: bytes, expected: bytes) -> bool:
    if printed == expected:
        return True
    if not (b"." in expected and _NUMBER.fullmatch(printed) and _NUMBER.fullmatch(expected)):
        return False
    try:
        left, right = float(printed), float(expected)
    except ValueError:
        return False
    return abs(left - right) <= 1e-6 * max(1.0, abs(right))
