"""Runs the program once for each input, each time in a fork of this process, and says on stdout what became of it: a
line ``exit_code printed_too_much stdout_bytes stderr_bytes`` and then those bytes.

Everything in this process can be in the program's hands: whoever forges a line has to forge the right output too,
which only the process that compares knows.
"""

from __future__ import annotations

import math
import os
import sys

from lpo_ray.verifiers.sandbox.inside.feed import Feed

LAST_WORDS = 0.2
"""seconds that what a run wrote may take to arrive after its end"""
MOST_FDS = 65536
BEGUN = b"\x06begun\n"
"""what is said when the first fork was made, before the program begins in it"""


class Run:
    """One fork of this process, fed and read."""

    def __init__(self, given: bytes, most: int) -> None:
        """``most``: bytes that it may print."""
        (stdin, to_it), (out, stdout), (err, stderr) = (os.pipe() for _ in range(3))
        if filled(stdin, given):
            given = b""
        self._theirs, self._ours = (stdin, stdout, stderr), (to_it, out, err)
        self._given, self._most = given, most
        self._gate, self._key = os.pipe()
        self.pid = os.fork()

    def begin(self) -> None:
        """Let the fork begin."""
        os.write(self._key, b".")
        os.close(self._key)
        os.close(self._gate)

    def become(self) -> None:
        """Become the program, in the fork, as soon as it may: nothing but its own ends of the pipes stays open."""
        os.close(self._key)
        if not os.read(self._gate, 1):
            os._exit(1)
        for fd, end in enumerate(self._theirs):
            os.dup2(end, fd)
        os.closerange(3, MOST_FDS)

    def finish(self) -> bytes:
        """Wait for its end, or kill it when it prints too much. Returns what is said of it."""
        for end in self._theirs:
            os.close(end)
        to_it, out, err = self._ours
        pipes = (os.fdopen(to_it, "wb", 0), os.fdopen(out, "rb", 0), os.fdopen(err, "rb", 0))
        feed = Feed(self.pid, pipes, self._given, self._most, LAST_WORDS, lambda: None)
        feed.until(math.inf)
        os.kill(self.pid, 9)
        _, status = os.waitpid(self.pid, 0)
        feed.close()
        code = os.waitstatus_to_exitcode(status)
        head = b"%d %d %d %d\n" % (
            code if code >= 0 else 128 - code, feed.over_output, len(feed.stdout), len(feed.stderr)
        )  # fmt: skip
        return bytes(head + feed.stdout + feed.stderr)


def filled(stdin: int, given: bytes) -> bool:
    """Put a file with the input in the place of a descriptor, as judges of contests do: programs ask for its size. Tell
    whether there is a folder for it.
    """
    try:
        fd = os.open("/tmp", os.O_TMPFILE | os.O_RDWR)
    except OSError:
        return False
    try:
        done = os.write(fd, given) == len(given)
        os.lseek(fd, 0, os.SEEK_SET)
        if done:
            os.dup2(fd, stdin)
    except OSError:
        done = False
    os.close(fd)
    return done


def say(text: bytes) -> None:
    """Write all of it to stdout."""
    rest = memoryview(text)
    while rest:
        rest = rest[os.write(1, rest) :]


def repeat(inputs: list[bytes], most: int) -> bool:
    """Tell whether this process is a run of the program now."""
    for number, given in enumerate(inputs):
        run = Run(given, most)
        if run.pid == 0:
            run.become()
            return True
        if number == 0:
            say(BEGUN)
        run.begin()
        say(run.finish())
    return False


if __name__ == "__main__":
    program, inputs, most = globals()["ARGUMENT"]
    if repeat(inputs, most):
        fresh = sys.modules["__main__"] = type(sys)("__main__")
        exec(compile(program, "program.py", "exec", dont_inherit=True), fresh.__dict__)
