"""``lpo-ray why``: what a stalled run is waiting for.

The run itself writes what it waits for and which workers hold it. Processes of this host are inspected from here: that
works also when the run is stuck, or dead.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import psutil

from lpo_ray.records import BusyWorker, Process
from lpo_ray.telemetry.monitor.process_state import describe
from lpo_ray.telemetry.monitor.watchdog import describe_worker
from lpo_ray.telemetry.status import read_status, state_of

LOOPBACK = "127.0.0.1"


def why_from_folder(folder: Path, look: Callable[[Process], str] = describe) -> str:
    """Return text for a terminal; ``look`` inspects a process of this host. Raises ConfigError without status.json."""
    status = read_status(folder)
    return render_why(status, lambda process: look(process) if _is_here(process, status) else None)


def render_why(status: Mapping, look: Callable[[Process], str | None]) -> str:
    """Return text for a terminal; ``look`` inspects a process, and returns None when it cannot be seen from here."""
    now = time.time()
    state = state_of(status)
    head = f"{status['run']}: {state}, step {status['step']}/{status['steps']}"
    if status["ended"]:
        return f"{head}; it waits for nothing"
    waiting = status.get("waiting")
    if waiting is None:
        return f"{head}; what it waits for is not on record: it was written by an older version, or has only begun"
    head += f", last progress {now - waiting['progress_at']:.0f} s ago"
    alive = state.startswith("running")
    lines = [head if alive else f"{head}; this is what it waited for:"]
    recorded = False
    for entry in waiting["stages"]:
        busy = [_holder(stored) for stored in entry["busy"]]
        names = ", ".join(holder.name for holder in busy) or "nobody who is known"
        lines.append(f"waits for {entry['stage']} since {now - entry['since']:.0f} s: {names}")
        for holder in busy:
            lines.append(f"  {describe_worker(holder, now)}")
            if holder.process is None:
                continue
            seen = look(holder.process) if alive else None
            if seen is not None:
                lines += [f"    {line}" for line in seen.splitlines()]
            else:
                lines.append(f"    process {holder.process.pid} on {holder.process.host}, not inspected from here")
                recorded = True
    if not waiting["stages"]:
        lines.append("no stage is at work; the driver is:")
        driver = Process(status["pid"], "", status["host"], (), started=status.get("started", 0))
        seen = look(driver) if alive else None
        lines += [f"  {line}" for line in (seen or f"on {status['host']}").splitlines()]
    if recorded:
        evidence = waiting["evidence"] or "nothing: that is done once nothing moved for telemetry.stall_seconds"
        lines.append(f"recorded by the run when it stalled:\n{evidence}")
    return "\n".join(lines)


def processes_of(status: Mapping) -> list[Process]:
    """Return the processes that the run waits for, each once."""
    waiting = status.get("waiting") or {"stages": []}
    busy = (_holder(stored) for entry in waiting["stages"] for stored in entry["busy"])
    return list({place(h.process): h.process for h in busy if h.process is not None}.values())


def place(process: Process) -> str:
    """Return what tells the process from all others of a cluster."""
    return f"{process.host}:{process.pid}"


def _holder(stored: Mapping) -> BusyWorker:
    process = stored["process"]
    if process is not None:
        process = Process(**{**process, "logs": tuple(process["logs"])})
    return BusyWorker(stored["name"], stored["doing"], stored["since"], process)


def _is_here(process: Process, status: Mapping[str, object]) -> bool:
    """Tell whether the process runs on this host. A loopback address means the driver's host."""
    name = socket.gethostname()
    if process.host in (name, LOOPBACK):
        return status["host"] == name
    addresses = {found.address for interface in psutil.net_if_addrs().values() for found in interface}
    return process.host in addresses
