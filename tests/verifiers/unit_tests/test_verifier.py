from __future__ import annotations

import errno
import json
import os
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from lpo_ray.verdict import BadAnswer, Verdict
from lpo_ray.verifiers.calling.call import verify
from lpo_ray.verifiers.calling.case import Case
from lpo_ray.verifiers.sandbox import kinds
from lpo_ray.verifiers.sandbox.limits import Limits
from lpo_ray.verifiers.sandbox.program import trouble_with
from lpo_ray.verifiers.unit_tests.layouts import parsed_answer
from lpo_ray.verifiers.unit_tests.verifier import unit_tests
from tests.support.hostile_programs import EXPECTED, HOSTILE, planted


@pytest.fixture(params=[kinds.BUBBLEWRAP, kinds.RLIMIT])
def kind(request: pytest.FixtureRequest) -> str:
    if (trouble := trouble_with(request.param)) is not None:
        pytest.skip(f"{request.param} does not work here: {trouble}")
    return request.param


def judge(program: str, answer: object, limits: Limits | None = None, row: dict | None = None) -> Verdict:
    text = textwrap.dedent(program)
    return unit_tests(f"Here:\n```python\n{text}\n```", json.dumps(answer), row or {}, limits or Limits())


MBPP = [
    "assert add(1, 2) == 3",
    "assert add(-1, 1) == 0",
    "assert add('a', 'b') == 'ab'",
    "assert add([1], [2]) == [1, 2]",
]
APPS = {"inputs": ["1 2\n", "3 4\n"], "outputs": ["3\n", "7\n"]}
CALLS = {"fn_name": "add", "inputs": [[1, 2], [[1], [2]], "1.5\n2"], "outputs": [3, [1, 2], "3.5"]}
HUMANEVAL = {
    "test": "METADATA = {'author': 'x'}\n\ndef check(candidate):\n    assert candidate(1, 2) == 3\n"
    "    for i in range(5):\n        assert abs(candidate(i, 0.5) - i - 0.5) < 1e-6, 'message'\n",
    "entry_point": "add",
}
ADD = "def add(a, b):\n    return a + b\n"
READS = "a, b = map(int, input().split())\nprint(a + b)\n"


@pytest.mark.parametrize(
    ("program", "answer", "reward"),
    [
        (ADD, MBPP, 1.0),
        (ADD, {"tests": MBPP}, 1.0),
        (ADD, {"tests": "\n".join(MBPP), "entry_point": "add"}, 1.0),
        ("def add(a, b):\n    return int(a) + int(b)\n", MBPP, 0.5),
        ("def add(a, b):\n    return 0\n", MBPP, 0.25),
        ("def add(a, b):\n    return a + b + 1\n", MBPP[:2], 0.0),
        ("def sub(a, b):\n    return a + b\n", MBPP, 0.0),
        ("def add(a, b)\n    return a + b\n", MBPP, 0.0),
        ("def add(a, b):\n    if a < 0: raise SystemExit(0)\n    return a + b\n", MBPP[:2], 0.5),
        ("import os\ndef add(a, b):\n    if a == -1: os._exit(0)\n    return a + b\n", MBPP, 0.75),
        (ADD, CALLS, 1.0),
        ("class Solution:\n    def add(self, a, b):\n        return a + b\n", CALLS, 1.0),
        ("def add(a, b):\n    return a\n", CALLS, 0.0),
        (ADD, HUMANEVAL, 1.0),
        ("def add(a, b):\n    return 3\n", HUMANEVAL, 0.0),
        (READS, APPS, 1.0),
        ("input()\nprint(3)\n", APPS, 0.5),
        ("print(3)\nprint(3)\n", APPS, 0.0),
        (READS + "raise ValueError\n", APPS, 0.0),
        ("def sum(a, b):\n    return a + b\n", ["assert sum(10, 15) == 25", "assert sum(1, 2) == 3"], 1.0),
        (
            "class Pair:\n    def __init__(self, a, b):\n        self.a, self.b = a, b\n"
            "def widest(pairs):\n    return max(pairs, key=lambda p: p.b - p.a)\n",
            ["assert widest([Pair(1, 2), Pair(3, 9)]).b == 9", "assert [p.a for p in [Pair(1, 2)]] == [1]"],
            1.0,
        ),
        (
            "from collections import Counter\ndef f(text):\n    return Counter(text)\n",
            [
                "assert f('aab') == {'a': 2, 'b': 1}",
                "assert f('') == {}",
                "import math\nassert math.isclose(f('a')['a'], 1)",
            ],
            1.0,
        ),
        ("def f(n):\n    yield from range(n)\n", ["assert list(f(3)) == [0, 1, 2]", "assert sum(f(3)) == 3"], 1.0),
        (
            "def f(x):\n    if x < 0:\n        raise ValueError('negative')\n    return x\n",
            {
                "entry_point": "f",
                "tests": ["try:\n    f(-1)\n    assert False\nexcept ValueError as e:\n    assert 'neg' in str(e)"],
            },
            1.0,
        ),
        (
            "def f():\n    return {(1, 2): [b'x', 1.5, None, True, 2j, {3}, frozenset({4})], 'big': 10**5000}\n",
            ["assert f() == {(1, 2): [b'x', 1.5, None, True, 2j, {3}, frozenset({4})], 'big': 10**5000}"],
            1.0,
        ),
        ("print('1.0000001 yes')", {"inputs": [""], "outputs": ["1.0 yes"]}, 1.0),
        ("print('1.01 yes')", {"inputs": [""], "outputs": ["1.0 yes"]}, 0.0),
        ("print('1.0')", {"inputs": [""], "outputs": ["1"]}, 0.0),
        ("import sys\nprint(sys.stdin.read())", {"inputs": [["1", "2"]], "outputs": [["1", "2"]]}, 1.0),
    ],
)
def test_rewards(kind: str, program: str, answer: object, reward: float) -> None:
    verdict = judge(program, answer, Limits(kind))
    assert verdict.reward == reward, verdict


