"""A limit on the processor time of one call. Stdlib only.

Processor time, not time on the clock: a busy or stopped machine must not make a response look slow. The limit is an
exception that no ``except Exception`` of a library can swallow, and it comes again until it is heard. It cannot break
into one long operation of C code, such as the power of two large integers.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

AGAIN_SECONDS = 0.1


class OutOfTime(BaseException):
    """Error of a call whose processor time is used up."""


@contextmanager
def cpu_budget(seconds: float) -> Iterator[None]:
    """Raise OutOfTime inside the block after ``seconds`` of this process's processor time.

    Python lets only the main thread have a timer; in others there is no limit.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGPROF, _raise)
    signal.setitimer(signal.ITIMER_PROF, seconds, AGAIN_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def _raise(number: int, frame: FrameType | None) -> None:
    raise OutOfTime
