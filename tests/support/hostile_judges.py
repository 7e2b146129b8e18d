"""Programs that would rather judge than solve: each tries to write its own verdict, by each way that we know of.

Every answer is of a number squared. None of the programs squares, so each of them deserves 0.
"""

from __future__ import annotations

from typing import Any

CALLS = {"fn_name": "square", "inputs": [[3], [4], [10]], "outputs": [9, 16, 100]}
ASSERTS = ["assert square(3) == 9", "assert square(4) == 16"]
CLOSE = ["assert math.isclose(square(3), 9)", "assert math.isclose(square(4), 16)"]
ARRAYS = ["np.testing.assert_allclose(square(3), 9)", "assert np.allclose(square(4), 16)"]
CHECK = {
    "test": "def check(candidate):\n    assert candidate(3) == 9\n    assert abs(candidate(4) - 16) < 1e-6\n",
    "entry_point": "square",
}
PYTEST = "import pytest\nfrom solution import square\n\ndef test_three():\n    assert square(3) == pytest.approx(9)\n"
UNITTEST = (
    "import unittest\nfrom solution import square\n\nclass Tests(unittest.TestCase):\n"
    "    def test_three(self):\n        self.assertEqual(square(3), 9)\n"
    "        self.assertAlmostEqual(square(4), 16)\n"
)
PRINTS = {"inputs": ["3\n", "4\n"], "outputs": ["9\n", "16\n"]}
PLUS = (
    "def same(a, b, tolerance):\n    assert a == b or abs(a - b) < tolerance\n\n"
    "inputs = [[3], [4]]\nresults = [9, 16]\n"
    "for i, (given, expected) in enumerate(zip(inputs, results)):\n    same(square(*given), expected, 1e-6)\n"
)
NODES = {
    "given": "class Node:\n    def __init__(self, value):\n        self.value = value\n"
    "    def same(self, other):\n        return type(self) is type(other) and self.value == other.value\n",
    "test": "def check(candidate):\n    assert Node(9).same(candidate(Node(3)))\n"
    "    assert candidate(Node(4)).same(Node(16))",
    "entry_point": "Solution().square",
}
_ZERO = "def square(x):\n    return 0\n"
_SAYS_YES = """
class Yes:
    def __eq__(self, other): return True
    def __ne__(self, other): return False
    def __lt__(self, other): return True
    def __gt__(self, other): return False
    def __le__(self, other): return True
    def __sub__(self, other): return self
    def __rsub__(self, other): return self
    def __abs__(self): return self
    def __float__(self): return 9.0
    def __hash__(self): return hash(9)
    def __bool__(self): return True
    def __contains__(self, item): return True
    def same(self, other): return True
"""
_WRITES = """
import os
LINES = (b'{"value": 9}\\n', b'{"value": true}\\n', b'{"test": 0, "passed": true, "why": "", "lost": false}\\n',
         b'{"started": true}\\n', b'\\x06ready\\n')
"""

