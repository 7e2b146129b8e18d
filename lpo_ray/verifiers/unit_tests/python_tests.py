"""Tests that are written in Python: asserts, ``check(candidate)``, functions and classes of pytest and of unittest."""

from __future__ import annotations

import ast
from collections.abc import Collection, Sequence

from lpo_ray.verdict import BadAnswer
from lpo_ray.verifiers.sandbox.call_tests import CallTests, Test
from lpo_ray.verifiers.unit_tests.changes import changes_of
from lpo_ray.verifiers.unit_tests.names import BUILTINS, base_of, names_of

_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
_DEFINITIONS = (*_FUNCTIONS, ast.ClassDef)
_CHECK = "check(candidate)"


def python_tests(
    setup: Sequence[str], tests: Sequence[str] | str, entry_point: str | None, given: str = ""
) -> CallTests:
    """Make tests of statements, each of which is one, or of a whole text with tests in it. ``setup`` stands before
    them; ``entry_point``: ``f``, or ``Solution().f``; ``given``: the task's own code. What does not depend on the
    program is no test. Raises BadAnswer.
    """
    owner, _, name = (entry_point or "").replace("()", "").rpartition(".")
    owner = owner or "Solution"
    if entry_point and not (name.isidentifier() and owner.isidentifier()):
        raise BadAnswer(f"entry_point is {entry_point[:60]!r}; expected the name of a function")
    before = "\n".join(part for part in setup if part)
    texts = [tests] if isinstance(tests, str) else [*tests]
    defined = [node.name for text in (before, *texts) for node in parsed(text).body if isinstance(node, _DEFINITIONS)]
    if "check" in defined and name and not any(_calls_check(text) for text in texts):  # HumanEval
        texts.append(_CHECK)
    names = names_of("\n".join([before, *texts]), given, name or None, owner)
    whole = isinstance(tests, str) or any(isinstance(n, _DEFINITIONS) for text in texts for n in parsed(text).body)
    units = [(ast.unparse(node), node) for node in parsed("\n".join(texts)).body] if whole else []
    more, found = _split(units or [(text, parsed(text)) for text in texts], names.reaching, defined)
    if not found:
        raise BadAnswer(f"the tests are {str(tests)[:80]!r}, none of which checks what a program does")
    code = "\n".join(part for part in (names.imports, before, more) if part)
    changes = changes_of(parsed("\n".join([before, *texts])), names.program, names.reaching)
    return CallTests(tuple(found), names.program, name or None, owner, code, given, changes)


def parsed(code: str) -> ast.Module:
    """Parse Python of a data set, which must also compile. Raises BadAnswer."""
    try:
        compile(code, "tests", "exec", dont_inherit=True)
        return ast.parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise BadAnswer(f"a test is {code[:80]!r}, no Python: {error}") from error


def _calls_check(text: str) -> bool:
    """Tell whether the function check is called at the top."""
    return any(
        isinstance(part, ast.Call) and getattr(part.func, "id", "") == "check"
        for node in parsed(text).body
        if not isinstance(node, _DEFINITIONS)
        for part in ast.walk(node)
    )


def _split(
    units: Sequence[tuple[str, ast.AST]], reaching: Collection[str], defined: Collection[str]
) -> tuple[str, list[Test]]:
    """Split pieces of code into preparation and tests. A function or method of pytest or unittest is one, and so is
    each other piece that checks something, with what was done since the one before; if it depends on what is
    ``reaching`` the program. ``defined``: the tests' own functions and classes.
    """
    before: list[str] = []
    tests: list[Test] = []
    since: list[str] = []
    for text, node in units:
        depends = any(isinstance(part, ast.Name) and part.id in reaching for part in ast.walk(node))
        if isinstance(node, _FUNCTIONS) and node.name.startswith("test") and depends:
            tests.append(("named", _callable(node, 0)))
        elif isinstance(node, ast.ClassDef) and _holds_tests(node) and depends:
            methods = [part for part in node.body if isinstance(part, _FUNCTIONS) and part.name.startswith("test")]
            tests += [("named", f"{node.name}.{_callable(method, 1)}") for method in methods]
        elif _is_main(node):
            continue
        elif not isinstance(node, _DEFINITIONS) and depends and _checks(node, reaching, defined):
            tests.append(("code", "\n".join([*since, text])))
            since = []
            continue
        is_later = bool(tests) and not isinstance(node, (*_DEFINITIONS, ast.Import, ast.ImportFrom))
        (since if is_later else before).append(text)
    return "\n".join(before), tests


def _checks(node: ast.AST, reaching: Collection[str], defined: Collection[str]) -> bool:
    """Tell a piece of code that checks something: by an assertion, an expected error, or a call of what is neither
    Python's own nor the program's, such as ``check(candidate)``.
    """
    for part in ast.walk(node):
        if isinstance(part, ast.Assert | ast.Raise | ast.With):
            return True
        if isinstance(part, ast.Expr) and isinstance(part.value, ast.Call):
            called = base_of(part.value.func)
            if called in defined or (called not in reaching and called not in BUILTINS):
                return True
    return False


def _is_main(node: ast.AST) -> bool:
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
