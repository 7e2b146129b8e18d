"""Layouts in which public data sets write unit tests. The answer is one of these, as JSON or as Python:

==========================================================  ========================================================
``["assert f(1) == 2", ...]`` or ``{"tests": [...]}``       MBPP; each is a test. ``setup`` may go before them, and
                                                            ``entry_point`` may name the function
``{"inputs": [...], "outputs": [...]}``                     APPS, TACO, Eurus-2: what the program reads and prints.
                                                            With ``fn_name``: a function's arguments and its value
``[{"input": ..., "output": ...}, ...]``                    LiveCodeBench, DeepCoder, open-r1: the same, case by case;
                                                            also in ``test_cases`` of an object
base64 of zlib of a pickled text                            LiveCodeBench's private tests; nothing of it is unpickled
``{"test": "def check(candidate): ...", "entry_point": "f"}``  HumanEval, LeetCode (``Solution().f``)
Python                                                      HumanEval's and MBPP+'s column ``test``; functions and
                                                            classes of pytest (KodCode) and unittest
==========================================================  ========================================================

Without these keys, the row's columns ``test_setup_code``, ``test_imports``, ``entry_point`` and ``metadata`` count.
"""

from __future__ import annotations

import base64
import binascii
import json
import pickletools
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lpo_ray.verdict import BadAnswer
from lpo_ray.verifiers.sandbox.call_tests import CallTests
from lpo_ray.verifiers.unit_tests.program_text import code_before
from lpo_ray.verifiers.unit_tests.python_tests import python_tests

_TEST_COLUMNS = ("tests", "test", "test_list", "test_cases", "input_output", "private_test_cases", "verification_info")
"""columns that such tests stand in"""
_MOST_BYTES = 2**28
"""size of packed tests that is looked at"""
_PICKLED = ("PROTO", "FRAME", "STOP", "MEMOIZE", "PUT", "BINPUT", "LONG_BINPUT")
_PICKLED_TEXTS = ("UNICODE", "UNICODE8")
"""ends of the names of what a pickle of a text is made of"""
_FORMS = "a list of asserts or of cases, an object with tests, with inputs and outputs, or with test, or Python"
_IMPORTS = (
    "import bisect, collections, functools, heapq, itertools, math, operator, random, re, string, sys\n"
    "from bisect import *\nfrom collections import *\nfrom functools import *\nfrom heapq import *\n"
    "from itertools import *\nfrom math import *\nfrom typing import *\n"
)
"""what the graders of these data sets have imported before a function is defined"""


@dataclass(frozen=True, slots=True)
class PrintTests:
    """Tests by input and output, each one run of the program."""

    inputs: tuple[bytes, ...]
    outputs: tuple[bytes, ...]


def parsed_answer(answer: str, row: Mapping[str, Any], prompt: str = "") -> CallTests | PrintTests:
    """Parse the unit tests that an answer stands for; nothing is run. Code in the row's prompt, or else in ``prompt``,
    is the task's own: the program may go on with it. Raises BadAnswer.
    """
    try:
        return _tests_of(_loaded(answer), row, prompt)
    except (BadAnswer, SyntaxError, RecursionError, MemoryError) as error:
        others = [name for name in _TEST_COLUMNS if row.get(name) and answer not in (row[name], json.dumps(row[name]))]
        hint = f". The column {others[0]!r} may be meant: task.answer_column={others[0]}" if others else ""
        raise BadAnswer(f"the answer of unit_tests is {answer[:80]!r}: {error}{hint}") from error


def _loaded(answer: str) -> Any:  # noqa: ANN401 - any JSON
    """Read JSON, or JSON in a JSON text, as some data sets have it; or else return the text, which may be Python."""
    found: Any = _unpacked(answer)
    for _ in range(3):
        if isinstance(found, str):
            try:
                found = json.loads(found)
            except (ValueError, RecursionError):
                break
    return found


def _unpacked(answer: str) -> str:
    """Return the text that a pickle in zlib in base64 is of; any other answer as it is."""
    try:
        packed = base64.b64decode(answer.strip(), validate=True)
    except (binascii.Error, ValueError):
        return answer
    unpacker = zlib.decompressobj()
    try:
        pickled = unpacker.decompress(packed, _MOST_BYTES)
    except zlib.error:
        return answer
    if unpacker.unconsumed_tail:
        raise BadAnswer(f"packed tests of more than {_MOST_BYTES} bytes, which is all that is looked at")
    if not unpacker.eof:
        return answer
    try:
        steps = [(step.name, argument) for step, argument, _ in pickletools.genops(pickled)]
    except (ValueError, UnicodeDecodeError) as error:
        raise BadAnswer(f"packed, but no pickle: {error}; expected one of a text") from error
    texts = [argument for name, argument in steps if name.endswith(_PICKLED_TEXTS)]
    if len(texts) != 1 or any(name not in _PICKLED and not name.endswith(_PICKLED_TEXTS) for name, _ in steps):
        raise BadAnswer("a pickle of more than a text, which is not read; expected one of a text")
    return str(texts[0])


