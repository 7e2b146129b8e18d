"""The program's side of tests by calls: runs the program, then does what its tests ask, one JSON line each way.

Everything in this process can be in the program's hands; the tester takes no more from it than values.
"""

from __future__ import annotations

import builtins
import json
import os
import sys
from typing import Any

from lpo_ray.verifiers.sandbox.inside.wire import decode, encode


class Solver:
    """Names that the program defines, and the values of no plain type that its tests hold numbers of."""

    def __init__(self, module: dict[str, Any]) -> None:
        self._module = module
        self._values: list[Any] = []

    def answer(self, question: list[Any]) -> Any:  # noqa: ANN401 - any value
        """Answer ``["names", [...]]``, ``["get", value, attribute]`` or ``["call", value, args, kwargs]``."""
        what, *rest = question
        if what == "names":
            found = {name: self._named(name) for name in rest[0]}
            return {name: value[0] for name, value in found.items() if value}
        values = [decode(part, self._values.__getitem__) for part in rest]
        if what == "get":
            return getattr(values[0], values[1])
        return values[0](*values[1], **values[2])

    def encoded(self, value: Any) -> Any:  # noqa: ANN401 - any value
        """Encode a value for the tester."""
        return encode(value, self._number)

    def _number(self, value: Any) -> int:  # noqa: ANN401 - any value
        self._values.append(value)
        return len(self._values) - 1

    def _named(self, name: str) -> list[Any]:
        """Look up a function of the module, or else of its class Solution, or else a builtin; [] if there is none."""
        if name in self._module:
            return [self._module[name]]
        if hasattr(self._module.get("Solution"), name):
            return [getattr(self._module["Solution"](), name)]
        return [getattr(builtins, name)] if hasattr(builtins, name) else []


def raised(error: BaseException) -> list[str]:
    """Return an exception's nearest builtin type and what it says."""
    kind = next(kind for kind in type(error).__mro__ if kind.__module__ == "builtins")
    try:
        return [kind.__name__, str(error)[:500]]
    except Exception:  # noqa: BLE001 - the program's own __str__
        return [kind.__name__, ""]


def serve(program: str, most: int) -> None:
    """Run the program and answer until the tests have nothing more to ask. ``most``: bytes that an answer may have."""
    asked, answers = os.fdopen(os.dup(0), encoding="utf-8"), os.dup(1)
    null = os.open("/dev/null", os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)

    def say(**answer: Any) -> None:  # noqa: ANN401 - any value
        line = json.dumps(answer).encode()
        if len(line) >= most:
            line = json.dumps(
                {"error": ["ValueError", f"a value of {len(line)} bytes, at most {most} are taken"]}
            ).encode()
        rest = memoryview(line + b"\n")
        while rest:
            rest = rest[os.write(answers, rest) :]

    module = sys.modules["solution"] = type(sys)("solution")
    solver = Solver(module.__dict__)
    try:
        exec(compile(program, "solution.py", "exec"), module.__dict__)
        say(value=True)
    except BaseException as error:  # noqa: BLE001 - whatever the program raises, SystemExit too
        say(error=raised(error))
    for line in asked:
        try:
            say(value=solver.encoded(solver.answer(json.loads(line))))
        except BaseException as error:  # noqa: BLE001 - as above
            say(error=raised(error))


if __name__ == "__main__":
    serve(*globals()["ARGUMENT"])
