"""What tests may do with objects of a class that the program defines."""

from __future__ import annotations

import json

import pytest

from lpo_ray.verdict import Verdict
from lpo_ray.verifiers.sandbox.limits import Limits
from lpo_ray.verifiers.unit_tests.verifier import unit_tests

VECTOR = """
class V:
    def __init__(self, x): self.x = x
    def __add__(self, other): return V(self.x + other.x)
    def __mul__(self, other): return self.x * other.x
    def __lt__(self, other): return self.x < other.x
"""
COUNT = "def count(n):\n    yield from range(n)\n"
OPENED = """
class Opened:
    seen = []
    def __enter__(self): self.seen.append('in'); return self
    def __exit__(self, *error): self.seen.append(error[0]); return True
"""
YES = """
class Yes:
    def __add__(self, other): return 9
    __radd__ = __sub__ = __rsub__ = __mul__ = __mod__ = __add__
    def __lt__(self, other): return True
    __gt__ = __le__ = __ge__ = __contains__ = __eq__ = __lt__
    def __enter__(self): return self
    def __exit__(self, *error): return True
def f(x): return Yes()
"""


def judged(program: str, test: str) -> Verdict:
    return unit_tests(f"```python\n{program}```", json.dumps([test]), {}, Limits(start_seconds=20.0))


@pytest.mark.parametrize(
    ("program", "test"),
    [
        (VECTOR, "assert (V(1) + V(2)).x == 3"),
        (VECTOR, "assert V(4) * V(2) == 8"),
        (VECTOR, "assert [v.x for v in sorted([V(3), V(1)])] == [1, 3]"),
        (VECTOR, "try:\n    V(4) - V(2)\nexcept TypeError:\n    pass\nelse:\n    assert V(1).x == 2"),
        (COUNT, "g = count(2)\nassert next(g) == 0 and next(g) == 1 and next(g, None) is None"),
        (COUNT, "import pytest\ng = count(0)\nwith pytest.raises(StopIteration):\n    next(g)"),
        (OPENED, "with Opened() as o:\n    assert o.seen == ['in']\nassert o.seen == ['in', None]"),
    ],
)
def test_they_have_operators(program: str, test: str) -> None:
    verdict = judged(program, test)
    assert verdict.reward == 1.0, verdict


MONEY = """
class Money:
    def __init__(self, n): self.n = n
    def __add__(self, other): return Money(self.n + getattr(other, 'n', other))
    def __mul__(self, other): return Money(self.n * other)
    def __sub__(self, other): return self.n - other
    __radd__, __rmul__ = __add__, __mul__
    def __lt__(self, other): return True
"""


@pytest.mark.parametrize(
    "test",
    [
        "assert (Money(2) * 3).n == 6",
        "assert (3 * Money(2)).n == 6",
        "assert (Money(2) * 3 * 2 + 1).n == 13",
        "assert sum([Money(1), Money(2)]).n == 3",
        "m = Money(1)\nm += 4\nassert m.n == 5",
        "from solution import Money as M\nassert (M(2) * 3).n == 6",
    ],
)
def test_an_object_of_a_class_that_tests_name_has_operators_with_their_values(test: str) -> None:
    assert judged(MONEY, test).reward == 1.0
    assert judged(MONEY.replace("self.n * other", "0").replace("self.n + ", "1 + 0 * "), test).reward == 0.0


@pytest.mark.parametrize(
    "test",
    ["assert Money(9) - 9 == 0", "assert abs(Money(3) - 9) < 1", "assert Money(3) < 9", "assert not Money(9) - 9"],
)
def test_but_none_that_gives_a_verdict(test: str) -> None:
    assert judged(MONEY, test).reward == 0.0


@pytest.mark.parametrize(
    "test",
    [
        "assert f(3) + 0 == 9",
        "assert 0 + f(3) == 9",
        "assert f(3) - 9 < 1e-6",
        "assert abs(f(3) - 9) < 1e-6",
        "assert 8 < f(3) < 10",
        "assert 9 in f(3)",
        "assert f(3) % 9 == 0",
        "with f(3):\n    assert f(3) == 9",
    ],
)
def test_they_judge_nothing(test: str) -> None:
    verdict = judged(YES, test)
    assert verdict.reward == 0.0, verdict
