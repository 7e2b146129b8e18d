"""Tests that are written in Python: asserts, ``check(candidate)``, functions and classes of pytest and of unittest."""

from __future__ import annotations

import ast
from collections.abc import Sequence

from lpo_ray.verdict import BadAnswer
from lpo_ray.verifiers.sandbox.call_tests import CallTests, Test
from lpo_ray.verifiers.unit_tests.names import names_of

_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


def python_tests(
    setup: Sequence[str], tests: Sequence[str] | str, entry_point: str | None, given: str = ""
) -> CallTests:
    """Make tests of statements, each of which is one, or of a whole text with tests in it. ``setup`` stands before
    them; ``entry_point``: ``f``, or ``Solution().f``; ``given``: the task's own code. Raises BadAnswer.
    """
    owner, _, name = (entry_point or "").replace("()", "").rpartition(".")
    if entry_point and not (name.isidentifier() and (not owner or owner.isidentifier())):
        raise BadAnswer(f"entry_point is {entry_point[:60]!r}; expected the name of a function")
    if isinstance(tests, str):
        before, found = _split(parsed(tests))
        setup = [*setup, before]
    else:
        for each in tests:
            parsed(each)
        found = [("code", each) for each in tests]
    code = "\n".join(part for part in setup if part)
    defined = {node.name for node in parsed(code).body if isinstance(node, ast.FunctionDef)}
    if "check" in defined and name and not any("check(" in text for _, text in found):  # HumanEval
        found = [*found, ("code", "check(candidate)")]
    if not found:
        raise BadAnswer(f"the tests are {str(tests)[:80]!r}, which has no test")
    statements = [text if kind == "code" else "" for kind, text in found]
    names = names_of("\n".join([code, *statements]), given, name or None)
    if not names.program and not name:
        raise BadAnswer(f"the tests are {str(tests)[:80]!r}, which call no program")
    setup_code = "\n".join(part for part in (names.imports, code) if part)
    return CallTests(tuple(found), names.program, name or None, owner or "Solution", setup_code, given)


def parsed(code: str) -> ast.Module:
    """Parse Python of a data set. Raises BadAnswer."""
    try:
        return ast.parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise BadAnswer(f"a test is {code[:80]!r}, no Python: {error}") from error


def _split(tree: ast.Module) -> tuple[str, list[Test]]:
    """Split a text into preparation and tests. A function or method of pytest or unittest is one, and so is each
    statement at the top that asserts or calls, with what was set since the one before.
    """
    before: list[str] = []
    tests: list[Test] = []
    since: list[str] = []
    for node in tree.body:
        if isinstance(node, _FUNCTIONS) and node.name.startswith("test"):
            tests.append(("named", _callable(node, 0)))
        elif isinstance(node, ast.ClassDef) and _holds_tests(node):
            methods = [part for part in node.body if isinstance(part, _FUNCTIONS) and part.name.startswith("test")]
            tests += [("named", f"{node.name}.{_callable(method, 1)}") for method in methods]
        elif _is_main(node):
            continue
        elif _is_test(node):
            tests.append(("code", "\n".join([*since, ast.unparse(node)])))
            since = []
            continue
        is_set = isinstance(node, ast.Assign | ast.AnnAssign | ast.AugAssign) and bool(tests)
        (since if is_set else before).append(ast.unparse(node))
    return "\n".join(before), tests


def _is_test(node: ast.stmt) -> bool:
    if isinstance(node, ast.Assert):
        return True
    if isinstance(node, ast.Expr):
        return isinstance(node.value, ast.Call)
    if isinstance(node, ast.For | ast.With | ast.Try | ast.If | ast.While):  # MBPP+ has its cases in a loop
        return any(isinstance(part, ast.Assert | ast.Call) for part in ast.walk(node))
    return False


def _is_main(node: ast.stmt) -> bool:
    """Tell ``if __name__ == "__main__":``, which is not run here."""
    return isinstance(node, ast.If) and any(
        isinstance(part, ast.Name) and part.id == "__name__" for part in ast.walk(node.test)
    )


def _holds_tests(node: ast.ClassDef) -> bool:
    bases = {getattr(base, "attr", getattr(base, "id", "")) for base in node.bases}
    return node.name.startswith("Test") or "TestCase" in bases


def _callable(function: ast.FunctionDef | ast.AsyncFunctionDef, bound: int) -> str:
    """Return the function's name, if it can be called without pytest. Raises BadAnswer."""
    given = "".join(ast.unparse(mark) for mark in function.decorator_list if "parametrize" in ast.unparse(mark))
    arguments = [part.arg for part in function.args.args[bound:] if part.arg not in given]
    if isinstance(function, ast.AsyncFunctionDef) or arguments:
        lack = f"the fixture {arguments[0]}" if arguments else "an event loop"
        raise BadAnswer(f"the test {function.name} needs {lack}, which there is not here")
    return function.name
