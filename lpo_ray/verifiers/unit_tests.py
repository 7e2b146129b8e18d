"""The fraction of unit tests that the program in a response passes (LPO paper: the reward of the code task).

The program is the last ```` ```python ```` block, or the last block of any kind, or all of the response. The answer is
JSON, as the common datasets have it:

===============================================================  ================================================
``["assert f(1) == 2", ...]`` or ``{"tests": [...]}``             MBPP; each is a test. ``setup`` may go before them,
                                                                  and ``entry_point`` may name the function
``{"inputs": [...], "outputs": [...]}``                           APPS, TACO: what the program reads and prints
``{"inputs": [...], "outputs": [...], "fn_name": "f"}``           the same with a function's arguments and value
``{"test": "def check(candidate): ...", "entry_point": "f"}``     HumanEval: one test, all of ``check``
===============================================================  ================================================

Without these keys, the row's columns ``test_setup_code``, ``test_imports`` and ``entry_point`` count. A program that is
malformed, crashes, or takes too much of anything fails the tests that it does so in; tests that the time did not
suffice for are failed. An answer of another form, and a sandbox that does not work, leave the response unscored.

What a program prints or returns is compared outside its sandbox: it never sees what was expected.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lpo_ray.verdict import BadAnswer, Verdict
from lpo_ray.verifiers.sandbox.call_tests import CallTests, Marks, run_call_tests
from lpo_ray.verifiers.sandbox.limits import Limits
from lpo_ray.verifiers.sandbox.stdin_tests import Printed, run_for_each

_FENCE = re.compile(r"^[ \t]*```[ \t]*([\w+-]*)[^\n]*$", re.MULTILINE)
_NUMBER = re.compile(rb"[+-]?\d{0,300}(\.\d{0,300})?([eE][+-]?\d{1,3})?")
_PYTHON = ("python", "python3", "py")
_FORMS = "a list of asserts, or an object with tests, with inputs and outputs, or with test"


@dataclass(frozen=True, slots=True)
class PrintTests:
    """Tests by input and output, each one run of the program."""

    inputs: tuple[bytes, ...]
    outputs: tuple[bytes, ...]


def unit_tests(response: str, answer: str, row: Mapping[str, Any], sandbox: Limits) -> Verdict:
    """Give the fraction of tests passed, within ``verifier.sandbox.seconds`` for all together. Raises BadAnswer."""
    tests = parsed_answer(answer, row)
    program = program_of(response)
    if isinstance(tests, CallTests):
        total, marks = len(tests.tests), run_call_tests(program, tests, sandbox)
    else:
        total, marks = len(tests.inputs), _run_print_tests(program, tests, sandbox)
    if marks.trouble is not None:
        return Verdict.failed(marks.trouble)
    return Verdict.scored(
        marks.passed / total, f"{marks.passed} of {total} tests passed{marks.why and '; '}{marks.why}"
    )


def program_of(response: str) -> str:
    """Find the Python source in a response. A block that is not closed goes to the end."""
    blocks: list[tuple[str, str]] = []
    opened: re.Match[str] | None = None
    for fence in _FENCE.finditer(response):
        if opened is None:
            opened = fence
        elif not fence[1]:
            blocks.append((opened[1].lower(), response[opened.end() + 1 : fence.start()]))
            opened = None
    if opened is not None:
        blocks.append((opened[1].lower(), response[opened.end() + 1 :]))
    python = [text for language, text in blocks if language in _PYTHON]
    return (python or [text for _, text in blocks] or [response])[-1]


def parsed_answer(answer: str, row: Mapping[str, Any]) -> CallTests | PrintTests:
    """Parse the unit tests that an answer stands for. Raises BadAnswer."""
    try:
        given = json.loads(answer)
    except ValueError as error:
        raise BadAnswer(f"the answer of unit_tests is {answer[:80]!r}, no JSON ({error}); expected {_FORMS}") from error
    if isinstance(given, list):
        given = {"tests": given}
    if not isinstance(given, dict) or not {"tests", "inputs", "test"} & given.keys():
        raise BadAnswer(f"the answer of unit_tests is {answer[:80]!r}; expected JSON of {_FORMS}")
    found = _inputs_and_outputs(given) if "inputs" in given else _statements(given, row)
    if not (found.tests if isinstance(found, CallTests) else found.inputs):
        raise BadAnswer(f"the answer of unit_tests is {answer[:80]!r}, which has no test; expected at least one")
    return found


def _statements(given: Mapping[str, Any], row: Mapping[str, Any]) -> CallTests:
    columns = [_text(row.get("test_imports") or []), _text(row.get("test_setup_code") or "")]
    setup = [_text(given["setup"])] if "setup" in given else columns
    entry_point = given.get("entry_point") or row.get("entry_point") or None
    tests = given.get("tests", given.get("test"))
    if isinstance(tests, str):
        before, tests = _split(tests)
        setup.append(before)
    if not isinstance(tests, list) or not all(isinstance(test, str) for test in tests):
        raise BadAnswer(f"the tests in the answer of unit_tests are {str(tests)[:80]!r}; expected texts of Python")
    code = "\n".join(setup)
    checks = any(isinstance(node, ast.FunctionDef) and node.name == "check" for node in _parsed(code).body)
    if checks and entry_point and not any("check(" in test for test in tests):
        tests = [*tests, "check(candidate)"]
    for test in tests:
        _parsed(test)
    return CallTests(code, tuple(tests), str(entry_point) if entry_point else None)


def _split(code: str) -> tuple[str, list[str]]:
    """Split a text into preparation and tests: each assert and call at its top is a test of its own."""
    before: list[str] = []
    tests: list[str] = []
    for node in _parsed(code).body:
        is_test = isinstance(node, ast.Assert) or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Call))
        (tests if is_test else before).append(ast.unparse(node))
    return "\n".join(before), tests


def _parsed(code: str) -> ast.Module:
    try:
        return ast.parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise BadAnswer(f"a test in the answer of unit_tests is {code[:80]!r}, no Python: {error}") from error


def _inputs_and_outputs(given: Mapping[str, Any]) -> CallTests | PrintTests:
    inputs, outputs = given["inputs"], given.get("outputs")
    if not isinstance(inputs, list) or not isinstance(outputs, list) or len(inputs) != len(outputs):
        raise BadAnswer(
            f"the answer of unit_tests has {str(inputs)[:60]!r} as inputs and {str(outputs)[:60]!r} as outputs; "
            "expected lists of one length"
        )
    name = given.get("fn_name")
    if not name:
        return PrintTests(
            tuple(_text(each).encode() for each in inputs), tuple(_text(each).encode() for each in outputs)
        )
    if not isinstance(name, str) or not name.isidentifier():
        raise BadAnswer(f"the answer of unit_tests has fn_name {str(name)[:60]!r}; expected the name of a function")
    pairs = zip(map(_arguments, inputs), map(_value, outputs), strict=True)
    tests = tuple(f"assert _accepts(candidate(*{arguments!r}), {value!r})" for arguments, value in pairs)
    return CallTests("from math import inf, nan", tests, name)


def _text(value: Any) -> str:  # noqa: ANN401 - any JSON
    return "\n".join(map(_text, value)) if isinstance(value, list) else str(value)


def _arguments(given: Any) -> list[Any]:  # noqa: ANN401 - any JSON
    """Read a call's arguments: a list of them, or a text with one in JSON on each line."""
    if isinstance(given, str):
        return [_value(line) for line in given.splitlines() if line.strip()]
    return given if isinstance(given, list) else [given]


def _value(given: Any) -> Any:  # noqa: ANN401 - any JSON
    try:
        return json.loads(given) if isinstance(given, str) else given
    except ValueError:
        return given


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