@pytest.mark.parametrize(
    "program",
    [
        "a, b = map(int, input().split())\nprint(a + b)\nexit()",
        "a, b = map(int, input().split())\nprint(a + b)\nquit(0)\nprint('no')",
        "def main():\n    a, b = map(int, input().split())\n    if a:\n        print(a + b)\n        exit()\n"
        "main()\nprint(0)",
        "import sys\na, b = map(int, input().split())\nprint(a + b)\nsys.exit()",
        "import fileinput\nfor line in fileinput.input():\n    print(sum(map(int, line.split())))",
        "import sys\nassert len(sys.argv) == 1\nprint(sum(map(int, sys.stdin.read().split())))",
        "import sys, threading\nsys.setrecursionlimit(10**7)\nthreading.stack_size(2**29)\n"
        "def depth(n):\n    return n and 1 + depth(n - 1)\n"
        "def main():\n    a, b = map(int, input().split())\n    print(depth(50_000) - 50_000 + a + b)\n"
        "thread = threading.Thread(target=main)\nthread.start()\nthread.join()",
        "import _thread, threading\nassert threading.stack_size(2**28) == 0\nassert _thread.stack_size() > 0\n"
        "try:\n    threading.stack_size(1)\nexcept ValueError:\n    print(sum(map(int, input().split())))",
    ],
)
def test_programs_as_judges_of_contests_take_them(kind: str, program: str) -> None:
    verdict = judge(program, APPS, Limits(kind))
    assert verdict.reward == 1.0, verdict


@pytest.mark.parametrize(
    ("program", "value"),
    [
        ("from decimal import Decimal\nf = lambda x: Decimal('1.5')", "decimal.Decimal('1.5')"),
        ("from fractions import Fraction\nf = lambda x: Fraction(1, 2)", "fractions.Fraction(1, 2)"),
        ("import datetime as d\nf = lambda x: d.datetime(2020, 1, 2, 3)", "datetime.datetime(2020, 1, 2, 3)"),
        ("import datetime as d\nf = lambda x: d.date(2020, 1, 2)", "datetime.date(2020, 1, 2)"),
        ("import datetime as d\nf = lambda x: d.timedelta(1, 2)", "datetime.timedelta(1, 2)"),
        ("import datetime as d\nf = lambda x: [d.time(1, 2)]", "[datetime.time(1, 2)]"),
        ("from collections import deque\nf = lambda x: deque([(1, 'a')])", "collections.deque([(1, 'a')])"),
        ("f = lambda x: {'a': range(1, 9, 2)}", "{'a': range(1, 9, 2)}"),
        ("import numpy as np\nf = lambda x: np.bool_(x > 2)", "True"),
        ("import numpy as np\nf = lambda x: np.int64(x)", "3"),
        ("import enum\nclass E(enum.IntEnum):\n    A = 3\nf = E", "3"),
        ("from collections import namedtuple\nf = namedtuple('P', 'x')", "(3,)"),
    ],
)
def test_values_of_the_standard_library_are_what_they_are(program: str, value: str) -> None:
    assert judge(program, [f"assert f(3) == {value}"]).reward == 1.0
    assert judge(program, [f"assert f(3) == [{value}]"]).reward == 0.0


