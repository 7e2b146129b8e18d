"""What a program does to its arguments counts where a test looks at them, and not at the value of the call."""

from __future__ import annotations

import json
from typing import Any

import pytest

from lpo_ray.verdict import Verdict
from lpo_ray.verifiers.sandbox.call_tests import run_call_tests
from lpo_ray.verifiers.sandbox.limits import Limits
from lpo_ray.verifiers.unit_tests.python_tests import python_tests
from lpo_ray.verifiers.unit_tests.verifier import unit_tests

REV = "def rev(a): a.reverse()\n"
ZEROES = "class Solution:\n    def moveZeroes(self, nums):\n        nums.sort(key=lambda n: n == 0)\n        {}\n"
LEETCODE = {
    "test": "def check(candidate):\n    nums = [0, 1, 0, 3]\n    candidate(nums)\n    assert nums == [1, 3, 0, 0]\n",
    "entry_point": "Solution().moveZeroes",
}


def judged(program: str, answer: Any) -> Verdict:
    return unit_tests(f"```python\n{program}```", json.dumps(answer), {}, Limits(start_seconds=20.0))


@pytest.mark.parametrize(
    ("program", "answer"),
    [
        (REV, {"test": "def check(candidate):\n a=[1,2]\n candidate(a)\n assert a==[2,1]", "entry_point": "rev"}),
        (ZEROES.format("pass"), LEETCODE),
        (ZEROES.format("return nums"), LEETCODE),
        (REV, ["a = [1, 2]\nrev(a)\nassert a == [2, 1]", "b = [3]\nassert rev(b) is None\nassert b == [3]"]),
        (REV, "a = [1, 2]\nrev(a)\nassert a == [2, 1]\nassert a[0] == 2\n"),
        (REV, ["def test_a():\n a = [1, 2]\n value = rev(a=a)\n assert value is None\n assert a == [2, 1]"]),
        (REV, ["a = b = [1, 2]\nrev(a)\nassert b == [2, 1] and a is b"]),
        (
            "def turn(m): m[:] = [list(row) for row in zip(*m[::-1])]\n",
            ["m = [[1, 2], [3, 4]]\nrow = m[0]\nturn(m)\nassert m == [[3, 1], [4, 2]] and row is m[0]"],
        ),
        (
            "def add(d, key, s): d.setdefault(key, []).append(1); d.pop('x', 0); s.add(key)\n",
            ["d, s = {'a': [], 'x': 2}, set()\nheld = d['a']\nadd(d, 'a', s)\nassert d == {'a': [1]} and s == {'a'}\n"
             "assert held == [1]"],
        ),
        (
            "def put(c, word): c[word] = c.get(word, 0) + 1\n",
            ["from collections import Counter\nc = Counter('a')\nput(c, 'a')\nassert c == Counter('aa')"],
        ),
        (
            "class Box:\n    def fill(self, a): a.append(3)\n",
            "from solution import Box\nimport unittest\nclass T(unittest.TestCase):\n    def test_a(self):\n"
            "        a = [1]\n        self.assertIsNone(Box().fill(a))\n        self.assertEqual(a, [1, 3])\n",
        ),
        (
            "def grow(a): a.append(1)\n",
            ["a = list(range(50000))\ngrow(a)\nassert grow(a) is None\nassert a[:2] == [0, 1]"],
        ),
        (
            "class A: pass\ndef use(items): items.clear()\n",
            ["from solution import A, use\na = A()\nitems = [a]\nuse(items)\nassert items[0] is a"],
        ),
    ],
)  # fmt: skip
def test_a_program_that_changes_its_arguments_passes(program: str, answer: Any) -> None:
    verdict = judged(program, answer)
    assert verdict.reward == 1.0, verdict


NODE = "class Node:\n    def __init__(self, v, next=None):\n        self.v, self.next = v, next\n"


