"""``status.json`` of a run's folder: where the run is, and which rollout worker serves which weights."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.table import Table

from lpo_ray.common.files import write_json
from lpo_ray.common.process_identity import ProcessIdentity
from lpo_ray.errors import ConfigError
from lpo_ray.records import WorkerStatus

FILE = "status.json"
REQUIRED = ("run", "host", "pid", "ended", "step", "steps", "weights_version", "workers", "updated")
SILENT_SECONDS = 10.0
"""silence after which a driver, which reports about once a second, may have been killed"""


@dataclass(slots=True)
class StatusFile:
    """File status.json, written whole at every change by the process that drives the run."""

    folder: Path
    run: str
    steps: int
    step: int = 0
    version: str | None = None
    workers: dict[str, dict[str, object]] = field(default_factory=dict)
    ended: bool = False
    waiting: dict[str, object] | None = None
    """snapshot of monitor.watchdog.Watchdog"""
    cluster: str | None = None
    """address of the Ray cluster; None: without Ray"""

    def update_workers(self, workers: Sequence[WorkerStatus]) -> None:
        """Write the rollout workers. ``since`` is kept where the state and the version are as before."""
        for worker in workers:
            new: dict[str, object] = {
                "state": worker.state,
                "version": None if worker.version is None else str(worker.version),
                "restarts": worker.restarts,
                "detail": worker.detail,
            }
            old = self.workers.get(worker.name, {})
            same = all(old.get(key) == new[key] for key in ("state", "version"))
            self.workers[worker.name] = {**new, "since": old["since"] if same else time.time()}
        for name in set(self.workers) - {worker.name for worker in workers}:
            del self.workers[name]  # it has left
        self.write()

    def show_waiting(self, waiting: dict[str, object]) -> None:
        """Write what the run waits for."""
        self.waiting = waiting
        self.write()

    def content(self) -> dict[str, object]:
        """Return the content of the file."""
        return {
            "run": self.run, "ended": self.ended, "step": self.step, "steps": self.steps,
            "weights_version": self.version, "workers": self.workers, "waiting": self.waiting, "cluster": self.cluster,
            "folder": str(self.folder.absolute()), "updated": time.time(), **ProcessIdentity.own().to_json(),
        }  # fmt: skip

    def write(self) -> None:
        """Replace the file."""
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(self.folder / FILE, self.content(), durable=False)


def read_status(folder: Path) -> dict:
    """Read the file of a run's folder. Raises ConfigError when there is none, or none that is whole."""
    path = folder / FILE
    if not path.is_file():
        raise ConfigError(f"{folder} has no {FILE}; expected the folder of a run, such as runs/NAME")
    try:
        status = json.loads(path.read_text(encoding="utf-8"))
        missing = [key for key in REQUIRED if key not in status]
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{path} is damaged: {error}; expected what a run writes about every second") from error
    if missing:
        raise ConfigError(f"{path} has no {', '.join(missing)}; expected what this version writes")
    return status


def driver_of(status: Mapping) -> ProcessIdentity | None:
    """Return the process that wrote the status. None: an older version wrote it, with a pid and no more."""
    return ProcessIdentity.from_json(status)


def render_status(status: Mapping) -> Table:
    """Make a table, for a terminal, of what the file or the control actor of a run says."""
    now = time.time()
    head = f"{status['run']}: {state_of(status)}, step {status['step']}/{status['steps']}, weights "
    head += f"{status['weights_version'] or 'none yet'}, {now - status['updated']:.0f} s ago"
    table = Table(title=head, title_justify="left")
    for column in ("worker", "state", "weights", "since", "restarts", "taken out last because"):
        table.add_column(column)
    for name, worker in status["workers"].items():
        since = f"{now - worker['since']:.0f} s"
        detail = str(worker["detail"]).partition("\n")[0]
        table.add_row(name, worker["state"], worker["version"] or "-", since, str(worker["restarts"]), detail)
    return table


def state_of(status: Mapping) -> str:
    """Say whether the run is running, as far as it can be told from here."""
    if status["ended"]:
        return "ended"
    if "heard_at" in status:  # asked for, not read
        silent = time.time() - status["heard_at"]
        return "running" if silent < SILENT_SECONDS else f"its driver was last heard {silent:.0f} s ago (killed?)"
    driver = driver_of(status)
    if driver is None:
        return f"not known to run: an older version wrote that it was process {status['pid']} on {status['host']}"
    if not driver.is_here:
        rebooted = driver.host == ProcessIdentity.own().host and not driver.on_this_boot
        where = f"{driver.host}, which was booted since," if rebooted else driver.host
        return f"running on {where} when it last wrote"
    return "running" if driver.is_alive else "gone without an end (killed?)"
