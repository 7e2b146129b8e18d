"""How one test is tried once its names stand for what they should."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any


def same(value: Any, expected: Any) -> bool:  # noqa: ANN401 - any value
    """Compare as JSON has it: no tuples, keys are texts; floats within 1e-6."""
    if isinstance(value, list | tuple) and isinstance(expected, list | tuple):
        return len(value) == len(expected) and all(map(same, value, expected))
    if isinstance(value, dict) and isinstance(expected, dict):
        left, right = ({str(key): part for key, part in each.items()} for each in (value, expected))
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    if isinstance(value, float) or isinstance(expected, float):
        if not (isinstance(value, int | float) and isinstance(expected, int | float)):
            return False
        return value == expected or math.isclose(value, expected, rel_tol=1e-6, abs_tol=1e-6)
    return bool(value == expected)


def accepts(value: Any, expected: Any) -> bool:  # noqa: ANN401 - any value
    """Tell whether a function gave what was expected, which some datasets write as a list of one."""
    return same(value, expected) or (isinstance(expected, list) and len(expected) == 1 and same(value, expected[0]))


def try_named(space: dict[str, Any], name: str) -> None:
    """Run a test function, or ``Class.method`` of unittest or of pytest's kind. It passes when it raises nothing."""
    owner, _, method = name.rpartition(".")
    if not owner:
        _try_each(space[name])
        return
    import unittest  # takes longer than most tests

    kind = space[owner]
    if issubclass(kind, unittest.TestCase):
        kind.setUpClass()
        try:
            kind(method).debug()
        finally:
            kind.tearDownClass()
        return
    instance = kind()
    try:
        _called_if_there(instance, "setup_class")
        _called_if_there(instance, "setup_method", getattr(instance, method))
        _try_each(getattr(instance, method))
    finally:
        _called_if_there(instance, "teardown_method", getattr(instance, method))


def _try_each(test: Callable[..., Any]) -> None:
    """Call a test once, or once with each of its ``pytest.mark.parametrize``."""
    marks = [mark for mark in getattr(test, "pytestmark", []) if mark.name == "parametrize"]
    for chosen in itertools.product(*map(_parameters, marks)):
        test(**{name: value for parameters in chosen for name, value in parameters.items()})


def _parameters(mark: Any) -> Iterator[dict[str, Any]]:  # noqa: ANN401 - pytest's Mark
    names, values = [*mark.args, *(mark.kwargs[key] for key in ("argnames", "argvalues") if key in mark.kwargs)][:2]
    names = [name.strip() for name in names.split(",")] if isinstance(names, str) else list(names)
    for value in values:
        given = getattr(value, "values", value)  # pytest.param
        given = value if callable(given) else given
        yield dict(zip(names, given if len(names) > 1 or given is not value else [given], strict=True))


def _called_if_there(instance: object, name: str, *args: Any) -> None:  # noqa: ANN401 - any value
    import inspect  # as above

    method = getattr(instance, name, None)
    if method is not None:
        method(*args[: len(inspect.signature(method).parameters)])
