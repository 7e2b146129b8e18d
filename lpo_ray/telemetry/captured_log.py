"""Log records of the driver's own process, kept off the terminal until the run's log takes them."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from types import TracebackType
from typing import Self

from lpo_ray.telemetry.log import DRIVER, LogLine


class CapturedLog:
    """Context in which every log record and Python warning of this process becomes a LogLine.

    Lines are held until ``write_to`` says where they go. What is still held at the end, as in a command that records no
    run, goes to standard error: the lines that a terminal shows, and all of them when the command failed.

    Libraries print with handlers of their own, which DeepSpeed, Ray and transformers make while they are imported, so
    the records are taken where all loggers call their handlers.
    """

    def __init__(self) -> None:
        self._held: list[LogLine] = []
        self._write: Callable[[LogLine], None] = self._held.append
        self._call_handlers = logging.Logger.callHandlers
        self._formatter = logging.Formatter()

    def write_to(self, write: Callable[[LogLine], None]) -> None:
        """Give ``write`` the lines that are held, and every line from now on."""
        self._write = write
        while self._held:
            write(self._held.pop(0))

    def __enter__(self) -> Self:
        capture = self

        def take(self: logging.Logger, record: logging.LogRecord) -> None:
            capture._write(LogLine.of(record, capture._formatter.format(record), DRIVER))

        logging.Logger.callHandlers = take
        logging.captureWarnings(True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        logging.Logger.callHandlers = self._call_handlers
        logging.captureWarnings(False)
        for line in self._held:
            if line.is_shown or error is not None:
                sys.stderr.write(f"{line.render()}\n")
