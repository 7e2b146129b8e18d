"""The tests' side of tests by calls, in a sandbox of its own: runs the tests, in which every name that is the program's
stands for a value in the program's process. Says on stdout what became of each, one JSON line each.
"""

from __future__ import annotations

import ast
import builtins
import json
import math
import os
from collections.abc import Iterator
from typing import Any

from lpo_ray.verifiers.sandbox.inside.wire import Unsendable, decode, encode


class Lost(BaseException):
    """Error when the program's process is gone or talks nonsense. No Exception, so that a test's ``except Exception``
    does not take it for what the program raised.
    """


class Link:
    """Questions to the program's process."""

    def __init__(self, read: int, write: int, most: int) -> None:
        self._answers, self._questions, self._most = os.fdopen(read, "rb"), os.fdopen(write, "wb", 0), most
        self.lost = ""
        """why, once it is"""
        self.raised: BaseException | None = None
        """what the program raised last"""

    def started(self, ready: bytes) -> bool:
        """Tell whether the sandbox of the program's process works."""
        return self._answers.read(len(ready)) == ready

    def ask(self, *question: Any) -> Any:  # noqa: ANN401 - any value
        """Ask the program; return the answer, or raise what it raised, as builtin types have it."""
        if not self.lost:
            try:
                self._questions.write(json.dumps(question).encode() + b"\n")
            except OSError:
                self.lost = "the program ended"
        return self.answer()

    def answer(self) -> Any:  # noqa: ANN401 - any value
        """Read the answer to the question before."""
        value: Any = None
        is_error = False
        if not self.lost:
            line = self._answers.readline(self._most + 1)
            try:
                answer = json.loads(line)
                is_error = "error" in answer
                value = _error(*answer["error"]) if is_error else decode(answer["value"], self._stand_in)
            except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError, OverflowError):
                self.lost = "the program ended" if not line else "the program's process gives no proper answers"
        if self.lost:
            raise Lost(self.lost)
        if is_error:
            self.raised = value
            raise value
        return value

    def encoded(self, value: Any) -> Any:  # noqa: ANN401 - any value
        """Encode a value for the program's side."""
        return encode(value, _number)

    def _stand_in(self, number: int) -> StandIn:
        return StandIn(self, number)


class StandIn:
    """A value of no plain type in the program's process. Equal to nothing but itself."""

    def __init__(self, link: Link, number: int) -> None:
        self._link, self._number = link, number

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - any value
        return self._link.ask("get", {"h": self._number}, name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - any value
        """Call the program's function by value; its answer comes by value too."""
        return self._link.ask("call", {"h": self._number}, self._link.encoded(args), self._link.encoded(kwargs))

    def __iter__(self) -> Iterator[Any]:
        items = self.__getattr__("__iter__")()
        while True:
            try:
                yield items.__getattr__("__next__")()
            except RuntimeError as error:
                if str(error).startswith("StopIteration"):
                    return
                raise

    def __len__(self) -> int:
        try:
            length = self.__getattr__("__len__")
        except AttributeError as error:
            raise TypeError(str(error)) from None  # as list() expects of what has no length
        return length()

    def __bool__(self) -> bool:
        try:
            return len(self) > 0
        except TypeError:
            return True

    def __getitem__(self, key: Any) -> Any:  # noqa: ANN401 - any value
        return self.__getattr__("__getitem__")(key)


def _number(value: Any) -> int:  # noqa: ANN401 - any value
    if isinstance(value, StandIn):
        return value.__dict__["_number"]
    raise Unsendable(f"a test passes a {type(value).__name__} to the program, which is in another process")


def _error(name: str, text: str) -> Exception:
    """Guard against a StopIteration, which would end the loop of a test such as ``all(map(f, xs))`` as if all had
    passed.
    """
    kind = getattr(builtins, str(name), None)
    if not (isinstance(kind, type) and issubclass(kind, Exception)) or "Iteration" in name or "Group" in name:
        return RuntimeError(f"{name}: {text}")
    try:
        return kind(str(text))
    except TypeError:
        return RuntimeError(f"{name}: {text}")


def names_of(code: str, entry_point: str | None) -> list[str]:
    """Return the names that the tests read and Python does not define; or, if there are none, the builtins that they
    call, which then have the program's names.
    """
    nodes = list(ast.walk(ast.parse(code)))
    own = {node.id for node in nodes if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load)}
    own |= {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    own |= {(node.asname or node.name).partition(".")[0] for node in nodes if isinstance(node, ast.alias)}
    own |= {node.arg for node in nodes if isinstance(node, ast.arg)} | {"candidate"}
    names = {node.id for node in nodes if isinstance(node, ast.Name)} - own - set(dir(builtins))
    if entry_point:
        return sorted(names | {entry_point})
    calls = {node.func.id for node in nodes if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}
    return sorted(names or calls - own)


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


def main(setup: str, tests: list[str], entry_point: str | None, fds: tuple[int, int], most: int, ready: bytes) -> None:
    """Run the tests. ``fds``: to read, to write; ``most``: bytes of an answer; ``ready``: the program's first ones."""
    out = os.dup(1)
    null = os.open("/dev/null", os.O_RDWR)
    os.dup2(null, 1)

    def say(**line: Any) -> None:  # noqa: ANN401 - any value
        os.write(out, json.dumps(line).encode() + b"\n")

    link = Link(*fds, most)
    started = link.started(ready)
    say(started=started)
    if not started:
        return
    names = names_of("\n".join([setup, *tests]), entry_point)
    space: dict[str, Any] = {"__name__": "tests", "_accepts": accepts}
    try:
        link.answer()
        found = link.ask("names", names)
        if not isinstance(found, dict) or not found or (entry_point and entry_point not in found):
            say(failed=f"the program does not define {entry_point or ', '.join(names)}")
            return
        space.update({name: found[name] for name in names if name in found})
        if entry_point:
            space["candidate"] = found[entry_point]
        exec(compile(setup, "setup.py", "exec"), space)
    except BaseException as error:  # noqa: BLE001 - the tests' own code, and the program's
        if error is link.raised or link.lost or isinstance(error, NameError):
            say(failed=f"{type(error).__name__}: {error}"[:200])
        else:
            say(trouble=f"the tests' own preparation raises {type(error).__name__}: {error}"[:300])
        return
    for number, test in enumerate(tests):
        why = ""
        try:
            exec(compile(test, f"test {number}", "exec"), space)
        except BaseException as error:  # noqa: BLE001 - as above
            why = f"{type(error).__name__}: {error}"[:100]
            if isinstance(error, ImportError | Unsendable) and error is not link.raised:
                say(trouble=f"test {number} cannot run: {why}")
                return
        say(test=number, passed=not why and not link.lost, why=link.lost or why, lost=bool(link.lost))
        if link.lost:
            return


if __name__ == "__main__":
    main(**globals()["ARGUMENT"])
