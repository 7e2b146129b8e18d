"""Layouts of public data sets of code, as rows have them (own wording), each with a right and a wrong response."""

from __future__ import annotations

import base64
import contextlib
import json
import pickle
import zlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lpo_ray.verdict import BadAnswer, Verdict
from lpo_ray.verifiers.sandbox.call_tests import CallTests
from lpo_ray.verifiers.sandbox.limits import Limits
from lpo_ray.verifiers.unit_tests.layouts import PrintTests, parsed_answer
from lpo_ray.verifiers.unit_tests.verifier import unit_tests

READS = "```python\nn = int(input())\nprint(n + 1)\n```"
READS_WRONG = "```python\nn = int(input())\nprint(n + 2)\n```"
FUNCTION = "Here:\n```python\ndef inc(n):\n    return n + 1\n```"
FUNCTION_WRONG = "Here:\n```python\ndef inc(n):\n    return n + 2\n```"
METHOD = "```python\nclass Solution:\n    def inc(self, n: int) -> int:\n        return n + 1\n```"
METHOD_WRONG = "```python\nclass Solution:\n    def inc(self, n: int) -> int:\n        return n\n```"
DOUBLES = """```python
class Solution:
    def double(self, xs: List[int], k: int) -> List[int]:
        return [k * x for x in xs]
```"""
DOUBLES_WRONG = DOUBLES.replace("k * x", "k + x")
LISTS = """```python
class Solution:
    def backwards(self, head: Optional[ListNode]) -> Optional[ListNode]:
        before = None
        while head:
            head.next, before, head = before, head, head.next
        return before
```"""
LISTS_WRONG = LISTS.replace("return before", "return head")
STACK = """```python
class Stack:
    def __init__(self):
        self.items = []
    def push(self, x):
        self.items.append(x)
    def pop(self):
        return self.items.pop()
```"""
STACK_WRONG = STACK.replace("self.items.pop()", "self.items.pop(0)")
HUMANEVAL_PROMPT = (
    'from typing import List\n\n\ndef inc(n: int) -> int:\n    """ One more.\n    >>> inc(1)\n    2\n    """\n'
)
HUMANEVAL = (
    "\n\nMETADATA = {'author': 'x', 'dataset': 'test'}\n\n\ndef check(candidate):\n    assert candidate(1) == 2\n"
    "    assert candidate(5) == 6\n"
)
INC_ROW = {"entry_point": "inc", "prompt": HUMANEVAL_PROMPT}
CODE_PROMPT = (
    'def shift(text: str):\n    """ Shift by one. """\n    return \'\'.join(chr(ord(ch) + 1) for ch in text)\n\n\n'
    'def unshift(text: str):\n    """ Undo shift. """\n'
)
CODE_TESTS = "def check(candidate):\n    for text in ('abc', 'Hello'):\n        assert candidate(shift(text)) == text\n"
LEETCODE = """
class ListNode:
    def __init__(self, val=0, next=None):
        self.val = val
        self.next = next

def list_node(values):
    head = None
    for value in reversed(values):
        head = ListNode(value, head)
    return head

def is_same_list(p, q):
    while p and q:
        if p.val != q.val:
            return False
        p, q = p.next, q.next
    return p is None and q is None
"""
KODCODE = (
    "from solution import inc\n\ndef test_one():\n    assert inc(1) == 2\n\ndef test_more():\n    assert inc(5) == 6\n"
)
MBPP_PLUS = """import numpy as np
from math import inf

def is_floats(x) -> bool:
    return isinstance(x, float) or (isinstance(x, (list, tuple)) and x and all(isinstance(i, float) for i in x))

def assertion(out, exp, atol):
    exact_match = out == exp
    if atol == 0 and is_floats(exp):
        atol = 1e-6
    if not exact_match and atol != 0:
        np.testing.assert_allclose(out, exp, rtol=1e-07, atol=atol)
    else:
        assert exact_match

inputs = [[1], [5]]
results = [2, 6]
for i, (inp, exp) in enumerate(zip(inputs, results)):
    assertion(inc(*inp), exp, 0)
"""
PYTEST = """import pytest
from solution import inc

@pytest.mark.parametrize("given, expected", [(1, 2), pytest.param(5, 6, id="five")])
def test_each(given, expected):
    assert inc(given) == pytest.approx(expected)

@pytest.mark.parametrize("given", [1, 2])
def test_raises(given):
    with pytest.raises(TypeError):
        inc(str(given))

class TestInc:
    def setup_method(self):
        self.n = 7

    def test_seven(self):
        assert inc(self.n) == 8
"""
UNITTEST = """import unittest
from solution import inc

class Incs(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.one = 1

    def setUp(self):
        self.five = 5

    def test_one(self):
        self.assertEqual(inc(self.one), 2)

    def test_five(self):
        with self.subTest("five"):
            self.assertEqual(inc(self.five), 6)
        with self.assertRaises(TypeError):
            inc("5")

if __name__ == "__main__":
    unittest.main()
"""


