"""Runs of one program for many inputs in one sandbox: each is as it would be alone, whatever the one before did."""

from __future__ import annotations

import errno
import os
import textwrap
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lpo_ray.verifiers.sandbox import kinds, program
from lpo_ray.verifiers.sandbox.limits import Limits
from lpo_ray.verifiers.sandbox.program import trouble_with
from lpo_ray.verifiers.sandbox.stdin_tests import ENDED, Printed, _records, run_for_each


@pytest.fixture(params=[kinds.BUBBLEWRAP, kinds.RLIMIT])
def kind(request: pytest.FixtureRequest) -> Iterator[str]:
    if (trouble := trouble_with(request.param)) is not None:
        pytest.skip(f"{request.param} does not work here: {trouble}")
    yield request.param


def runs(source: str, *inputs: bytes, limits: Limits) -> list[Printed]:
    found, trouble = run_for_each(textwrap.dedent(source), inputs, limits)
    assert trouble is None
    return found


def test_each_run_is_a_program_of_its_own(kind: str) -> None:
    """A fresh module, all of its input, exit codes, tracebacks, and what is printed at exit and by threads."""
    source = """
        import atexit, sys, threading
        from dataclasses import dataclass
        assert __name__ == "__main__" and "seen" not in globals()
        seen = True
        @dataclass
        class Point:
            x: int
        assert Point.__annotations__ == {"x": int}
        word = sys.stdin.read()
        atexit.register(print, "bye")
        threading.Thread(target=print, args=(word[:3], len(word))).start()
        if word == "2":
            sys.exit(3)
        if word == "3":
            raise ValueError("no")
    """
    first, second, third, large = runs(source, b"1", b"2", b"3", b"x" * 500_000, limits=Limits(kind))
    assert first == Printed(0, False, b"1 1\nbye\n", b"")
    assert (second.exit_code, second.stdout) == (3, b"2 1\nbye\n")
    assert third.exit_code == 1
    assert third.stderr.endswith(b"ValueError: no\n")
    assert large.stdout == b"xxx 500000\nbye\n"


def test_input_is_a_file_where_there_is_a_folder_for_it(kind: str) -> None:
    source = """
        import io, os
        size = os.fstat(0).st_size
        print(size, len(os.read(0, size)))
    """
    large = 12 * 2**20  # of 16 MiB
    found = runs(source, b"ab", b"", b"x" * large, b"y" * large, limits=Limits(kind))
    if kind == kinds.BUBBLEWRAP:
        assert [run.stdout for run in found] == [b"2 2\n", b"0 0\n", *[b"%d %d\n" % (large, large)] * 2]
    source = "import sys; print(len(sys.stdin.read()))"
    for size in (large, 2 * large):  # the second one is too large for a file
        assert runs(source, b"z" * size, b"1", limits=Limits(kind))[0].stdout == b"%d\n" % size


@pytest.mark.parametrize(
    "does",
    [
        "os._exit(9)", "print('x' * 10**6)", "os.kill(os.getpid(), 9)", "bytearray(2**31)", "os.close(1)",
        "os.fork() or time.sleep(600)", "sys.stdin.close()", "raise SystemExit('no')", "__builtins__.print = None",
        "os.chdir('/'); os.umask(0o777)", "signal.signal(signal.SIGTERM, signal.SIG_IGN)",
    ],
)  # fmt: skip
def test_what_a_run_does_is_its_own_affair(kind: str, does: str) -> None:
    source = f"import os, signal, sys, time\nword = input()\nif word == '1':\n    {does}\nprint(word)"
    first, second = runs(source, b"1\n", b"2\n", limits=Limits(kind, output_kib=64))
    assert second == Printed(0, False, b"2\n", b"")
    assert len(first.stdout) <= 64 * 1024


def test_a_run_that_ends_what_started_it_costs_itself_alone(kind: str) -> None:
    source = (
        "import os, time\nword = input()\nif word == '1':\n    os.kill(os.getppid(), 9); time.sleep(1)\nprint(word)"
    )
    before, hostile, after = runs(source, b"0", b"1", b"2", limits=Limits(kind))
    assert (before.stdout, after.stdout) == (b"0\n", b"2\n")
    if kind == kinds.BUBBLEWRAP:
        assert hostile == ENDED
    else:  # it may be the first process of its namespace, which the kernel keeps
        assert hostile in (ENDED, Printed(0, False, b"1\n", b""))


def test_a_sandbox_that_cannot_begin_a_run_is_its_own_trouble(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine that is out of processes: none of the program's runs has failed."""
    monkeypatch.setattr(program, "_PAUSES", (0.0,))
    found, trouble = run_for_each("print(1)", [b"", b""], Limits(kind, processes=1))
    assert found == []
    assert trouble is not None
    assert "Resource temporarily unavailable" in trouble


def test_the_run_after_one_that_took_the_processes_is_tried_in_another_sandbox(kind: str) -> None:
    source = """
        import os, resource
        word = input()
        if word == "1":
            resource.prlimit(os.getppid(), resource.RLIMIT_NPROC, (1, 1))
        print(word)
    """
    assert [run.stdout for run in runs(source, b"0", b"1", b"2", limits=Limits(kind))] == [b"0\n", b"1\n", b"2\n"]


def test_a_start_is_tried_again_while_the_machine_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr(program.time, "sleep", slept.append)
    short = f"the sandbox does not start: {os.strerror(errno.EAGAIN)}"
    for troubles, said, tries in (([short, None], None, 2), (["no bwrap"], "no bwrap", 1), ([short] * 9, short, 4)):
        left = list(troubles)
        assert program.patiently(lambda left=left: left.pop(0), lambda found: found) == said
        assert len(troubles) - len(left) == tries
    assert slept == [0.1, 0.1, 0.5, 2.0]


def test_what_the_time_does_not_suffice_for_is_missing(kind: str) -> None:
    source = "import time\nword = input()\nif word == '1':\n    time.sleep(600)\nprint(word)"
    assert [run.stdout for run in runs(source, b"0", b"1", b"2", limits=Limits(kind, seconds=1.0))] == [b"0\n"]


def test_forged_lines_stand_for_runs_and_there_are_no_more_of_these_than_inputs(kind: str) -> None:
    """A forged line stands for the next run, and what it says has to be right all the same."""
    source = """
        import os
        for fd in (1, *range(3, 64)):
            try:
                os.write(fd, b"0 0 3 0\\nhi\\n" * 5)
            except OSError:
                pass
    """
    assert len(runs(source, b"1", b"2", limits=Limits(kind))) == 2


@given(st.binary(max_size=200) | st.from_regex(rb"(\d{1,4} [01] \d \d\n.{0,9})*", fullmatch=True))
def test_whatever_is_said_the_records_are_within_it(said: bytes) -> None:
    assert sum(len(record.stdout) + len(record.stderr) for record in _records(said)) <= len(said)
