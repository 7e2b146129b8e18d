"""Runs the program once for each input, each time in a fork of this process, and says on stdout what became of it: a
line ``exit_code printed_too_much stdout_bytes stderr_bytes`` and then those bytes.

Everything in this process can be in the program's hands: whoever forges a line has to forge the right output too,
which only the process that compares knows.
"""

from __future__ import annotations

import os
import selectors
import sys

LAST_WORDS = 0.2
"""seconds that what a run wrote may take to arrive after its end: a pipe may be held by what it started"""
PIECE = 65536


class Run:
    """One fork of this process: feeds it and reads what it prints."""

    def __init__(self, given: bytes, most: int) -> None:
        """``most``: bytes that it may print."""
        pipes = [os.pipe() for _ in range(3)]
        (self._their_in, self._in), (self._out, self._their_out), (self._err, self._their_err) = pipes
        self._rest, self._most = memoryview(given), most
        self.printed = {self._out: bytearray(), self._err: bytearray()}
        self.over = False
        self.pid = os.fork()

    def become(self) -> None:
        """In the fork: nothing but the program's own ends stays open."""
        for fd, end in enumerate((self._their_in, self._their_out, self._their_err)):
            os.dup2(end, fd)
        os.closerange(3, PIECE)

    def finish(self) -> bytes:
        """Wait for its end, or kill it when it prints too much. Returns what is said of it."""
        for end in (self._their_in, self._their_out, self._their_err):
            os.close(end)
        os.set_blocking(self._in, False)
        ended = os.pidfd_open(self.pid)
        with selectors.DefaultSelector() as selector:
            for fd in (ended, *self.printed):
                selector.register(fd, selectors.EVENT_READ)
            selector.register(self._in, selectors.EVENT_WRITE)
            self._watch(selector, ended)
            self._end_input(selector)
        os.kill(self.pid, 9)
        _, status = os.waitpid(self.pid, 0)
        for fd in (*self.printed, ended):
            os.close(fd)
        code = os.waitstatus_to_exitcode(status)
        out, err = self.printed[self._out], self.printed[self._err]
        head = b"%d %d %d %d\n" % (code if code >= 0 else 128 - code, self.over, len(out), len(err))
        return bytes(head + out + err)

    def _watch(self, selector: selectors.BaseSelector, ended: int) -> None:
        patience: float | None = None
        while not self.over and selector.get_map():
            ready = selector.select(patience)
            if not ready:
                return
            for key, _ in ready:
                if key.fd == ended:
                    selector.unregister(ended)
                    patience = LAST_WORDS
                    self._end_input(selector)
                elif key.fd == self._in:
                    if not self._feed():
                        self._end_input(selector)
                elif not self._take(key.fd):
                    selector.unregister(key.fd)

    def _end_input(self, selector: selectors.BaseSelector) -> None:
        if self._in in selector.get_map():
            selector.unregister(self._in)
            os.close(self._in)

    def _feed(self) -> bool:
        """Whether there is more."""
        try:
            self._rest = self._rest[os.write(self._in, self._rest[:PIECE]) :]
        except BlockingIOError:
            return True
        except OSError:  # it does not read
            self._rest = self._rest[:0]
        return bool(self._rest)

    def _take(self, fd: int) -> bool:
        """Whether there may be more."""
        piece = os.read(fd, PIECE)
        room = self._most - sum(map(len, self.printed.values()))
        self.over = len(piece) > room
        self.printed[fd] += piece[:room]
        return bool(piece)


def say(text: bytes) -> None:
    """All of it, on stdout."""
    rest = memoryview(text)
    while rest:
        rest = rest[os.write(1, rest) :]


def repeat(inputs: list[bytes], most: int) -> bool:
    """Whether this process is a run of the program now."""
    for given in inputs:
        run = Run(given, most)
        if run.pid == 0:
            run.become()
            return True
        say(run.finish())
    return False


if __name__ == "__main__":
    program, inputs, most = globals()["ARGUMENT"]
    if repeat(inputs, most):
        fresh = sys.modules["__main__"] = type(sys)("__main__")
        exec(compile(program, "program.py", "exec", dont_inherit=True), fresh.__dict__)