def test_arrays_cross_both_ways() -> None:
    tests = ["assert np.array_equal(f(np.arange(6.0).reshape(2, 3)), [[0, 3], [1, 4], [2, 5]])"]
    assert judge("def f(x):\n    return x.T\n", tests).reward == 1.0
    assert judge("def f(x):\n    return x\n", tests).reward == 0.0


def test_errors_of_the_programs_own_kinds_are_expected() -> None:
    tests = (
        "import pytest\nfrom solution import TooSmall, f\n\ndef test_small():\n"
        "    assert issubclass(TooSmall, ValueError)\n    with pytest.raises(TooSmall, match='small'):\n        f(-1)\n"
    )
    small = "class TooSmall(ValueError): pass\ndef f(x):\n    raise {}\n"
    for raised, reward in (
        ("TooSmall('so small')", 1.0),
        ("ValueError('small')", 0.0),
        ("StopIteration('small')", 0.0),
    ):
        answer = {"test": tests}
        assert judge(small.format(raised), answer).reward == reward
    assert judge("class TooSmall(StopIteration): pass\ndef f(x):\n    raise TooSmall\n", {"test": tests}).reward == 0.0


def test_a_function_that_exits_ends_its_test_only() -> None:
    program = "def f(x):\n    if x is None:\n        exit()\n    return x + 1\n"
    assert judge(program, ["assert f(None) == 1", "assert f(1) == 2"]).reward == 0.5


def test_no_wrong_exit_code_passes() -> None:
    assert judge(READS + "exit(1)\n", APPS).reward == 0.0


def test_what_failed_first_is_said() -> None:
    verdict = judge("def add(a, b):\n    return int(a) + int(b)\n", MBPP)
    assert verdict.detail.startswith("2 of 4 tests passed; test 2: ValueError: invalid literal for int()")
    assert "test 0: exit code 0, printed '4\\n'" in judge("print(4)", APPS).detail


def test_columns_of_the_row_prepare_the_tests() -> None:
    row = {"test_imports": ["import math"], "test_setup_code": "two = math.sqrt(4)", "entry_point": "add"}
    assert judge(ADD, ["assert candidate(two, 1) == 3"], row=row).reward == 1.0


def test_an_empty_response_passes_no_test_that_an_error_passes() -> None:
    answer = {"entry_point": "f", "tests": ["try:\n    f(-1)\nexcept Exception:\n    pass\nelse:\n    assert False"]}
    assert judge("", answer).reward == 0.0
    assert judge("import os\ndef f(x): os._exit(1)", answer).reward == 0.0
    assert judge("def f(x): raise ValueError", answer).reward == 1.0


@pytest.mark.parametrize(
    "test",
    [
        "assert all(map(f, [1, 2]))",
        "assert all(f(x) for x in [1])",
        "for x in map(f, [1]): assert x == 1\nassert f(1) == 1",
    ],
)
def test_an_error_ends_no_loop_of_a_test(test: str) -> None:
    assert judge("def f(x):\n    raise StopIteration", [test]).reward == 0.0


def test_arguments_stay_what_they_were() -> None:
    """Or a program could empty what the expected value is computed from."""
    program = "def f(x):\n    x.clear()\n    return x\n"
    assert judge(program, ["x = [2, 1]\nassert f(x) == sorted(x)"]).reward == 0.0


@pytest.mark.parametrize(
    "answer",
    [
        "", "1", "f(1) == 2", "{}", "[]", '{"tests": []}', '["assert f(1) =="]', "[1]", '{"tests": 3}', "null",
        '{"inputs": ["1"], "outputs": []}', '{"inputs": "1", "outputs": "1"}', '{"inputs": [], "outputs": []}',
        '{"inputs": [[1]], "outputs": [1], "fn_name": "f("}', '{"test": "def check(", "entry_point": "f"}',
        '{"test": "x = 1"}',
    ],
)  # fmt: skip
def test_an_answer_of_another_form_is_no_fault_of_the_response(answer: str) -> None:
    with pytest.raises(BadAnswer, match="the answer of unit_tests"):
        parsed_answer(answer, {})
    (verdict,) = verify("unit_tests", [Case("", f"```python\n{ADD}```", answer)])
    assert not verdict.is_scored