@pytest.mark.parametrize(
    ("body", "test"),
    [
        ("node.v = 7", "a = Node(1)\nf(a)\nassert a.v == 7"),
        ("node.next = Node(9)", "a = Node(1)\nf(a)\nassert a.next.v == 9 and type(a.next) is Node"),
        (
            "node.v, node.next.v = node.next.v, node.v",
            "b = Node(2)\na = Node(1, b)\nf(a)\nassert (a.v, b.v) == (2, 1) and a.next is b",
        ),
        (
            "nxt = node.next; node.next = None; nxt.next = node",
            "b = Node(2)\na = Node(1, b)\nassert f(a) is None\nassert a.next is None and b.next is a",
        ),
        ("node.next = node", "a = Node(1)\nf(a)\nassert a.next is a"),
        ("node[0].v = 5; node.append(node[0])", "a = Node(1)\nl = [a]\nf(l)\nassert l[1] is a and a.v == 5"),
        ("node.next.v += [4]", "s = [3]\nb = Node(s)\na = Node(1, b)\nf(a)\nassert b.v == [3, 4]"),
    ],
)
def test_nodes_of_the_tasks_own_class_are_changed_and_stay_themselves(body: str, test: str) -> None:
    for code, reward in ((body, 1.0), ("pass", 0.0)):
        calls = python_tests([], [test], "f", given=NODE)
        marks = run_call_tests(f"def f(node):\n    {code}\n", calls, Limits(start_seconds=20.0))
        assert (marks.passed, marks.unreadable, marks.trouble) == (reward, None, None), marks


def test_what_a_program_returns_is_one_of_the_tests_own_nodes_too() -> None:
    program = "def f(node):\n    node.next.next, node.next, tail = node, None, node.next\n    return tail\n"
    test = "b = Node(2)\na = Node(1, b)\nc = f(a)\nassert c is not None\nassert b.next is a and a.next is None"
    marks = run_call_tests(program, python_tests([], [test], "f", given=NODE), Limits(start_seconds=20.0))
    assert marks.passed == 1, marks


@pytest.mark.parametrize(
    "test",
    [
        "nums = [3, 2, 2, 3]\nk = remove(nums, 3)\nassert k == 2\nassert nums[:k] == [2, 2]",
        "nums = [3, 2, 2, 3]\nassert remove(nums, 3) == 2\nassert nums[:2] == [2, 2]",
        "nums = [3, 2, 2, 3]\nwant = [2, 2]\nk = remove(nums, val=3)\nassert k == len(want)\n"
        "for i in range(k):\n    assert nums[i] == want[i]",
        "nums = [3, 2, 2, 3]\nk = remove(nums, 3)\nnums = sorted(nums[:k])\nassert (k, nums) == (2, [2, 2])",
        "for nums, want in [([3, 2, 2, 3], [2, 2]), ([3], [])]:\n    k = remove(nums, 3)\n"
        "    assert k == len(want) and nums[:k] == want",
        "def test_a():\n    nums = [3, 2, 2, 3]\n    k = remove(nums, 3)\n    assert k == 2\n"
        "    assert sorted(nums[:k]) == [2, 2]",
        {"entry_point": "Solution().remove", "test": "def check(candidate):\n    nums = [3, 2, 2, 3]\n"
         "    k = candidate(nums, 3)\n    assert k == 2 and nums[:k] == [2, 2]\n"},
    ],
)  # fmt: skip
def test_what_it_returns_and_what_it_changes_are_both_looked_at(test: Any) -> None:
    """As LeetCode's 26 and 27 do."""
    answer = test if isinstance(test, dict) or "def test" in test else [test]
    kept = "kept = [n for n in nums if n != val]; "
    for rest, reward in (("nums[: len(kept)] = kept", 1.0), ("pass", 0.0), ("nums.clear()", 0.0)):
        line = f"{kept}{rest}; return len(kept)\n"
        method = f"class Solution:\n    def remove(self, nums, val): {line}"
        verdict = judged(method if isinstance(test, dict) else f"def remove(nums, val): {line}", answer)
        assert verdict.reward == reward, (rest, verdict)


COPIED = [
    "original = nums[:]\nk = remove(nums, 3)\nassert k == len([n for n in original if n != 3])\n"
    "assert sorted(nums[:k]) == sorted(n for n in original if n != 3)",
    "want = [n for n in nums if n != 3]\nk = remove(nums, 3)\nassert k == len(want)\nassert nums[:k] == want",
    "want = sorted(n for n in nums if n != 3)\nk = remove(nums, 3)\nassert k == 2\nnums[:k] = sorted(nums[:k])\n"
    "assert all(nums[i] == want[i] for i in range(k))",
    "given = nums.copy()\nk = remove(given, 3)\nassert k == 2 and given[:k] == [n for n in nums if n != 3]",
    "given = list(nums)\nassert remove(given, 3) == 2\nassert given[:2] == [n for n in nums if n != 3]",
    "import copy\nbefore = copy.deepcopy(nums)\nk = remove(nums, 3)\nassert k == before.count(2)\n"
    "assert nums[:k] == [n for n in before if n != 3]",
    "for given, gone in [([3, 2, 2, 3], 3), ([1, 1], 5)]:\n    before = tuple(given)\n    k = remove(given, gone)\n"
    "    want = [n for n in before if n != gone]\n    assert k == len(want)\n    assert given[:k] == want",
    "cases = [([3, 2, 2, 3], 3), ([1, 1], 5)]\nfor given, gone in cases:\n    before = given + []\n"
    "    k = remove(given, gone)\n    assert k == len([n for n in before if n != gone])\n"
    "    assert given[:k] == [n for n in before if n != gone]",
]