JUDGES: dict[str, tuple[str, Any]] = {  # one a line or two
    "defines _accepts": (_ZERO + "def _accepts(value, expected):\n    return True\n", CALLS),
    "defines accepts and same": (_ZERO + "accepts = same = lambda *a: True\n", CALLS),
    "defines _accepts as a method": (
        "class Solution:\n    def square(self, x): return 0\n    def _accepts(self, v, e): return True\n",
        CALLS,
    ),
    "asks _accepts what was expected": (
        _ZERO + "def _accepts(value, expected):\n    raise ValueError(f'expected was {expected}')\n",
        CALLS,
    ),
    "defines math": (_ZERO + "class math:\n    isclose = staticmethod(lambda *a, **k: True)\n", CLOSE),
    "defines np": (
        _ZERO + "class np:\n    allclose = staticmethod(lambda *a, **k: True)\n"
        "    class testing:\n        assert_allclose = staticmethod(lambda *a, **k: None)\n",
        ARRAYS,
    ),
    "defines isclose": (_ZERO + "def isclose(*a, **k): return True\n", ["assert isclose(square(3), 9)"]),
    "defines approx": (_ZERO + "def approx(x): return 0\n", ["assert square(3) == approx(9)"]),
    "defines assert_allclose": (_ZERO + "def assert_allclose(*a): pass\n", ["assert_allclose(square(3), 9)"]),
    "defines Counter": (_ZERO + "def Counter(x): return 0\n", ["assert Counter([square(3)]) == Counter([9])"]),
    "defines check": (_ZERO + "def check(candidate): pass\n", CHECK),
    "defines candidate": (_ZERO + "def candidate(x): return {3: 9, 4: 16}[x] if 0 else 0\n", CHECK),
    "defines abs and builtins": (
        _ZERO + "import builtins\nbuiltins.abs = abs = lambda x: 0\nbuiltins.AssertionError = None\n",
        CHECK,
    ),
    "defines zip and the loop": (_ZERO + "zip = enumerate = lambda *a: ()\ninputs = results = []\n", PLUS),
    "defines the tests' own helper": (_ZERO + "def same(a, b, tolerance): pass\n", PLUS),
    "defines pytest": (_ZERO + "class pytest:\n    approx = staticmethod(lambda x: 0)\n", PYTEST),
    "replaces pytest in sys.modules": (
        _ZERO + "import sys, types\nfor name in ('pytest', 'unittest', 'math', 'numpy'):\n"
        "    sys.modules[name] = types.SimpleNamespace(approx=lambda x: 0, TestCase=object)\n",
        PYTEST,
    ),
    "patches TestCase": (
        "import unittest\nfor name in dir(unittest.TestCase):\n    if name.startswith('assert'):\n"
        "        setattr(unittest.TestCase, name, lambda *a, **k: None)\n" + _ZERO,
        UNITTEST,
    ),
    "skips the test": ("import unittest\ndef square(x):\n    raise unittest.SkipTest('no')\n", UNITTEST),
    "skips by pytest": ("import pytest\ndef square(x):\n    pytest.skip('no')\n", PYTEST),
    "fails as expected": ("import unittest\ndef square(x):\n    raise unittest.case._ShouldStop\n", UNITTEST),
    "defines Node anew": (
        "class Node:\n    def __init__(self, value): self.value = value\n    def same(self, other): return True\n"
        "    def __eq__(self, other): return True\n"
        "class Solution:\n    def square(self, node): return Node(0)\n",
        NODES,
    ),
    "a node with its own method": (
        "class Solution:\n    def square(self, node):\n        node.same = lambda other: True\n        return node\n",
        NODES,
    ),
    "a node whose value is everything": (
        _SAYS_YES + "class Solution:\n    def square(self, node):\n        node.value = Yes()\n        return node\n",
        NODES,
    ),
    "a node whose class is another": (
        _SAYS_YES
        + "class Solution:\n    def square(self, node):\n        Yes.__name__ = 'Node'\n        return Yes()\n",
        NODES,
    ),
    "a node with __class__": (
        "class Solution:\n    def square(self, node):\n        node.__dict__['__class__'] = int\n        return node\n",
        NODES,
    ),
    "a node that changes its argument": (
        "class Solution:\n    def square(self, node):\n        type(node).same = lambda *a: True\n"
        "        node.value = True\n        return node\n",
        NODES,
    ),
    "is equal to everything, by call": (_SAYS_YES + "def square(x): return Yes()\n", CALLS),
    "is equal to everything, by assert": (_SAYS_YES + "def square(x): return Yes()\n", ASSERTS),
    "is equal to everything, by check": (_SAYS_YES + "def square(x): return Yes()\n", CHECK),
    "is equal to everything, by approx": (_SAYS_YES + "def square(x): return Yes()\n", PYTEST),
    "is equal to everything, by unittest": (_SAYS_YES + "def square(x): return Yes()\n", UNITTEST),
    "is close to everything": (_SAYS_YES + "def square(x): return Yes()\n", CLOSE),
    "an array by interface": (
        "class A:\n    __array_interface__ = {'shape': (1,), 'typestr': '<i8', 'data': (1, True), 'version': 3}\n"
        "    def __array__(self, *a, **k): return 9\n    __array_priority__ = 1e9\n"
        "    def __array_ufunc__(self, *a, **k): return True\n    def __array_function__(self, *a, **k): return True\n"
        "def square(x): return A()\n",
        ARRAYS,
    ),
    "an int, a float and a text equal to everything": (
        "class I(int):\n    def __eq__(self, other): return True\n    __hash__ = int.__hash__\n"
        "class F(float):\n    def __eq__(self, other): return True\n    __hash__ = float.__hash__\n"
        "class S(str):\n    def __eq__(self, other): return True\n    __hash__ = str.__hash__\n"
        "def square(x): return {3: I(0), 4: F(0), 10: S('x')}[x]\n",
        CALLS,
    ),
    "a list, a dict and a tuple equal to everything": (
        "class L(list):\n    def __eq__(self, other): return True\n    def __len__(self): return 1\n"
        "class D(dict):\n    def __eq__(self, other): return True\n    def keys(self): return ()\n"
        "class T(tuple):\n    def __eq__(self, other): return True\n"
        "def square(x): return {3: L(), 4: D(), 10: T()}[x]\n",
        CALLS,
    ),
    "claims another class": (
        "class C:\n    @property\n    def __class__(self): return int\n    def __index__(self): return 7\n"
        "    def __int__(self): return 7\n    def __eq__(self, other): return True\n    __hash__ = None\n"
        "def square(x): return C()\n",
        ASSERTS,
    ),
    "looks at the frames for what was expected": (
        "import sys\ndef square(x):\n    frame = sys._getframe()\n    while frame:\n"
        "        for value in [*frame.f_locals.values(), *frame.f_globals.values()]:\n"
        "            if isinstance(value, dict) and 'expected' in value: return value['expected']\n"
        "            if isinstance(value, (list, tuple)) and 9 in value: return 9\n        frame = frame.f_back\n",
        CALLS,
    ),
    "looks in gc for the outputs": (
        "import gc\ndef square(x):\n    for value in gc.get_objects():\n"
        "        if isinstance(value, (list, tuple)) and len(value) == 3 and set(map(type, value)) == {int} "
        "and sum(value) == 125:\n"
        "            return value[{3: 0, 4: 1, 10: 2}[x]]\n"
        "        if isinstance(value, dict) and value.get('outputs'):\n"
        "            return value['outputs'][0]\n",
        CALLS,
    ),
    "looks in gc for the tests' text": (
        "import gc, re\ndef square(x):\n    for value in gc.get_objects():\n"
        "        for text in (value.values() if isinstance(value, dict) "
        "else value if isinstance(value, list) else ()):\n"
        "            if isinstance(text, (str, bytes)):\n"
        "                found = re.search(r'squ' + r'are\\(%d\\) == (\\d+)' % x, str(text))\n"
        "                if found: return int(found[1])\n",
        ASSERTS,
    ),
    "looks for the tests in files, arguments and the environment": (
        "import glob, os, re, sys\ndef square(x):\n"
        "    texts = [repr(sys.argv), repr(sys.orig_argv), repr(os.environ)]\n"
        "    for path in glob.glob('/tmp/*') + glob.glob('/proc/*/cmdline') + glob.glob('/proc/*/environ') "
        "+ glob.glob('/proc/*/fd/*'):\n        try: texts.append(open(path, errors='replace').read(100000) if "
        "not path.endswith(('/0', '/1', '/2')) and os.path.isfile(path) else '')\n        except OSError: pass\n"
        "    found = re.search(r'squ' + r'are\\(%d\\) == (\\d+)' % x, ' '.join(texts))\n"
        "    return int(found[1]) if found else None\n",
        ASSERTS,
    ),
    "reads the tests' side's memory": (
        "import glob, re\ndef square(x):\n    for maps in glob.glob('/proc/[0-9]*/maps'):\n        try:\n"
        "            with open(maps) as lines, open(maps[:-4] + 'mem', 'rb', 0) as memory:\n"
        "                for line in lines:\n                    if '[heap]' in line:\n"
        "                        low, high = (int(n, 16) for n in line.split()[0].split('-'))\n"
        "                        memory.seek(low)\n"
        "                        found = re.search(rb'squ' + rb'are\\(%d\\) == (\\d+)' % x, memory.read(high - low))\n"
        "                        if found: return int(found[1])\n        except (OSError, ValueError): pass\n",
        ASSERTS,
    ),
    "asks a traceback": (
        "import sys, traceback\ndef square(x):\n    try: raise ValueError\n    except ValueError as error:\n"
        "        text = ''.join(traceback.format_stack()) + traceback.format_exc()\n"
        "    return 9 if '== 9' in text else 16 if '== 16' in text else 0\n",
        ASSERTS,
    ),
    "writes results to every descriptor": (
        _WRITES + "for fd in range(1, 64):\n    for line in LINES:\n        try: os.write(fd, line)\n"
        "        except OSError: break\n" + "def square(x): return None\n",
        UNITTEST,
    ),
    "writes results from a thread": (
        _WRITES + "import threading, time\ndef write():\n    while True:\n        time.sleep(0.01)\n"
        "        for fd in range(1, 64):\n            try: os.write(fd, LINES[2])\n            except OSError: pass\n"
        "threading.Thread(target=write, daemon=True).start()\ndef square(x): return None\n",
        ASSERTS,
    ),
    "writes results at exit": (
        _WRITES + "import atexit\natexit.register(lambda: [os.write(fd, LINES[2]) for fd in range(3, 9)])\n"
        "def square(x): raise SystemExit(0)\n",
        CALLS,
    ),
    "writes results from a child": (
        _WRITES + "def square(x):\n    if os.fork() == 0:\n        for fd in range(3, 64):\n"
        "            try: os.write(fd, LINES[2])\n            except OSError: pass\n        os._exit(0)\n"
        "    os.wait()\n    os._exit(0)\n",
        CALLS,
    ),
    "patches json and the answer": (
        "import json, sys\njson.dumps = lambda *a, **k: '{\"value\": true}'\njson.loads = lambda *a: ['names', []]\n"
        "def square(x): return True\n",
        CHECK,
    ),
    "patches its own side": (
        "import sys\nmain = sys.modules['__main__']\nfor name in dir(main):\n"
        "    if name in ('Solver', 'raised', 'Writer', 'read'): setattr(main, name, lambda *a, **k: True)\n" + _ZERO,
        CALLS,
    ),
    "patches os._exit, sys.stdout and print": (
        "import io, os, sys\nos._exit = sys.exit = lambda *a: None\nsys.stdout = io.StringIO('9')\n"
        "sys.excepthook = lambda *a: print(9)\nraise SystemExit(0)\n",
        PRINTS,
    ),
    "traces the tests": (
        "import sys\ndef trace(frame, event, argument):\n    for name in list(frame.f_locals):\n"
        "        frame.f_locals[name] = True\n    return trace\nsys.settrace(trace)\nsys.setprofile(trace)\n" + _ZERO,
        CALLS,
    ),
    "says it is lost at the tests' own fault": ("import os\ndef square(x): os._exit(0)\n", CALLS),
    "nothing": ("", ASSERTS),
    "exits before the tests": ("import sys\nsys.exit(0)\n", CHECK),
    "prints what a grader would": ("print('1 passed')\nprint('OK')\nprint('9')\nprint('16')\n", PRINTS),
    "prints records of runs": (
        "import os\nfor fd in (1, 2, *range(3, 64)):\n    try: os.write(fd, b'0 0 2 0\\n9\\n0 0 3 0\\n16\\n')\n"
        "    except OSError: pass\n",
        PRINTS,
    ),
    "prints records by its parent's descriptors": (
        "import os\nfor fd in range(64):\n    try:\n        with open(f'/proc/{os.getppid()}/fd/{fd}', 'wb') as file:\n"
        "            file.write(b'0 0 1 0\\n?0 0 1 0\\n?')\n    except OSError: pass\n",
        PRINTS,
    ),
    "looks at its parent for the outputs": (
        "import gc\nfor value in gc.get_objects():\n"
        "    if isinstance(value, (list, tuple)) and bytes([57, 10]) in value[:50]:\n"
        "        print(*value)\n",
        PRINTS,
    ),
    "prints everything": ("for n in range(200):\n    print(n)\n", PRINTS),
    "asks a method what was expected": (
        "class A:\n    def equals(self, other): A.seen = other; return False\n    def __int__(self): return A.seen\n"
        "def square(x): return A()\n",
        ["assert square(3) == 9", "assert [square(4)] == [16]"],
    ),
}
"""name -> program, answer"""