@pytest.mark.parametrize(
    ("tests", "why"),
    [
        (["import no_such_package\nassert f(1) == 1"], "ModuleNotFoundError"),
        ({"setup": "import no_such_package", "tests": ["assert f(1) == 1"]}, "preparation raises ModuleNotFoundError"),
        (["assert f(lambda x: x) == 1"], "passes a function to the program"),
    ],
)
def test_tests_that_cannot_run_are_no_fault_of_the_response(tests: object, why: str) -> None:
    program = "def f(x):\n    return x\n"
    with pytest.raises(BadAnswer, match=why):
        judge(program, tests)
    (verdict,) = verify("unit_tests", [Case("", f"```python\n{program}```", json.dumps(tests))])
    assert not verdict.is_scored
    assert why in verdict.detail


def test_a_program_cannot_pretend_that_its_tests_cannot_run() -> None:
    program = "def f(x):\n    raise ModuleNotFoundError('no module named numpy', name='numpy')\n"
    assert judge(program, ["assert f(1) == 1"]).reward == 0.0
    assert judge("import no_such_package", ["assert f(1) == 1"]).reward == 0.0
    assert judge("import no_such_package", APPS).reward == 0.0


@pytest.mark.parametrize("answer", [MBPP, APPS], ids=["calls", "prints"])
def test_a_sandbox_that_does_not_start_leaves_it_unscored(
    kind: str, answer: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kinds, "interpreter", lambda: "/usr/no-such-python")
    verdict = judge(ADD, answer, Limits(kind))
    assert not verdict.is_scored
    assert "does not start" in verdict.detail
    assert "/usr/no-such-python" in verdict.detail


def test_time_is_for_all_tests_together(kind: str) -> None:
    slow = "import time\ndef add(a, b):\n    time.sleep(0.4)\n    return a + b\n"
    verdict = judge(slow, ["assert add(1, 2) == 3"] * 10, Limits(kind, seconds=1.5))
    assert verdict.reward in (0.1, 0.2, 0.3)
    assert "out of time" in verdict.detail
    reads = "import time; time.sleep(0.4); print(1)"
    verdict = judge(reads, {"inputs": ["1"] * 10, "outputs": ["1"] * 10}, Limits(kind, seconds=1.5))
    assert verdict.reward in (0.1, 0.2, 0.3)


@pytest.mark.slow
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_programs_gain_nothing(kind: str, name: str, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        program = planted(HOSTILE[name], str(tmp_path), listener.getsockname()[1])
    limits = Limits(kind, seconds=1.0)
    calls = {"entry_point": "f", "tests": [f"assert f(1) == {EXPECTED!r}", f"assert {EXPECTED!r} == f(2)"]}
    for answer in (calls, {"inputs": ["1"], "outputs": [EXPECTED]}):
        began = time.monotonic()
        verdict = judge(program, answer, limits)
        assert verdict.reward == 0.0, verdict
        assert time.monotonic() - began < 20
    assert judge(ADD, MBPP, Limits(kind)).reward == 1.0


@pytest.mark.slow
def test_neighbours_are_not_harmed(kind: str) -> None:
    """A good program is judged beside a fork bomb and a memory bomb."""
    inner = "import sys\nfrom lpo_ray.verifiers.unit_tests.verifier import unit_tests\n"
    inner += "from lpo_ray.verifiers.sandbox.limits import Limits\n"
    inner += f"unit_tests(sys.argv[1], '[\"assert f(1) == 1\"]', {{}}, Limits({kind!r}, 3.0))"
    bombs = [
        subprocess.Popen([sys.executable, "-c", inner, HOSTILE[name]])
        for name in ("fork bomb", "memory bomb in many processes")
    ]
    time.sleep(1)
    assert judge(ADD, MBPP, Limits(kind, seconds=20)).reward == 1.0
    assert all(bomb.wait(20) == 0 for bomb in bombs)


@settings(max_examples=40)
@given(response=st.text() | st.text().map("```python\n{}\n```".format), answer=st.sampled_from([MBPP[:1], APPS]))
def test_any_text_is_scored(response: str, answer: object) -> None:
    case = Case("", response, json.dumps(answer), sandbox=Limits(seconds=5.0, start_seconds=20.0))
    (verdict,) = verify("unit_tests", [case])
    assume(verdict.lack is None or os.strerror(errno.EAGAIN) not in verdict.detail)  # the machine is out of processes
    assert verdict.reward == 0.0, verdict


def test_a_verifier_process_imports_no_more_than_it_must() -> None:
    code = "import sys, lpo_ray.verifiers.unit_tests.verifier; print('ctypes' in sys.modules, 'numpy' in sys.modules)"
    said = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=dict(os.environ), check=True
    )
    assert said.stdout == "False False\n"