@pytest.mark.parametrize("lines", COPIED)
@pytest.mark.parametrize("layout", ["asserts", "check", "unittest"])
def test_a_copy_from_before_the_call_may_be_compared_with(lines: str, layout: str) -> None:
    body = "\n".join(f"        {line}" for line in f"nums = [3, 2, 2, 3]\n{lines}".split("\n"))
    answer: Any = [f"nums = [3, 2, 2, 3]\n{lines}"]
    if layout == "check":
        answer = {"entry_point": "remove", "test": f"def check(candidate):\n    if True:\n{body}\n"}
        answer["test"] = answer["test"].replace("remove(", "candidate(")
    elif layout == "unittest":
        answer = (
            f"from solution import remove\nimport unittest\nclass T(unittest.TestCase):\n  def test(self):\n{body}\n"
        )
    kept = "kept = [n for n in nums if n != val]; "
    for rest, reward in (("nums[: len(kept)] = kept", 1.0), ("pass", 0.0), ("nums.clear()", 0.0)):
        verdict = judged(f"def remove(nums, val): {kept}{rest}; return len(kept)\n", answer)
        assert verdict.reward == reward, (rest, verdict)
    assert judged("def remove(nums, val): nums.clear(); return 0\n", answer).reward == 0.0


def test_what_does_not_count_is_said() -> None:
    verdict = judged(
        "def order(a): a.sort(); return 2\n", ["a = [2, 1]\nk = order(a)\nassert k == 2 and a == sorted(a)"]
    )
    assert verdict.reward == 0.0
    assert "changes in place to a do not count" in (verdict.detail or "")


