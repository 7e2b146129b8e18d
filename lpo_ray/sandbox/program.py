"""One run of one program: ``run_program``."""

from __future__ import annotations

import contextlib
import logging
import os
import selectors
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache

from lpo_ray.sandbox import kinds
from lpo_ray.sandbox.limits import Limits
from lpo_ray.sandbox.memory import limits_memory
from lpo_ray.sandbox.process import READY, Program, Sandboxed, kill, start

_LAST_WORDS = 1.0
"""seconds that what it wrote may take to arrive after its end"""
_PIECE = 65536
logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a program. With ``trouble`` the sandbox failed, and the program has not begun."""

    exit_code: int
    """as shells have it: 128 + n when signal n ended it, which is also how it is killed (137)"""
    stdout: bytes
    stderr: bytes
    """both together at most Limits.output_kib"""
    timed_out: bool
    over_output: bool
    starting: float
    """seconds until the program began"""
    seconds: float
    """that it ran"""
    trouble: str | None


def run_program(
    program: Program, stdin: bytes, limits: Limits, fds: Sequence[int] = (), *, begins_with: bytes = b""
) -> Outcome:
    """Run it to its end, to Limits.seconds or to Limits.output_kib, after which nothing of it is left. Never raises for
    what the program does. ``fds`` stay open in it. Its time begins when the sandbox works and it has written
    ``begins_with``.
    """
    kind = working_kind(limits.kind)
    return _run(kind, program, stdin, limits, fds, begins_with)


@cache
def working_kind(kind: str) -> str:
    """Bubblewrap or rlimit; ``auto`` is the first that works here, and what the second one lacks is logged."""
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
    """Why no program can be run with this kind of sandbox here; None when one can."""
    return _run(kind, Program(""), b"", Limits(start_seconds=10.0), ()).trouble


@cache
def missing(kind: str) -> tuple[str, ...]:
    """Protections that this kind does not give here."""
    outcome = _run(kind, Program("print('\\n'.join(REPORT))"), b"", Limits(start_seconds=10.0), ())
    lacks = [line for line in outcome.stdout.decode().splitlines() if line]
    if kind == kinds.RLIMIT:
        lacks.append("a /tmp: no file can be written at all")
    if not limits_memory():
        lacks.append("memory: each of its processes has a limit, all together have none")
    return (*lacks, outcome.trouble) if outcome.trouble else tuple(lacks)


def _run(
    kind: str, program: Program, stdin: bytes, limits: Limits, fds: Sequence[int], begins_with: bytes = b""
) -> Outcome:
    launched = time.monotonic()
    try:
        process = start(kind, program, limits, subprocess.PIPE, subprocess.PIPE, subprocess.PIPE, fds)
    except OSError as error:
        starting = time.monotonic() - launched
        return Outcome(-1, b"", b"", False, False, starting, 0.0, f"the {kind} sandbox does not start: {error}")
    head = READY + begins_with
    watch = _Watch(process, stdin, limits.output_kib * 1024 + len(READY))
    try:
        if watch.until(launched + limits.start_seconds, head):
            began = time.monotonic()
            watch.until(began + limits.seconds)
        else:
            began = None
    finally:
        code = kill(process)
        watch.close()
    ended = time.monotonic()
    starting, seconds = (ended - launched, 0.0) if began is None else (began - launched, ended - began)
    stdout, stderr = bytes(watch.stdout), bytes(watch.stderr)
    outcome = Outcome(code, stdout, stderr, watch.timed_out, watch.over_output, starting, seconds, None)
    if stdout.startswith(READY) and not (began is None and watch.timed_out):
        return replace(outcome, stdout=stdout[len(READY) :])
    why = stderr.decode(errors="replace").strip()[-300:] or f"exit code {code}"
    if watch.timed_out:
        why = f"not ready within {limits.start_seconds:g} s {why}"
    return replace(outcome, stdout=b"", trouble=f"the {kind} sandbox does not start: {why}")


class _Watch:
    """Feeds a process and reads what it says."""

    def __init__(self, process: Sandboxed, stdin: bytes, most: int) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        self.stdout, self.stderr = bytearray(), bytearray()
        self.timed_out = self.over_output = False
        self._last_words: float | None = None
        """once it has ended: until when they may arrive"""
        self._process, self._rest, self._most = process, memoryview(stdin), most
        self._stdin = process.stdin
        self._end = os.pidfd_open(process.pid)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._end, selectors.EVENT_READ)
        self._selector.register(process.stdout, selectors.EVENT_READ, self.stdout)
        self._selector.register(process.stderr, selectors.EVENT_READ, self.stderr)
        if stdin:
            os.set_blocking(self._stdin.fileno(), False)
            self._selector.register(self._stdin, selectors.EVENT_WRITE)
        else:
            self._stdin.close()

    def until(self, deadline: float, head: bytes | None = None) -> bool:
        """To the deadline (of time.monotonic), to too much output, or to the end and until all of it is read. Or until
        ``head`` has been written: whether it has.
        """
        while True:
            if head is not None and self.stdout.startswith(head):
                return True
            readers = [key for key in self._selector.get_map().values() if isinstance(key.data, bytearray)]
            if self.over_output or (self._last_words is not None and not readers):
                return False
            remaining = (deadline if self._last_words is None else self._last_words) - time.monotonic()
            if remaining <= 0:
                self.timed_out = self._last_words is None
                return False
            for key, _ in self._selector.select(remaining):
                if key.fileobj is self._stdin:
                    self._feed()
                elif isinstance(key.data, bytearray):
                    self._take(key.fd, key.data)
                else:
                    self._selector.unregister(self._end)
                    kill(self._process)
                    self._last_words = time.monotonic() + _LAST_WORDS

    def close(self) -> None:
        """After the process is gone."""
        self._selector.close()
        os.close(self._end)
        for pipe in (self._stdin, self._process.stdout, self._process.stderr):
            with contextlib.suppress(OSError):
                pipe.close()  # pyright: ignore[reportOptionalMemberAccess]

    def _feed(self) -> None:
        try:
            self._rest = self._rest[os.write(self._stdin.fileno(), self._rest[:_PIECE]) :]
        except BlockingIOError:
            return
        except OSError:  # it does not read
            self._rest = self._rest[:0]
        if not self._rest:
            self._selector.unregister(self._stdin)
            self._stdin.close()

    def _take(self, fd: int, into: bytearray) -> None:
        piece = os.read(fd, _PIECE)
        if not piece:
            self._selector.unregister(fd)
        room = self._most - len(self.stdout) - len(self.stderr)
        self.over_output = len(piece) > room
        into += piece[:room]