def packed(cases: object) -> str:
    return base64.b64encode(zlib.compress(pickle.dumps(json.dumps(cases)))).decode()


STDIN_CASE = {"input": "1\n", "output": "2\n", "testtype": "stdin"}
CALL_CASE = {"input": "1", "output": "2", "testtype": "functional"}
LCB_ROW = {"metadata": json.dumps({"func_name": "inc"}), "starter_code": "class Solution:\n    def inc(self, n)"}
LAYOUTS: dict[str, tuple[Any, dict[str, Any], str, str]] = {
    "APPS": ({"inputs": ["1\n", "5\n"], "outputs": ["2\n", "6\n"]}, {}, READS, READS_WRONG),
    "APPS, lines": ({"inputs": [["1"], ["5"]], "outputs": [["2"], ["6"]]}, {}, READS, READS_WRONG),
    "TACO, function": ({"fn_name": "inc", "inputs": [[1], [5]], "outputs": [2, 6]}, {}, FUNCTION, FUNCTION_WRONG),
    "Eurus-2, function": (
        {"fn_name": "inc", "inputs": [[1], [5]], "outputs": [[2], [6]]}, {}, FUNCTION, FUNCTION_WRONG,
    ),
    "Eurus-2, texts": ({"fn_name": "inc", "inputs": ["1", "5"], "outputs": ["2", "6"]}, {}, METHOD, METHOD_WRONG),
    "MBPP": (["assert inc(1) == 2", "assert inc(5) == 6"], {"test_setup_code": ""}, FUNCTION, FUNCTION_WRONG),
    "MBPP, a class": (
        ["s = Stack()\ns.push(3)\ns.push(4)\nassert s.pop() == 4 and s.items == [3]"], {}, STACK, STACK_WRONG,
    ),
    "MBPP, sanitized": (
        ["assert math.isclose(inc(1), 2)"], {"test_imports": ["import math"]}, FUNCTION, FUNCTION_WRONG,
    ),
    "MBPP+": (MBPP_PLUS, {"test_list": ["x"], "test_imports": []}, FUNCTION, FUNCTION_WRONG),
    "HumanEval": (HUMANEVAL, INC_ROW, FUNCTION, FUNCTION_WRONG),
    "HumanEval, a body": (HUMANEVAL, INC_ROW, "    return n + 1\n", "    return n\n"),
    "HumanEval, a body and more": (
        HUMANEVAL, INC_ROW,
        "    m = n\n    return m + 1\n\nprint(inc(1))\nThis is it.", "    return n\n",
    ),
    "HumanEval, a body in a block": (
        HUMANEVAL, INC_ROW,
        "The body:\n```python\n    return n + 1\n```", "```python\n    return n\n```",
    ),
    "HumanEval, without its first spaces": (
        HUMANEVAL, INC_ROW, "m = n\n    return m + 1", "return n",
    ),
    "HumanEval, a helper of the prompt's": (
        CODE_TESTS, {"entry_point": "unshift", "prompt": CODE_PROMPT},
        "```python\ndef unshift(text):\n    return ''.join(chr(ord(ch) - 1) for ch in text)\n```",
        "```python\ndef shift(text):\n    return text\ndef unshift(text):\n    return text\n```",
    ),
    "HumanEval, in one object": (
        {"test": HUMANEVAL, "entry_point": "inc"}, {}, FUNCTION, FUNCTION_WRONG,
    ),
    "LiveCodeBench, public": (json.dumps([STDIN_CASE]), {"metadata": "{}"}, READS, READS_WRONG),
    "LiveCodeBench, private": (packed([STDIN_CASE, STDIN_CASE]), {"metadata": "{}"}, READS, READS_WRONG),
    "LiveCodeBench, private as JSON": (json.dumps(json.dumps([STDIN_CASE])), {}, READS, READS_WRONG),
    "LiveCodeBench, functional": (json.dumps([CALL_CASE]), LCB_ROW, METHOD, METHOD_WRONG),
    "LiveCodeBench, functional and private": (packed([CALL_CASE]), LCB_ROW, METHOD, METHOD_WRONG),
    "LiveCodeBench, two arguments": (
        json.dumps([{"input": "[1, 2]\n3", "output": "[3, 6]", "testtype": "functional"}]),
        {"metadata": {"func_name": "double"}}, DOUBLES, DOUBLES_WRONG,
    ),
    "DeepCoder, from PrimeIntellect": (
        [{"type": "stdin_stdout", "input": "1\n", "output": "2\n", "fn_name": None}], {}, READS, READS_WRONG,
    ),
    "DeepCoder, a function": (
        [{"type": "function_call", "fn_name": "inc", "input": [1], "output": [2]}], {}, FUNCTION, FUNCTION_WRONG,
    ),
    "DeepCoder, from LiveCodeBench": (
        [{"input": "1", "output": "2", "testtype": "functional", "metadata": {"func_name": "inc"}}],
        {"starter_code": "class Solution:"}, METHOD, METHOD_WRONG,
    ),
    "DeepCoder, from TACO": ({"inputs": ["1\n"], "outputs": ["2\n"], "fn_name": None}, {}, READS, READS_WRONG),
    "DeepCoder, from Codeforces": ([{"input": "1\n", "output": "2\n"}], {}, READS, READS_WRONG),
    "verifiable-coding": (
        {"language": "python", "test_cases": [{"type": "stdin_stdout", "input": "1\n", "output": "2\n"}]},
        {}, READS, READS_WRONG,
    ),
    "verifiable-coding, functions as texts": (
        {"test_cases": [
            {"type": "function_call", "fn_name": "double", "input": "[[1, 2], 3]", "output": "[3, 6]"},
        ]},
        {}, DOUBLES, DOUBLES_WRONG,
    ),
    "CodeContests": ({"input": ["1\n", "5\n"], "output": ["2\n", "6\n"]}, {}, READS, READS_WRONG),
    "AceCode": ({"test_cases": ["assert inc(1) == 2", "assert inc(5) == 6"]}, {}, FUNCTION, FUNCTION_WRONG),
    "KodCode": (KODCODE, {"solution": "def inc(n): return n + 1"}, FUNCTION, FUNCTION_WRONG),
    "pytest": (PYTEST, {}, FUNCTION, "```python\ndef inc(n):\n    return 0\n```"),
    "unittest": (UNITTEST, {}, FUNCTION, "```python\ndef inc(n):\n    return 0\n```"),
    "unittest, without an import": (
        UNITTEST.replace("from solution import inc\n", ""), {}, FUNCTION, "```python\ndef inc(n):\n    return 0\n```",
    ),
    "LeetCode": (
        "def check(candidate):\n    assert candidate(n = 1) == 2\n    assert candidate(n = 5) == 6\n",
        {"entry_point": "Solution().inc"}, METHOD, METHOD_WRONG,
    ),
    "LeetCode, lists": (
        "def check(candidate):\n"
        "    assert is_same_list(candidate(head = list_node([1, 2, 3])), list_node([3, 2, 1]))\n"
        "    assert is_same_list(candidate(head = list_node(list(range(500)))), list_node(list(range(500))[::-1]))\n",
        {"entry_point": "Solution().backwards", "prompt": "from typing import *\n" + LEETCODE}, LISTS, LISTS_WRONG,
    ),
}  # fmt: skip


