"""Which part of a response is its program."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lpo_ray.verifiers.unit_tests.program_text import code_before, defines, program_of

INC = "def inc(n):\n    return n + 1\n"
READS = "n = int(input())\nprint(n + 1)\n"


@pytest.mark.parametrize(
    ("response", "program"),
    [
        ("text", "text"),
        ("a\n```python\n1\n```\nb\n```py\n2\n```\nc\n```\n3\n```", "2\n"),
        ("a\n```\n1\n```\nb\n```text\n2\n```", "2\n"),
        ("```python\n1\n```\n```python\n2", "2"),
        ("```python\nx = '''\n``` not a fence'''\n```", "x = '''\n``` not a fence'''\n"),
        ("```Python3 title=x\n1\n```", "1\n"),
        ("  ```python\n  1\n  ```", "1\n"),
        ("```python", ""),
        ("", ""),
        ("1. So:\n\n   ```python\n   def f():\n       return 1\n   ```", "def f():\n    return 1\n"),
        ("\t```python\n\tx = 1\n\t```", "x = 1\n"),
        ('- a\n  ```py\n  x = """\n  y\n z\n  """\n  ```', 'x = """\ny\nz\n"""\n'),
        ("~~~python\n1\n~~~", "1\n"),
        ("~~~~\n```\n1\n```\n~~~~", "```\n1\n```\n"),
        ("````python\n1\n```\n2\n````", "1\n```\n2\n"),
        ("```python\n1\n~~~\n```", "1\n~~~\n"),
        ("``` python\r\n1\r\n```\r\n", "1\r\n"),
        ("```{python}\n1\n```", "1\n"),
        ("<think>\n```python\n0\n```\n</think>\n```python\n1\n```", "1\n"),
        ("```python\n0\n```</think>1", "1"),
        ("<think>\n```python\n0\n```\nLet me check", ""),
        ("```python\nprint('<think>')\n```", "print('<think>')\n"),
        ("<answer>\n```python\n1\n```\n</answer>", "1\n"),
    ],
)
def test_the_program_is_the_last_block(response: str, program: str) -> None:
    assert program_of(response) == program


@pytest.mark.parametrize(
    "usage",
    [
        "print(inc(3))\n", "assert inc(1) == 2\n", ">>> inc(3)\n4\n", "from collections import Counter\n",
        "x = inc(1)\nif x == 2:\n    print('inc =', x)\n", "incs = [inc(1)]\n",
    ],
)  # fmt: skip
def test_a_usage_example_is_not_the_program(usage: str) -> None:
    response = f"```python\n{INC}```\nUse it so:\n```python\n{usage}```\nOr:\n```\n4\n```"
    assert program_of(response, ["inc"]) == INC
    assert program_of(response.replace("def inc", "async def inc"), ["inc"]).startswith("async def inc")


def test_the_last_definition_counts() -> None:
    """A draft that was right before it was spoilt is not what was answered."""
    response = f"```python\n{INC}```\nBetter:\n```python\ndef inc(n:\n    return n + 1\n```"
    assert program_of(response, ["inc"]) == "def inc(n:\n    return n + 1\n"
    method = "class Solution:\n    def inc(self, n):\n        return n\n"
    assert program_of(f"```python\n{INC}```\n```python\n{method}```\n```python\ninc(1)\n```", ["inc"]) == method


def test_the_block_that_reads_is_the_program_of_tests_by_input() -> None:
    for program in (
        READS, "import sys\nfor line in sys.stdin:\n    print(int(line) + 1)\n", "print(int(open(0).read()) + 1)\n",
        "import fileinput\nprint(*fileinput.input())\n", "import os\nprint(os.read(0, 9))\n",
    ):  # fmt: skip
        assert program_of(f"```python\n{program}```\nCheck:\n```python\nprint(2 + 1)\n```", reads=True) == program
    assert program_of("```python\nprint(1)\n```\n```python\nprint(2)\n```", reads=True) == "print(2)\n"


@pytest.mark.parametrize(
    ("code", "is_it"),
    [
        ("def f(x):", True), ("  def f (x):", True), ("class f:", True), ("f = 3", True), ("f: int = 3", True),
        ("from a import f", True), ("import f", True), ("async def f():", True), ("f(3)", False), ("f == 3", False),
        ("def ff(x):", False), ("g = f", False), ("# def f", False), ("print(f)", False), ("f.x = 3", False),
        ("", False),
    ],
)  # fmt: skip
def test_definitions_are_seen_by_their_look(code: str, is_it: bool) -> None:
    assert defines(code, "f") == is_it


def test_code_of_a_prompt() -> None:
    stub = 'import math\n\ndef helper():\n    return 1\n\ndef f(x):\n    """Say f.\n\n    >>> f(1)\n    """\n'
    assert code_before(stub, "f") == stub
    assert code_before(f"system\nYou code.\nuser\nDo:\n{stub}\nassistant\n", "f").strip() == stub.strip()
    assert code_before(f"Do:\n```python\n{stub}```\nplease", "Solution().f") == stub
    assert code_before("Write a function f(x).", "f") == ""
    assert code_before("Increment", "f") == ""
    assert code_before("class ListNode:\n    pass\n", "Solution().f") == "class ListNode:\n    pass\n"


def test_a_solution_in_a_prompt_is_no_response() -> None:
    """As in tasks to mend or to speed up a function."""
    assert program_of("", ["inc"], INC) == ""
    assert program_of("    pass", ["inc"], INC) == "    pass"
    assert program_of("    return 1", ["inc"], 'def inc(n):\n    """One more."""\n').count("def inc") == 1
    assert (
        program_of("    return 1", ["inc"], 'def inc(n):\n    """One."""\n\ndef dec(n):\n    pass\n') == "    return 1"
    )


@given(st.text(st.sampled_from("`~\n \tpython def f(x):=<think/>")), st.text())
def test_any_text_has_a_program(response: str, other: str) -> None:
    for text in (response, other, f"```python\n{response}"):
        assert isinstance(program_of(text, ["f"], "def f(x):\n    pass\n", reads=True), str)
