"""Work that may never end, such as a collective whose other side is gone: left behind after a deadline."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

import torch

T = TypeVar("T")


class TimeLimited(Generic[T]):
    """Work on a thread of its own. A thread cannot be ended from outside: when it is late it is left behind, and what
    it uses (a process group, a buffer) must not be used again.
    """

    def __init__(self, work: Callable[[], T], what: str, device: torch.device | None = None) -> None:
        """``device``: current device of the thread, where that is an accelerator; a new thread begins with the first
        of the machine.
        """
        self._what = what
        self._results: queue.SimpleQueue[tuple[T] | BaseException] = queue.SimpleQueue()

        def run() -> None:
            try:
                if device is not None and device.type != "cpu":
                    torch.accelerator.set_device_index(device)
                self._results.put((work(),))
            except BaseException as error:  # noqa: BLE001 - raised where it is waited for
                self._results.put(error)

        threading.Thread(target=run, name=what, daemon=True).start()

    def result(self, seconds: float) -> T:
        """Return what the work returned, or raise what it raised; TimeoutError when it is late. Call it once."""
        try:
            result = self._results.get(timeout=seconds)
        except queue.Empty:
            text = f"{self._what} did not end within {seconds:.3g} s; expected its other side to answer"
            raise TimeoutError(text) from None
        if isinstance(result, BaseException):
            raise result
        return result[0]
