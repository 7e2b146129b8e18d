"""``log.jsonl`` of a run's folder: what the driver and its workers said, one JSON object a line, for people and tools.

The recorder writes the driver's lines and those that workers ship. It is a history: a run that continues adds to it,
and a step that is computed again stands there twice.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

from lpo_ray.common.files import explained
from lpo_ray.common.redaction import redact

Level = Literal["info", "warning", "error"]
DRIVER = "driver"
"""role of the process that runs the loop"""
OURS = ("lpo_ray", "actors")
"""packages whose loggers speak for the run itself"""


@dataclass(frozen=True, slots=True)
class LogLine:
    """Line that one process said.

    Example: ``LogLine(1_700_000_000.0, "info", "rollout", "rollout worker 1", 12, "its engine is up")``
    """

    time: float
    """unix seconds"""
    level: str
    """info | warning | error, or what the worker's own logger calls it"""
    role: str
    worker: str
    """empty: the role has one process"""
    step: int | None
    """step that was done last; None: not known"""
    text: str
    source: str = ""
    """library whose logger said it; empty: our own code"""

    @staticmethod
    def of(record: logging.LogRecord, text: str, role: str, worker: str = "") -> LogLine:
        """Make a line of ``text``, the formatted ``record``; the step is not known."""
        level = "error" if record.levelno >= logging.ERROR else record.levelname.lower()
        source = "" if record.name.partition(".")[0] in OURS else record.name
        return LogLine(record.created, level, role, worker, None, text, source)

    @property
    def is_shown(self) -> bool:
        """Tell whether a terminal shows the line. What other libraries say short of an error is in log.jsonl alone."""
        return not self.source or self.level == "error"

    def render(self) -> str:
        """Return ``HH:MM:SS level role worker step text`` in one line, in local time; "-" where it is not known."""
        clock = time.strftime("%H:%M:%S", time.localtime(self.time))
        names = (self.level, self.role, self.worker, "" if self.step is None else str(self.step))
        columns = " ".join(name.replace(" ", "-") or "-" for name in names)
        text = f"{self.source}: {self.text}" if self.source else self.text
        return f"{clock} {columns} {text}".replace("\r", "\\r").replace("\n", "\\n")

    def lines(self) -> Iterator[LogLine]:
        """Yield the line once for each line of its text: what is printed."""
        for text in self.text.splitlines() or [""]:
            yield replace(self, text=text)

    @staticmethod
    def from_json(line: str) -> LogLine:
        """Parse a line of log.jsonl. Raises ValueError when it is none."""
        try:
            return LogLine(**json.loads(line))
        except TypeError as error:
            raise ValueError(f"{line[:200]!r} is not a line of log.jsonl: {error}") from error


class LogFile:
    """File to which any thread appends lines, each in one write. A last line that a kill cut short is dropped first."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor: int | None = None
        self._opening = threading.Lock()

    def append(self, line: LogLine) -> LogLine:
        """Write the line. Returns it as it was written, without secrets."""
        masked = replace(line, text=redact(line.text))
        with self._opening:
            if self._descriptor is None:
                self._descriptor = self._open()
        with explained(self._path):
            os.write(self._descriptor, (json.dumps(asdict(masked)) + "\n").encode())
        return masked

    def close(self) -> None:
        """Close the file; a later line opens it again."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _open(self) -> int:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        os.ftruncate(descriptor, _whole_lines(descriptor))
        return descriptor


def read_log(path: Path) -> Iterator[LogLine]:
    """Yield all lines that are whole and ours; none when there is no file."""
    if not path.exists():
        return
    with path.open(encoding="utf-8", errors="replace") as file:
        for text in file:
            try:
                yield LogLine.from_json(text)
            except ValueError:
                continue


def _whole_lines(descriptor: int) -> int:
    """Count the bytes up to the end of the last whole line."""
    end, block = os.lseek(descriptor, 0, os.SEEK_END), 65_536
    while end > 0:
        start = max(0, end - block)
        at = os.pread(descriptor, end - start, start).rfind(b"\n")
        if at >= 0:
            return start + at + 1
        end = start
    return 0
