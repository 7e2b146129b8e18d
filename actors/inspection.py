"""What a process that does not answer, or is gone, was doing: its state, its stack and the end of its log.

Looked at from outside, since the process itself cannot answer; on the host where it runs.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import psutil
import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from lpo_ray.records import Process

LINES = 8
"""of each log"""
FRAMES = 24
"""of the stacks, of all threads together"""
SECONDS = 10.0


def current_process() -> Process:
    """The calling actor's."""
    logs = []
    for descriptor in (1, 2):
        with suppress(OSError):
            logs.append(os.readlink(f"/proc/self/fd/{descriptor}"))
    context = ray.get_runtime_context()
    return Process(os.getpid(), context.get_node_id(), ray.util.get_node_ip_address(), tuple(logs))


async def inspect(process: Process) -> str:
    """State, stack and last log lines in a few lines of text; never raises, and takes at most ``SECONDS``."""
    if process.node_id == ray.get_runtime_context().get_node_id():
        return await asyncio.to_thread(describe, process)
    where = NodeAffinitySchedulingStrategy(process.node_id, soft=False)
    reference = ray.remote(describe).options(num_cpus=0, scheduling_strategy=where).remote(process)
    try:
        return await asyncio.wait_for(asyncio.wrap_future(reference.future()), SECONDS)
    except (RayError, TimeoutError) as error:
        return f"process {process.pid} on {process.host} cannot be looked at: {type(error).__name__}"


def end(process: Process) -> None:
    """SIGKILL, which also ends a stopped process, when it runs on this host; Ray ends those elsewhere."""
    if process.node_id == ray.get_runtime_context().get_node_id():
        with suppress(psutil.Error):
            psutil.Process(process.pid).kill()


def describe(process: Process) -> str:
    """``inspect`` on the process's own host."""
    lines = [_state(process.pid), *_stack(process.pid)]
    for log in process.logs:
        lines += [f"  log: {line}" for line in _tail(Path(log))]
    return "\n".join(lines)


def _state(pid: int) -> str:
    try:
        found = psutil.Process(pid)
        return f"process {pid} is {found.status()}, {found.memory_info().rss / 2**20:.0f} MiB resident"
    except psutil.Error:
        return f"process {pid} is gone"


def _stack(pid: int) -> list[str]:
    """Python frames of the threads, by py-spy, which reads them also from a stopped process."""
    if not psutil.pid_exists(pid):
        return []
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
