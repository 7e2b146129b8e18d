"""State of a process that does not answer, or is gone: its stack and the end of its log.

It is inspected from outside, on the host where it runs, since the process itself cannot answer.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import psutil

from lpo_ray.common.process_identity import is_ending, started_at
from lpo_ray.records import Process

LINES = 8
"""lines of each log"""
FRAMES = 24
"""frames of the stacks, of all threads together"""
SECONDS = 10.0
"""seconds to read the stack"""


def this_process(node_id: str = "", host: str = "") -> Process:
    """Describe the caller's process. ``host`` is the machine's own name if not given."""
    logs = []
    for descriptor in (1, 2):
        with suppress(OSError):
            found = os.readlink(f"/proc/self/fd/{descriptor}")
            if Path(found).is_file():  # a terminal or a pipe cannot be read again
                logs.append(found)
    pid = os.getpid()
    return Process(pid, node_id, host or socket.gethostname(), tuple(logs), _oom_kills(), started_at(pid) or 0)


def found_alive(process: Process) -> psutil.Process | None:
    """Find a process of this host. None: it is gone, whoever has its pid now, or the kernel is ending it.

    Its parent takes note of that later still (a zombie until then).
    """
    try:
        found = psutil.Process(process.pid)
    except psutil.Error:
        return None
    started = started_at(process.pid)
    is_another = process.started and started != process.started
    return None if started is None or is_another or is_ending(process.pid) else found


def describe(process: Process) -> str:
    """Return state, stack and last log lines as a few lines of text, on the process's own host. Never raises."""
    found = found_alive(process)
    lines = [_gone(process)] if found is None else [_state(found), *_stack(process.pid)]
    for log in process.logs:
        lines += [f"  log: {line}" for line in _tail(Path(log))]
    return "\n".join(lines)


def _gone(process: Process) -> str:
    killed = _oom_kills() - process.oom_kills
    why = f"; since it started, the kernel killed {killed} for lack of memory here" if killed > 0 else ""
    return f"process {process.pid} is gone{why}"


def _state(found: psutil.Process) -> str:
    try:
        return f"process {found.pid} is {found.status()}, {found.memory_info().rss / 2**20:.0f} MiB resident"
    except psutil.Error:  # it ended in this moment
        return f"process {found.pid} is gone"


def _oom_kills() -> int:
    """Count the processes that the kernel killed for lack of memory here, since the machine was booted."""
    try:
        rows = Path("/proc/vmstat").read_text().splitlines()
    except OSError:
        return 0
    return next((int(row.split()[1]) for row in rows if row.startswith("oom_kill ")), 0)


def _stack(pid: int) -> list[str]:
    """Return the Python frames of the threads, by py-spy, which reads them also from a stopped process."""
    command = [str(Path(sys.executable).with_name("py-spy")), "dump", "--nonblocking", "--pid", str(pid)]
    try:
        finished = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return [f"  no stack: {error}"]
    if finished.returncode:
        return [f"  no stack: {finished.stderr.strip().splitlines()[-1] if finished.stderr else 'py-spy failed'}"]
    frames = [line.strip() for line in finished.stdout.splitlines() if line.startswith(("    ", "Thread"))]
    return [f"  {frame}" for frame in frames[:FRAMES]]


def _tail(path: Path) -> list[str]:
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 16_384))
            return [line for line in file.read().decode(errors="replace").splitlines() if line.strip()][-LINES:]
    except OSError:
        return []