def _tests_of(found: Any, row: Mapping[str, Any], prompt: str) -> CallTests | PrintTests:  # noqa: ANN401 - any JSON
    if isinstance(found, str):
        found = {"test": found}
    if isinstance(found, list):
        found = {"tests": found}
    if not isinstance(found, dict):
        raise BadAnswer(f"no tests; expected {_FORMS}")
    tests = found.get("test_cases", found.get("tests"))
    if "test_cases" in found:
        tests = _loaded(tests) if isinstance(tests, str) else tests
        found = {**found, "tests": tests}
    if isinstance(tests, dict):
        return _tests_of(tests, row, prompt)
    if isinstance(found.get("input"), list) and isinstance(found.get("output"), list):  # CodeContests
        found = {**found, "inputs": found["input"], "outputs": found["output"]}
    if isinstance(tests, list) and tests and all(isinstance(case, dict) for case in tests):
        found = _of_cases(tests, found, row)
    if "inputs" in found:
        return _inputs_and_outputs(found)
    if tests is None and "test" not in found:
        raise BadAnswer(f"no tests; expected {_FORMS}")
    return _statements(found, row, prompt)


def _of_cases(cases: Sequence[Mapping[str, Any]], found: Mapping[str, Any], row: Mapping[str, Any]) -> dict[str, Any]:
    """Turn a list of cases into lists of inputs and outputs."""
    kinds: set[tuple[str, str]] = set()
    inputs: list[Any] = []
    for case in cases:
        if "input" not in case or "output" not in case:
            raise BadAnswer(f"a test case is {str(case)[:60]!r}; expected input and output")
        kind = str(case.get("type") or case.get("testtype") or "")
        name = case.get("fn_name") or _metadata(case).get("func_name")
        if not name and kind not in ("", "stdin", "stdin_stdout"):
            name = found.get("fn_name") or _metadata(row).get("func_name")
            if not name:
                raise BadAnswer(f"a test case of the type {kind!r} has no fn_name; expected the name of a function")
        kinds.add((kind, str(name or "")))
        is_list = kind == "function_call" and isinstance(case["input"], str)
        inputs.append(_value(case["input"]) if is_list and isinstance(_value(case["input"]), list) else case["input"])
    if len(kinds) > 1:
        raise BadAnswer(f"test cases of several kinds, {sorted(kinds)}; expected one")
    return {"inputs": inputs, "outputs": [case["output"] for case in cases], "fn_name": kinds.pop()[1]}


def _metadata(of: Mapping[str, Any]) -> Mapping[str, Any]:
    found = of.get("metadata")
    found = _value(found) if isinstance(found, str) else found
    return found if isinstance(found, Mapping) else {}


def _statements(found: Mapping[str, Any], row: Mapping[str, Any], prompt: str) -> CallTests:
    columns = [_text(row.get("test_imports") or []), _text(row.get("test_setup_code") or "")]
    setup = [_text(found["setup"])] if "setup" in found else columns
    entry_point = found.get("entry_point") or row.get("entry_point") or None
    tests = found.get("tests", found.get("test"))
    if not isinstance(tests, str) and not (isinstance(tests, list) and all(isinstance(test, str) for test in tests)):
        raise BadAnswer(f"tests are {str(tests)[:80]!r}; expected texts of Python")
    given = _text(found.get("given") or "")
    if entry_point and not given:
        given = code_before(_said(row.get("prompt")) or prompt, str(entry_point))
    return python_tests(setup, tests, str(entry_point) if entry_point else None, given)


def _said(prompt: Any) -> str:  # noqa: ANN401 - any JSON
    """Return the text of a prompt, which may be messages."""
    if isinstance(prompt, list):
        return "\n".join(str(message.get("content")) for message in prompt if isinstance(message, Mapping))
    return prompt if isinstance(prompt, str) else ""


def _inputs_and_outputs(found: Mapping[str, Any]) -> CallTests | PrintTests:
    inputs, outputs = found["inputs"], found.get("outputs")
    if not isinstance(inputs, list) or not isinstance(outputs, list) or len(inputs) != len(outputs):
        raise BadAnswer(
            f"inputs are {str(inputs)[:60]!r} and outputs {str(outputs)[:60]!r}; expected lists of one length"
        )
    if not inputs:
        raise BadAnswer("no test; expected at least one")
    name = found.get("fn_name")
    if name:
        if not isinstance(name, str) or not name.isidentifier():
            raise BadAnswer(f"fn_name is {str(name)[:60]!r}; expected the name of a function")
        tests = [("call", _arguments(given), _value(value)) for given, value in zip(inputs, outputs, strict=True)]
        return CallTests(tuple(tests), entry_point=name, given=_IMPORTS)
    texts = tuple(_text(each).encode() for each in outputs)
    if not any(text.strip() for text in texts):
        raise BadAnswer("every output is blank, so that a program which does nothing is right; expected something")
    return PrintTests(tuple(_text(each).encode() for each in inputs), texts)


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
    except (ValueError, RecursionError):
        return given