def judged(answer: Any, row: dict[str, Any], response: str, prompt: str = "") -> Verdict:
    return unit_tests(
        response, answer if isinstance(answer, str) else json.dumps(answer), row, Limits(start_seconds=20.0), prompt
    )


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_right_response_has_1_and_a_wrong_one_0(name: str) -> None:
    answer, row, right, wrong = LAYOUTS[name]
    verdict = judged(answer, row, right)
    assert verdict.reward == 1.0, verdict
    verdict = judged(answer, row, wrong)
    assert verdict.reward == 0.0, verdict


def test_code_in_a_prompt_as_the_policy_saw_it() -> None:
    prompt = f"user\nGo on with this:\n```python\n{HUMANEVAL_PROMPT}```\nassistant\n"
    for text in (prompt, HUMANEVAL_PROMPT, f"user\nNote: go on.\n\n{HUMANEVAL_PROMPT}assistant\n"):
        assert judged(HUMANEVAL, {"entry_point": "inc"}, "    return n + 1", text).reward == 1.0
        assert judged(HUMANEVAL, {"entry_point": "inc"}, FUNCTION, text).reward == 1.0
    assert judged(HUMANEVAL, {"entry_point": "inc"}, FUNCTION, "Write inc").reward == 1.0


def test_each_test_counts() -> None:
    assert judged(KODCODE, {}, "```python\ndef inc(n):\n    return 2\n```").reward == 0.5
    assert len(parsed_answer(PYTEST, {}).tests) == 3  # type: ignore[union-attr]
    script = "x = 1\nassert inc(x) == 2\nx = 5\nassert inc(x) == 6\n"
    assert judged(script, {}, FUNCTION).reward == 1.0
    assert judged(script, {}, "```python\ndef inc(n):\n    return 2\n```").reward == 0.5


