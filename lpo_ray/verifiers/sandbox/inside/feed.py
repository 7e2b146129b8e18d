"""Feeds a process and reads what it prints, until it has ended: outside a sandbox for the whole of it, inside for each
run of a program.
"""

from __future__ import annotations

import contextlib
import math
import os
import selectors
import time
from collections.abc import Callable
from typing import IO

_PIECE = 65536


class Feed:
    """One process that is fed and read; what it printed is in ``stdout`` and ``stderr``."""

    def __init__(self, pid: int, pipes: tuple[IO[bytes], IO[bytes], IO[bytes]], given: bytes, most: int,
                 last_words: float, on_end: Callable[[], object]) -> None:  # fmt: skip
        """``pipes``: to its stdin, from its stdout and stderr; ``close`` closes them. ``most``: bytes it may print.
        ``last_words``: seconds that what it wrote may take to arrive after its end, since what it started may hold its
        pipes. ``on_end`` is called at its end, before it is reaped.
        """
        self.stdout, self.stderr = bytearray(), bytearray()
        self.timed_out = self.over_output = False
        self._stdin, *_ = self._pipes = pipes
        self._rest, self._most = memoryview(given), most
        self._last_words, self._on_end = last_words, on_end
        self._patience: float | None = None
        """once it has ended: until when they may arrive"""
        self._end = os.pidfd_open(pid)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._end, selectors.EVENT_READ)
        self._selector.register(pipes[1], selectors.EVENT_READ, self.stdout)
        self._selector.register(pipes[2], selectors.EVENT_READ, self.stderr)
        if given:
            os.set_blocking(self._stdin.fileno(), False)
            self._selector.register(self._stdin, selectors.EVENT_WRITE)
        else:
            self._stdin.close()

    def until(self, deadline: float, head: bytes | None = None) -> bool:
        """Read to the deadline (of time.monotonic, or infinite), to too much output, or to the end and until all of it
        is read; or until ``head`` has been written. Tell whether it has.
        """
        while True:
            if head is not None and self.stdout.startswith(head):
                return True
            readers = [key for key in self._selector.get_map().values() if isinstance(key.data, bytearray)]
            if self.over_output or (self._patience is not None and not readers):
                return False
            remaining = (deadline if self._patience is None else self._patience) - time.monotonic()
            if remaining <= 0:
                self.timed_out = self._patience is None
                return False
            for key, _ in self._selector.select(None if remaining == math.inf else remaining):
                if key.fileobj is self._stdin:
                    self._feed()
                elif isinstance(key.data, bytearray):
                    self._take(key.fd, key.data)
                else:
                    self._selector.unregister(self._end)
                    self._on_end()
                    self._patience = time.monotonic() + self._last_words

    def close(self) -> None:
        """Close the pipes after the process is gone."""
        self._selector.close()
        os.close(self._end)
        for pipe in self._pipes:
            with contextlib.suppress(OSError):
                pipe.close()

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
