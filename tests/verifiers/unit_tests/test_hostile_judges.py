"""A response must not be able to write its own verdict: neither a reward, nor that there is none."""

from __future__ import annotations

import json
from typing import Any

import pytest

from lpo_ray.verdict import BadAnswer, Verdict
from lpo_ray.verifiers.sandbox.limits import Limits
from lpo_ray.verifiers.unit_tests.layouts import parsed_answer
from lpo_ray.verifiers.unit_tests.verifier import unit_tests
from tests.support import hostile_judges
from tests.support.hostile_judges import JUDGES, UNSCORED

SQUARES = "def square(x):\n    return x * x\n"


def judged(program: str, answer: Any, seconds: float = 5.0) -> Verdict:
    text = answer if isinstance(answer, str) else json.dumps(answer)
    return unit_tests(f"```python\n{program}```", text, {}, Limits(seconds=seconds, start_seconds=20.0))


@pytest.mark.parametrize("name", JUDGES)
def test_who_would_judge_gets_nothing(name: str) -> None:
    verdict = judged(*JUDGES[name], seconds=3.0)
    assert verdict.reward == 0.0, verdict


@pytest.mark.parametrize("name", UNSCORED)
def test_who_would_not_be_judged_gets_nothing(name: str) -> None:
    verdict = judged(*UNSCORED[name])
    assert verdict.reward == 0.0, verdict


@pytest.mark.parametrize(
    "answer",
    ["CALLS", "ASSERTS", "CLOSE", "ARRAYS", "CHECK", "PYTEST", "UNITTEST", "PLUS"],
)
def test_who_solves_passes(answer: str) -> None:
    """Or the tests above could not fail."""
    assert judged(SQUARES, getattr(hostile_judges, answer)).reward == 1.0


def test_who_solves_with_nodes_or_prints_passes() -> None:
    program = "class Solution:\n    def square(self, node):\n        return Node(node.value ** 2)\n"
    assert judged(program, hostile_judges.NODES).reward == 1.0
    assert judged("print(int(input()) ** 2)\n", hostile_judges.PRINTS).reward == 1.0


@pytest.mark.parametrize(
    "tests",
    [
        ["assert is_close(square(3), 9)"],
        ["close = is_close(square(3), 9)\nassert close"],
        ["assert not differs(square(3), 9)"],
        ["value = square(3)\nassert is_close(value, 9)"],
        ["check_equal(square(3), 9)"],
        ["assert square(3) == EXPECTED"],
        ["assert square(3) == expected(3)"],
        ["assert expected(3) in [square(3)]"],
        ["assert all(is_close(square(x), x) for x in (3, 4))"],
        ["assert is_close(square(3), 9) == True"],
        ["assert square(3) == Expected.VALUE"],
        ["assert utils.close(square(3), 9)"],
        ["assert isclose(square(3), NINE)"],
        ["import unittest\nclass T(unittest.TestCase):\n    def test_a(self):\n        self.assertEqual(f(3), want())"],
        {"entry_point": "square", "tests": ["assert is_close(candidate(3), 9)"]},
        {"entry_point": "square", "tests": ["assert square(3) == EXPECTED"]},
        {"entry_point": "square", "test": "def check(candidate):\n    assert candidate(unsquare(9)) == 9"},
        "from solution import square\ndef test_a():\n    assert close(square(3), 9)",
        ["assert sorted(max(3)) == [9]"],
        ["a = [2, 1]\norder(a)\nassert is_ordered(a)"],
        ["assert square(3) is expected(3)"],
        ["a = [2, 1]\norder(a)\nok = is_ordered(a)\nassert ok"],
        "from solution import order, is_ordered\ndef test_a():\n    a = [2, 1]\n    order(a)\n    assert is_ordered(a)",
        "from solution import make, is_valid\nassert is_valid(make(3))",
    ],
)
def test_tests_that_only_the_program_could_judge_are_unreadable(tests: Any) -> None:
    with pytest.raises(BadAnswer):
        parsed_answer(tests if isinstance(tests, str) else json.dumps(tests), {})


@pytest.mark.parametrize(
    "tests",
    [
        ["assert decode(encode('ab')) == 'ab'"],
        ["s = Stack()\ns.push(make(3))\nassert s.pop() == 3"],
        ["assert square(3) == square(-3)"],
        ["assert list(map(square, [1, 2])) == [1, 4]"],
        ["assert set(square(x) for x in (1, 2)) == {1, 4}"],
        ["from math import sqrt\nassert sqrt(square(3)) == 3"],
        ["def close(a, b): return abs(a - b) < 1\nassert close(square(3), 9)"],
        ["assert gcd(4, 6) == 2"],
        ["assert sum(10, 15) == 6"],
    ],
)
def test_tests_in_which_only_they_compare_are_readable(tests: list[str]) -> None:
    parsed_answer(json.dumps(tests), {})


@pytest.mark.parametrize(
    "tests",
    [
        "import random\nrandom.seed(0)\ndata = []\nfor n in range(3):\n    data.append(n)\nprint(data)\n"
        "assert square(3) == 9\nprint(square(3))\nsquare(4)\nassert True\nassert len(data) == 3",
        ["random.seed(0)", "assert square(3) == 9", "assert True", "x = 3", "square(x)"],
        "def test_nothing():\n    assert True\n\ndef test_square():\n    assert square(3) == 9\n",
        {"entry_point": "square", "tests": ["def check(candidate):\n    assert candidate(3) == 9"]},
        {"tests": ["def test_a():\n    assert square(3) == 9"]},
        ["def close(a, b):\n    return a == b\nassert close(square(3), 9)"],
        "result = square(3)\nassert result == 9",
        "import solution as s\nassert s.square(3) == 9",
        "from solution import square as f\ndef test_a():\n    assert f(3) == 9\n",
        "import os, sys\nsys.path.insert(0, os.path.dirname(__file__))\nfrom solution import *\nassert square(3) == 9",
        "import numpy as np\nnp.testing.assert_allclose([square(3)], [9])",
        ["assert np.isclose(square(3), 9).all()"],
        "import unittest\nclass T(unittest.TestCase):\n    def setUp(self):\n        self.it = square(3)\n"
        "    def test_a(self):\n        self.assertEqual(self.it, 9)\nunittest.main()\n",
    ],
)
def test_only_what_checks_the_program_is_a_test(tests: Any) -> None:
    assert len(parsed_answer(tests if isinstance(tests, str) else json.dumps(tests), {}).tests) == 1  # type: ignore
    assert judged("def square(x):\n    return 0\n", tests).reward == 0.0
    assert judged(SQUARES, tests).reward == 1.0


@pytest.mark.parametrize(
    "tests",
    [
        ["square(3) == 9"], ["square(3)"], ["print(square(3))"],
        "def square(x):\n    return x * x\nassert square(3) == 9",
        {"entry_point": "square", "test": "def square(x):\n    return x * x\nassert square(3) == 9"},
        {"entry_point": "square", "tests": ["assert 3 == 3"]}, ["return square(3) == 9"],
        ["square = square(3)\nassert square"],
        {"entry_point": "square", "test": "def check(f):\n    pass\ncheck(3)"},
    ],
)  # fmt: skip
def test_tests_that_no_program_fails_are_unreadable(tests: Any) -> None:
    with pytest.raises(BadAnswer):
        parsed_answer(tests if isinstance(tests, str) else json.dumps(tests), {})