@pytest.mark.parametrize(
    ("answer", "row"),
    [
        ("", {}), ("5", {}), ("\\boxed{5}", {}), ("def inc(n):\n    return n + 1\n", {}),
        ({"inputs": ["1\n"], "outputs": []}, {}), ({"inputs": ["1\n", "2"], "outputs": ["", " \n"]}, {}),
        ({"inputs": [], "outputs": []}, {}),
        ([STDIN_CASE, CALL_CASE], LCB_ROW), ([CALL_CASE], {}), ([{"input": "1"}], {}),
        ({"language": "python", "test_cases": []}, {}), ({"test_cases": None}, {}), ([{}], {}),
        ("{'inputs': ['1'], 'outputs': ['2']}", {}), (HUMANEVAL, {}),
        ("def test_a(tmp_path):\n    assert inc(1) == 2", {}), ("async def test_a():\n    assert inc(1) == 2", {}),
        ("assert 1 == 1", {}), ({"tests": ["assert inc(1) == 2"], "entry_point": "inc;"}, {}),
        ("[" * 100_000, {}), ("(" * 10_000, {}), ({"test_cases": "[" * 100_000}, {}),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_no_fault_of_the_response(answer: Any, row: dict[str, Any]) -> None:
    with pytest.raises(BadAnswer, match="the answer of unit_tests is"):
        parsed_answer(answer if isinstance(answer, str) else json.dumps(answer), row)


def test_a_solution_in_the_prompt_is_no_response() -> None:
    row = {"entry_point": "inc", "prompt": HUMANEVAL_PROMPT + "    return n + 1\n"}
    for response in ("", "    pass\n", "inc is right as it is.", "```python\nprint(inc(1))\n```"):
        assert judged(HUMANEVAL, row, response).reward == 0.0
    assert judged(HUMANEVAL, row, FUNCTION).reward == 1.0


def test_a_reference_program_is_told_from_tests() -> None:
    """KodCode's column solution, which is taken for the answer unless task.answer_column says test."""
    with pytest.raises(BadAnswer, match=r"task\.answer_column=test"):
        parsed_answer("def inc(n):\n    return n + 1\n", {"test": KODCODE})


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return (print, ("BREACH",))


@pytest.mark.parametrize(
    "pickled",
    [
        pickle.dumps(Evil()), pickle.dumps(["a", "b"]), pickle.dumps("x", 0) + b"junk", pickle.dumps(b"text"),
        b"cos\nsystem\n(S'true'\ntR.", b"\x80\x04r\xff\xff\xff\x7f.", b"", b"no pickle",
        pickle.dumps("[]")[:-1] + b"\x8c\x01xR.",
    ],
)  # fmt: skip
def test_packed_tests_are_read_without_unpickling(pickled: bytes, capsys: pytest.CaptureFixture[str]) -> None:
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        text = base64.b64encode(zlib.compress(pickle.dumps(json.dumps([STDIN_CASE]), protocol))).decode()
        assert parsed_answer(text, {}) == PrintTests((b"1\n",), (b"2\n",))
    with pytest.raises(BadAnswer):
        parsed_answer(base64.b64encode(zlib.compress(pickled)).decode(), {})
    assert "BREACH" not in capsys.readouterr().out


def test_a_packed_bomb_is_not_blown_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lpo_ray.verifiers.unit_tests.layouts._MOST_BYTES", 2**16)
    with pytest.raises(BadAnswer, match="more than"):
        parsed_answer(packed([{"input": "1" * 2**20, "output": "2"}]), {})


@given(st.text() | st.recursive(
    st.none() | st.integers() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(["tests", "test", "inputs", "outputs", "fn_name", "input", "output", "entry_point", "setup",
                         "test_cases", "metadata", "type", "testtype"]), inner, max_size=4),
    max_leaves=8,
).map(json.dumps))  # fmt: skip
def test_any_answer_is_tests_or_unreadable(answer: str) -> None:
    with contextlib.suppress(BadAnswer):
        assert isinstance(parsed_answer(answer, {}), CallTests | PrintTests)