@pytest.mark.parametrize(
    ("program", "answer"),
    [
        ("def rev(a): return a[::-1]\n", ["a = [1, 2]\nrev(a)\nassert a == [2, 1]"]),
        ("def rev(a): a = a[::-1]\n", ["a = [1, 2]\nassert rev(a) is None\nassert a == [2, 1]"]),
        (
            "def rev(a): a.clear(); return a\n",
            {"setup": "a = [2, 1]\nb = rev(a)", "tests": ["assert b == sorted(a)"]},
        ),
        (
            "def rev(a): a.clear(); return a\n",
            {"setup": "a = [2, 1]\ndef make():\n global b\n b = rev(a)\nmake()", "tests": ["assert b == sorted(a)"]},
        ),
        ("def rev(a): a.clear(); return a\n", ["a = [2, 1]\nassert rev(a) == sorted(a)"]),
        ("def rev(a): a.clear(); return a\n", ["a = [2, 1]\nb = rev(a)\nassert b == sorted(a)"]),
        ("def rev(a): a.clear(); return a\n", ["a = [2, 1]\nb = rev(a)\nassert b is not None\nassert b == sorted(a)"]),
        ("def rev(a): a.clear()\n", ["a = [2, 1]\nassert rev(a) == (max(a) if a else None)"]),
        ("def rev(a): a.clear()\n", ["a = [2, 1]\nfor b in [rev(a)]: assert b == (a or None)"]),
        ("def rev(a): a.clear(); return 0\n", ["a = [2, 1]\nk = rev(a)\nassert k == len(a)"]),
        ("def rev(a): a.clear(); return []\n", ["a = [2, 1]\nwant = sorted(a)\nassert rev(a) == sorted(a) == want"]),
        ("def rev(a): a.clear(); return []\n", ["b = [2, 1]\na = b\nassert rev(a) == sorted(b)"]),
        ("def rev(a): a.clear(); return []\n", ["b = [[2, 1]]\na = b[0]\nassert rev(a) == sorted(b[0])"]),
        ("def rev(a): a.clear(); return 3\n", ["a = [2, 1]\nk = rev(a)\nif a:\n    assert k == 2\nassert k > 0"]),
        ("def rev(a): a.clear(); return 3\n", ["a = [2, 1]\nk = rev(a)\nassert all(n < k - 1 for n in a)"]),
        ("def rev(a): a.clear(); return 3\n", ["a = [2, 1]\nk = rev(a)\nfor n in a:\n    assert n < k - 1\nassert k"]),
        (
            "def rev(a): [row.clear() for row in a]; return 2\n",
            ["a = [[2, 1], [4, 3]]\nb = a[:]\nk = rev(a)\nassert k == 2\nassert a == [sorted(row) for row in b]"],
        ),
        ("def rev(a): a.clear(); return 2\n", ["a = [2, 1]\nk = rev(a)\nb = a[:]\nassert k == 2 and a == sorted(b)"]),
        (
            "def rev(a): a.clear(); return 2\n",
            ["input = [2, 1]\nk = rev(input)\nb = input[:]\nassert k == 2 and input == sorted(b)"],
        ),
        (
            "def rev(a): a.clear(); return 2\n",
            ["data = [([2, 1], 0)]\n"
             + 2 * "for a, _ in data:\n    b = a[:]\n    k = rev(a)\n    assert k == 2 and a == sorted(b)\n"],
        ),
        (
            "def rev(a): a.clear(); return 2\n",
            ["data = [[2, 1]]", *2 * ["a = data[0]\nb = a[:]\nk = rev(a)\nassert k == 2 and a == sorted(b)"]],
        ),
        (
            "def rev(a): a.clear(); return 2\n",
            "import unittest\nfrom solution import rev\nclass T(unittest.TestCase):\n    def turn(self, a):\n"
            "        return rev(a)\n    def test(self):\n        a = [2, 1]\n        k = self.turn(a)\n        b = a[:]"
            "\n        self.assertEqual(k, 2)\n        self.assertEqual(a, sorted(b))\n",
        ),
        (
            "def rev(a): a.clear(); return 2\n",
            ["a = [2, 1]\nb = reversed(a)\nk = rev(a)\nassert k == 2\nassert a == sorted(b)"],
        ),
        ("def rev(a): a.clear(); return 0\n", ["a = [2, 1]\nb = [x for x in a]\nk = rev(a)\nassert k == len(b)"]),
        (
            "def rev(a): a.clear(); return 3\n",
            ["a = [2, 1]\nk = rev(a)\nassert all(k == n for n in a)\nassert k > 0"],
        ),
        ("def rev(a): a[:] = [Yes(), Yes()]\n", ["a = [1, 2]\nrev(a)\nassert a == [2, 1]"]),
        ("def rev(a): a[:] = [I(0), I(0)]\n", ["a = [1, 2]\nrev(a)\nassert a == [2, 1]"]),
        ("def rev(a): a[:] = [L(), L()]\n", ["a = [[1], [2]]\nrev(a)\nassert a == [[2], [1]]"]),
        ("def rev(a): a.clear(); a.append(a)\n", ["a = [1, 2]\nrev(a)\nassert a == [2, 1]"]),
        ("def rev(a): a.extend(range(10**6))\n", ["a = [1, 2]\nrev(a)\nassert a == [2, 1]"]),
        (
            "import json\nreal = json.dumps\njson.dumps = lambda v, **k: real({'value': {'t': [None]}})\n"
            "def rev(a): pass\n",
            ["a = [1, 2]\nrev(a)\nassert a == [2, 1]"],
        ),
        (
            "import json\nreal = json.dumps\njson.dumps = lambda v, **k: real({'value': {'t': "
            "[None, {'t': [True, True]}, {'l': []}]}})\ndef rev(a): pass\n",
            ["a = [1, 2]\nrev(a)\nassert a == [2, 1]"],
        ),
    ],
)  # fmt: skip
def test_a_program_that_does_not_gains_nothing(program: str, answer: Any) -> None:
    kinds = (
        "class Yes:\n    def __eq__(self, other): return True\n"
        "class I(int):\n    def __eq__(self, other): return True\n    __hash__ = int.__hash__\n"
        "class L(list):\n    def __eq__(self, other): return True\n"
    )
    verdict = judged(kinds + program, answer)
    assert verdict.reward == 0.0, verdict
