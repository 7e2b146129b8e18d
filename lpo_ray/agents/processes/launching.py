"""Child processes: started with a channel of their own, and killed with all that they started."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import secrets
import signal
import socket
import subprocess
import sys
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import IO, Any

import psutil

from lpo_ray.agents.limits import Hosted
from lpo_ray.errors import ConfigError

START_SECONDS = 120.0
"""that a process may take to import what it hosts"""
MARK = "LPO_RAY_ENVIRONMENT"
"""variable by which what a process has started is known, whatever became of its parents"""
SWEEPS = 100
"""times that what a process has started is looked for and killed: it may start more meanwhile"""
_BOOT = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from lpo_ray.agents.processes import child; "
    "child.main(int(sys.argv[2]))"
)
logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Started:
    """A process that was started, in a session of its own, and what its descendants are known by."""

    process: subprocess.Popen[bytes]
    pipe: os.stat_result
    """that it prints to, which may be closed by now"""
    mark: str
    """that the variables of what it starts have, unless they are replaced"""


@dataclass(frozen=True, slots=True)
class Launched(Started):
    """A child process that was started."""

    channel: socket.socket
    """this end of it"""
    printed: IO[bytes]
    """what it prints"""


def launch() -> Launched:
    """Start a child process. It dies with the thread that calls this."""
    ours, theirs = socket.socketpair()
    path, mark = json.dumps([entry or os.getcwd() for entry in sys.path]), secrets.token_hex(12)
    reading, writing = os.pipe()
    try:
        process = subprocess.Popen(
            [sys.executable, "-c", _BOOT, path, str(theirs.fileno())],
            stdin=subprocess.DEVNULL, stdout=writing, stderr=writing, pass_fds=[theirs.fileno()],
            start_new_session=True, env={**os.environ, MARK: mark, "MALLOC_ARENA_MAX": "2"},
        )  # fmt: skip
    except BaseException:
        os.close(reading)
        ours.close()
        raise
    finally:
        os.close(writing)
        theirs.close()
    return Launched(process, os.fstat(reading), mark, ours, os.fdopen(reading, "rb", buffering=0))


def kill(launched: Started) -> None:
    """Kill a process, its group, and whatever else it has started, until nothing of it is left."""
    family: list[psutil.Process] = []
    if launched.process.returncode is None:
        with contextlib.suppress(psutil.Error):
            family = psutil.Process(launched.process.pid).children(recursive=True)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(launched.process.pid, signal.SIGKILL)
    launched.process.wait()
    for process in family:
        with contextlib.suppress(psutil.Error):
            process.kill()
    found: list[int] = []
    for _ in range(SWEEPS):
        found = _started_by(launched)
        if not found:
            return
        for pid in found:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
    logger.warning("processes that an environment started do not end: %s", found)


@lru_cache(maxsize=32)
def schemas_of(environment: str | None, tools: tuple[str, ...]) -> tuple[dict[str, Any], ...]:
    """Return the JSON schemas of an environment's tools, as a child process describes them: none of it is imported
    here. Raises ConfigError when it cannot be loaded.
    """
    launched = launch()
    try:
        launched.channel.settimeout(START_SECONDS)
        hosted = Hosted(environment=environment, tools=tools)
        launched.channel.sendall(json.dumps({"hosted": hosted.to_json()}).encode() + b"\n")
        with launched.channel.makefile("rb") as answers:
            said: dict[str, Any] = json.loads(answers.readline())
    except (OSError, ValueError) as error:
        said = {"fault": f"its process did not answer ({type(error).__name__})"}
    finally:
        launched.channel.close()
        kill(launched)
        launched.printed.close()
    if "fault" in said:
        what = f"task.environment={environment}" if environment else f"task.tools={list(tools)}"
        raise ConfigError(f"{what} cannot be loaded: {said['fault']}")
    return tuple(said["schemas"])


def _started_by(launched: Started) -> list[int]:
    """List the processes whose environment variables have the mark, or that print to where the process did."""
    wanted, found = f"{MARK}={launched.mark}".encode(), []
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal() and int(folder.name) != os.getpid():
            with contextlib.suppress(OSError):
                if wanted in (folder / "environ").read_bytes().split(b"\0") or any(
                    os.path.samestat(os.stat(folder / "fd" / number), launched.pipe) for number in ("1", "2")
                ):
                    found.append(int(folder.name))
    return found
