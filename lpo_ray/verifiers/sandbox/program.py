"""One run of one program: ``run_program``."""

from __future__ import annotations

import errno
import logging
import os
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import NamedTuple, TypeVar

from lpo_ray.verifiers.sandbox import kinds
from lpo_ray.verifiers.sandbox.inside.feed import Feed
from lpo_ray.verifiers.sandbox.limits import Limits
from lpo_ray.verifiers.sandbox.memory import limits_memory
from lpo_ray.verifiers.sandbox.process import READY, Program, kill, start

_LOOK = """import os
for path in ARGUMENT:
    try:
        os.listdir(path) if os.path.isdir(path) else open(path, "rb").close()
    except OSError:
        print(path)
        break
"""
_PAUSES = (0.1, 0.5, 2.0)
"""seconds between tries to start on a machine that is short of processes or memory for a moment"""
_SHORT = tuple(os.strerror(code) for code in (errno.EAGAIN, errno.ENOMEM))
_LAST_WORDS = 1.0
"""seconds that what it wrote may take to arrive after its end"""
_Found = TypeVar("_Found")
logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ProgramResult:
    """Result of a program. With ``trouble`` the sandbox failed, and the program has not begun."""

    exit_code: int
    """exit code as shells have it: 128 + n when signal n ended it, which is also how it is killed (137)"""
    stdout: bytes
    stderr: bytes
    """both together at most Limits.output_kib"""
    timed_out: bool
    over_output: bool
    starting: float
    """seconds until the program began"""
    seconds: float
    """time that it ran"""
    trouble: str | None


def run_program(
    program: Program, stdin: bytes, limits: Limits, fds: Sequence[int] = (), *, begins_with: bytes = b""
) -> ProgramResult:
    """Run a program to its end, to Limits.seconds or to Limits.output_kib, after which nothing of it is left. Never
    raises for what the program does. ``fds`` stay open in it. Its time begins when the sandbox works and it has written
    ``begins_with``.
    """
    kind = working_kind(limits.kind)
    if (unseen := _look(kind).unseen) is not None:
        return ProgramResult(-1, b"", b"", False, False, 0.0, 0.0, unseen)
    return _run(kind, program, stdin, limits, fds, begins_with)


def patiently(attempt: Callable[[], _Found], trouble_of: Callable[[_Found], str | None]) -> _Found:
    """Try to run a program, again after each of _PAUSES while the machine is too short of processes or memory to start
    a sandbox, before which nothing of the program has run.
    """
    for pause in _PAUSES:
        found = attempt()
        trouble = trouble_of(found)
        if trouble is None or not any(words in trouble for words in _SHORT):
            return found
        time.sleep(pause)
    return attempt()


@cache
def working_kind(kind: str) -> str:
    """Choose bubblewrap or rlimit; ``auto`` is the first that works here, and what the second one lacks is logged."""
    if kind != kinds.AUTO:
        return kind
    if (trouble := trouble_with(kinds.BUBBLEWRAP)) is None:
        return kinds.BUBBLEWRAP
    logger.warning(
        "bubblewrap does not work here (%s). Programs run without it, and lack: %s",
        trouble, "; ".join(missing(kinds.RLIMIT)) or "nothing",
    )  # fmt: skip
    return kinds.RLIMIT


@cache
def trouble_with(kind: str) -> str | None:
    """Say why no program can be run with this kind of sandbox here, or would not see the installed packages; None when
    one can.
    """
    look = _look(kind)
    return look.trouble or look.unseen


class _Look(NamedTuple):
    trouble: str | None
    unseen: str | None
    """what a program cannot read of the installed packages, and what to do"""


@cache
def _look(kind: str) -> _Look:
    """Run a program that reads what each installed package begins with: one that cannot be read would fail right
    answers, and only this process can tell that it is there.
    """
    program, limits = Program(_LOOK, list(kinds.modules())), Limits(seconds=20.0, start_seconds=10.0)
    outcome = patiently(partial(_run, kind, program, b"", limits, ()), lambda found: found.trouble)
    path = outcome.stdout.decode(errors="replace").strip()
    return _Look(
        outcome.trouble, f"programs in the {kind} sandbox cannot read {kinds.closed(kind, path)}" if path else None
    )


@cache
def missing(kind: str) -> tuple[str, ...]:
    """List the protections that this kind does not give here."""
    outcome = _run(kind, Program("print('\\n'.join(REPORT))"), b"", Limits(start_seconds=10.0), ())
    lacks = [line for line in outcome.stdout.decode().splitlines() if line]
    if kind == kinds.RLIMIT:
        lacks.append("a /tmp: no file can be written at all")
    if not limits_memory():
        lacks.append("memory: each of its processes has a limit, all together have none")
    return (*lacks, outcome.trouble) if outcome.trouble else tuple(lacks)


def _run(
    kind: str, program: Program, stdin: bytes, limits: Limits, fds: Sequence[int], begins_with: bytes = b""
) -> ProgramResult:
    launched = time.monotonic()
    try:
        process = start(kind, program, limits, subprocess.PIPE, subprocess.PIPE, subprocess.PIPE, fds)
    except OSError as error:
        starting = time.monotonic() - launched
        return ProgramResult(-1, b"", b"", False, False, starting, 0.0, f"the {kind} sandbox does not start: {error}")
    head = READY + begins_with
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    pipes = (process.stdin, process.stdout, process.stderr)
    most = limits.output_kib * 1024 + len(READY)
    feed = Feed(process.pid, pipes, stdin, most, _LAST_WORDS, partial(kill, process))
    try:
        if feed.until(launched + limits.start_seconds, head):
            began = time.monotonic()
            feed.until(began + limits.seconds)
        else:
            began = None
    finally:
        code = kill(process)
        feed.close()
    ended = time.monotonic()
    starting, seconds = (ended - launched, 0.0) if began is None else (began - launched, ended - began)
    stdout, stderr = bytes(feed.stdout), bytes(feed.stderr)
    outcome = ProgramResult(code, stdout, stderr, feed.timed_out, feed.over_output, starting, seconds, None)
    if stdout.startswith(READY) and not (began is None and feed.timed_out):
        return replace(outcome, stdout=stdout[len(READY) :])
    why = stderr.decode(errors="replace").strip()[-300:] or f"exit code {code}"
    why += "".join(
        f"; programs cannot read {kinds.closed(kind, path)}" for path in kinds.packages() if f"'{path}'" in why
    )
    if feed.timed_out:
        why = f"not ready within {limits.start_seconds:g} s {why}"
    return replace(outcome, stdout=b"", trouble=f"the {kind} sandbox does not start: {why}")