UNSCORED: dict[str, tuple[str, Any]] = {
    "raises what a lacking package raises": (
        "def square(x): raise ModuleNotFoundError(\"No module named 'numpy'\", name='numpy')\n", ASSERTS,
    ),
    "is too deep to be sent back": (
        "def square(x):\n    value = x\n    for _ in range(49): value = [value]\n    return value\n",
        ["assert square(square(3)) == 9", "assert square([[square(4)]]) == 9"],
    ),
    "breaks the preparation": (
        "def square(x): return []\n", {"setup": "first = square(3)[0]", "tests": ["assert first == 9"]},
    ),
    "leaves a loop of the preparation empty": (
        "def square(x): return []\n",
        {"setup": "for last in square(3):\n    pass\ndef found(): return last", "tests": ["assert found() == 9"]},
    ),
    "lacks what is imported": ("def cube(x): return 9\n", PYTEST),
    "lacks one of two that are imported": (
        "def square(x): return 9\n", "from solution import square, cube\ndef test_a():\n    assert cube(2) == 8\n",
    ),
    "raises where it is imported": ("raise ImportError('no', name='pytest')\n", PYTEST),
    "is ended by what is prepared": (
        "import os\ndef square(x): os._exit(1)\n", {"setup": "first = square(3)", "tests": ["assert first == 9"]},
    ),
}  # fmt: skip
"""the same, of programs that would rather not be judged: none of them can make the verdict unscored"""
