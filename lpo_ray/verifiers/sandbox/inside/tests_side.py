"""The tests' side of tests by calls, in a sandbox of its own: runs the tests, in which the names that are the program's
stand for values in the program's process. Says on stdout what became of each, one JSON line each.

Which names these are is decided beforehand, by what the tests' text says; nothing of the program's process has a say
in it, and none of what compares here has a name that could be one of them.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from typing import Any

from lpo_ray.verifiers.sandbox.inside.in_place import CALL, COPY, InPlace, compiled
from lpo_ray.verifiers.sandbox.inside.judging import accepts, guard_numpy, try_named
from lpo_ray.verifiers.sandbox.inside.link import Link, makes_objects
from lpo_ray.verifiers.sandbox.inside.wire import Unsendable, own_classes


class NotDefined(Exception):
    """Error of a program that lacks what its tests call."""


class Tester:
    """The tests' name space, and what happens in it."""

    def __init__(self, link: Link, changed: Sequence[str], copies: Sequence[str]) -> None:
        self._link, self._changed, self._copies = link, frozenset(changed), frozenset(copies)
        in_place = InPlace()
        self._space: dict[str, Any] = {"__name__": "tests", "__file__": "/tmp/tests.py"}
        self._space |= {CALL: in_place.called, COPY: in_place.copied}

    def prepare(self, given: str, setup: str, names: list[str], entry_point: str | None, owner: str) -> None:
        """Take from the program what has one of ``names``, and run what stands before the tests. The task's own code
        (``given``) comes before the program's names, as it does in the program.
        """
        exec(compile(given, "given.py", "exec"), self._space)
        self._link.classes = own_classes(self._space)
        self._link.answer()
        wanted = [*names, *([entry_point] if entry_point and entry_point not in names else [])]
        found = self._link.ask("names", wanted, owner)
        if not isinstance(found, dict) or not found or (entry_point and entry_point not in found):
            raise NotDefined(f"the program does not define {entry_point or ', '.join(names)}")
        found = {name: makes_objects(found[name], name) for name in wanted if name in found}
        for name in names:
            self._space.pop(name, None)
        self._space.update({name: value for name, value in found.items() if name in names})
        module = sys.modules["solution"] = type(sys)("solution")
        module.__dict__.update(found)
        if entry_point:
            self._space["candidate"] = found[entry_point]
        self._candidate = self._space.get("candidate")
        self._link.asked = 0
        exec(compiled(setup, "setup.py", self._changed, self._copies), self._space)

    def try_test(self, kind: str, *rest: Any) -> None:  # noqa: ANN401 - as CallTests has it
        """Try one test, which passes when nothing is raised."""
        if kind == "code":
            exec(compiled(rest[0], "test.py", self._changed, self._copies), self._space)
        elif kind == "named":
            try_named(self._space, rest[0])
        else:
            arguments, expected = rest
            assert self._candidate is not None
            value = self._candidate(*arguments)
            if not accepts(value, expected):
                raise AssertionError(f"returned {value!r}"[:100])

    def are_to_blame(self, error: BaseException, *, asked: bool) -> bool:
        """Tell whether an error is the tests' own fault: one that no program can bring about. ``asked``: whether the
        program may have had a part in it.
        """
        if error is self._link.raised or self._link.lost or isinstance(error, NotDefined):
            return False
        if getattr(error, "name", None) == "solution":  # an import of what the program does not define
            return False
        return isinstance(error, ImportError | Unsendable) or not asked


def main(
    given: str, setup: str, tests: list[list[Any]], names: list[str], entry_point: str | None, owner: str,
    changed: Sequence[str], copies: Sequence[str], fds: tuple[int, int], most: int, ready: bytes,
) -> None:  # fmt: skip
    """Run the tests. ``changed``, ``copies``: as in Changes; ``fds``: to read, to write; ``most``: bytes that an
    answer may have; ``ready``: the program's first ones.
    """
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
    tester = Tester(link, changed, copies)
    try:
        if "numpy" in repr((given, setup, tests)):
            guard_numpy()
        tester.prepare(given, setup, names, entry_point, owner)
    except BaseException as error:  # noqa: BLE001 - the tests' own code, and the program's
        why = str(error) if isinstance(error, NotDefined) else f"{type(error).__name__}: {error}"[:300]
        if tester.are_to_blame(error, asked=link.asked > 0):
            say(unreadable=f"the tests' own preparation raises {why}")
        else:
            say(failed=why)
        return
    for number, test in enumerate(tests):
        why = ""
        try:
            tester.try_test(*test)
        except BaseException as error:  # noqa: BLE001 - as above
            why = f"{type(error).__name__}: {error}"[:100]
            if tester.are_to_blame(error, asked=True):
                say(unreadable=f"test {number} cannot run: {why}")
                return
        say(test=number, passed=not why and not link.lost, why=link.lost or why, lost=bool(link.lost))
        if link.lost:
            return


if __name__ == "__main__":
    main(**globals()["ARGUMENT"])
