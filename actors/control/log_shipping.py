"""The log of a worker's process, on its way to the run's one log: over the control actor to the driver, which adds the
step and writes it. Warnings and errors of all libraries are shipped, and everything from our own code.

What a process wrote to its standard error, such as the last words of a crash, is not logged; it is shown when the
worker is inspected (telemetry.monitor.process_state).
"""

from __future__ import annotations

import logging
import os
import queue
import threading
import time
from typing import TYPE_CHECKING

from ray.exceptions import RayError
from typing_extensions import override

from lpo_ray.common.redaction import redact
from lpo_ray.telemetry.log import LogLine

if TYPE_CHECKING:
    from ray.actor import ActorProxy

    from actors.control.run_control import RunControl

RUN_VARIABLE = "LPO_RAY_RUN"
"""environment variable of a run's actors: the run's name"""
APART = ("vllm", "DeepSpeed", "ray")
"""loggers that hand nothing on to the root"""
PERIOD = 1.0
"""seconds between two shipments"""
MOST = 200
"""lines of a shipment; more are dropped, and their number is logged"""

log = logging.getLogger("lpo_ray.worker")
"""logger of our own code in workers"""


class WorkerLog(logging.Handler):
    """Handler that ships lines in the background: logging never waits, and never fails."""

    def __init__(self, control: ActorProxy[RunControl], role: str, worker: str) -> None:
        super().__init__(logging.INFO)
        self._control, self._role, self._worker = control, role, worker
        self._lines: queue.Queue[LogLine] = queue.Queue(MOST)
        self._dropped = 0
        self.addFilter(lambda record: record.levelno >= logging.WARNING or record.name.startswith("lpo_ray"))
        threading.Thread(target=self._run, name="worker log", daemon=True).start()

    @override
    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._lines.put_nowait(LogLine.of(record, redact(self.format(record)), self._role, self._worker))
        except queue.Full:
            self._dropped += 1

    def _run(self) -> None:
        while True:
            time.sleep(PERIOD)
            lines = [self._lines.get_nowait() for _ in range(self._lines.qsize())]
            if self._dropped:
                text = f"{self._dropped} more lines are left out"
                lines.append(LogLine(time.time(), "warning", self._role, self._worker, None, text))
                self._dropped = 0
            if lines:
                try:
                    self._control.say.remote(lines)
                except RayError:
                    return  # the run is over


def ship_log(role: str, worker: str) -> None:
    """Ship what this process logs from now on to the run's log. Does nothing outside of a run."""
    from actors.control.run_control import find
    from lpo_ray.errors import ConfigError

    run = os.environ.get(RUN_VARIABLE)
    if not run:
        return
    try:
        handler = WorkerLog(find(run), role, worker)
    except (ConfigError, RayError):
        return  # a command that records no run, such as evaluate
    logging.getLogger("lpo_ray").setLevel(logging.INFO)
    for name in ("", *APART):
        logging.getLogger(name).addHandler(handler)


def in_run(run: str) -> dict[str, str]:
    """Environment of an actor that ships its log to ``run``."""
    return {RUN_VARIABLE: run}
