"""The program's side of tests by calls: runs the program, then does what its tests ask, one JSON line each way.

Everything in this process can be in the program's hands; the tester takes no more from it than values.
"""

from __future__ import annotations

import builtins
import contextlib
import json
import operator
import os
import sys
from typing import Any

from lpo_ray.verifiers.sandbox.inside.wire import DEPTH, IN_PLACE, Writer, builtin_error, own_classes, read


class Solver:
    """Names that the program defines, and the values of no plain type that its tests hold numbers of."""

    def __init__(self, module: dict[str, Any], given: dict[str, type]) -> None:
        """``given``: classes of the task's own code."""
        self._module, self._given = module, given
        self._values: list[Any] = []

    def answer(self, question: list[Any]) -> dict[str, Any]:
        """Answer ``["names", names, class]``, ``["text", object]``, ``["get", object, attribute]``,
        ``["set", object, attribute, value]``, ``["operate", object, object, operator]``, ``["call", object, args,
        kwargs]``, or ``["change", object, [args, kwargs]]``, which asks for the arguments after the call too, and for
        the objects in them, in the order of the question's.
        """
        what, *rest = question
        if what == "names":
            found = {name: self._named(name, rest[1]) for name in rest[0]}
            return self._message({name: value[0] for name, value in found.items() if value})
        classes = self._classes()
        made: list[Any] = []
        values = [
            read(part, self._values.__getitem__, classes, 4 * DEPTH, made) if isinstance(part, dict) else part
            for part in rest
        ]
        if what == "text":
            return self._message(str(values[0]))
        if what == "get":
            return self._message(getattr(values[0], values[1]))
        if what == "set":
            return self._message(setattr(values[0], values[1], values[2]))
        if what == "operate":
            return self._message(getattr(operator, values[2])(values[0], values[1]))
        if what == "change":
            args, kwargs = values[1]
            value = values[0](*args, **kwargs)
            return self._message((value, args, kwargs, tuple(made)), IN_PLACE)
        return self._message(values[0](*values[1], **values[2]))

    def _message(self, value: Any, depth: int = DEPTH) -> dict[str, Any]:  # noqa: ANN401 - any value
        return Writer(self._number, self._given, depth).message(value)

    def _classes(self) -> dict[str, type]:
        """Return the classes of the task's own code, or those that the program put in their place."""
        own = {name: self._module.get(name) for name in self._given}
        return {name: kind if isinstance(kind, type) else self._given[name] for name, kind in own.items()}

    def _number(self, value: Any) -> int:  # noqa: ANN401 - any value
        self._values.append(value)
        return len(self._values) - 1

    def raised(self, error: BaseException) -> list[Any]:
        """Return an error's nearest builtin type, what it says, and the numbers of its classes that the tests know."""
        known = [
            number for number, value in enumerate(self._values) if any(value is kind for kind in type(error).__mro__)
        ]
        try:
            return [*builtin_error(type(error)), str(error)[:500], known]
        except Exception:  # noqa: BLE001 - the program's own __str__
            return [*builtin_error(type(error)), "", known]

    def _named(self, name: str, owner: str) -> list[Any]:
        """Look up what the program defines at its top or in the class ``owner``; [] if it does not."""
        if name in self._module:
            return [self._module[name]]
        if hasattr(self._module.get(owner), name):
            return [getattr(self._module[owner](), name)]
        return []


def run_given(code: str) -> dict[str, Any]:
    """Run the task's own code, which stands before a program. What is wrong with it is said by the tests' side."""
    space: dict[str, Any] = {"__name__": "given"}
    with contextlib.suppress(BaseException):
        exec(compile(code, "given.py", "exec", dont_inherit=True), space)
    return space


def serve(program: str, given: str, most: int) -> None:
    """Run the program and answer until the tests have nothing more to ask. ``given``: the task's own code, whose names
    the program finds as it finds Python's. ``most``: bytes that an answer may have.
    """
    asked, answers = os.fdopen(os.dup(0), encoding="utf-8"), os.dup(1)
    null = os.open("/dev/null", os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)

    def say(answer: dict[str, Any]) -> None:
        line = json.dumps(answer).encode()
        if len(line) >= most:
            line = json.dumps(
                {"error": ["ValueError", f"a value of {len(line)} bytes, at most {most} are taken", []]}
            ).encode()
        rest = memoryview(line + b"\n")
        while rest:
            rest = rest[os.write(answers, rest) :]

    module = sys.modules["solution"] = type(sys)("solution")
    space = run_given(given)
    module.__dict__["__builtins__"] = {**space, **vars(builtins)}
    solver = Solver(module.__dict__, own_classes(space))
    try:
        exec(compile(program, "solution.py", "exec"), module.__dict__)  # annotations stay texts, as in this file
        say({"value": True})
    except BaseException as error:  # noqa: BLE001 - whatever the program raises, SystemExit too
        say({"error": solver.raised(error)})
    for line in asked:
        try:
            say(solver.answer(json.loads(line)))
        except BaseException as error:  # noqa: BLE001 - as above
            say({"error": solver.raised(error)})


if __name__ == "__main__":
    serve(*globals()["ARGUMENT"])
