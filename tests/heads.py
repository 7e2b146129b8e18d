"""A real Ray head for a test: its own ports, token and folder, known and ended by its pid."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.processes import marked

BIN = Path(sys.executable).parent


@dataclass(frozen=True)
class Head:
    """``address``: of the job server. ``environment``: with which clients are let in."""

    address: str
    gcs: str
    environment: dict[str, str]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def ray_node(head: Head, folder: Path, num_cpus: int) -> Iterator[psutil.Process]:
    """One more node of the head's cluster, on this machine; its process, above all others of the node."""
    command = [str(BIN / "ray"), "start", f"--address={head.gcs}", "--block", f"--num-cpus={num_cpus}",
               "--object-store-memory=100000000"]  # fmt: skip
    with (folder / "node.log").open("w") as log:
        process = subprocess.Popen(command, env=head.environment, stdout=log, stderr=log, start_new_session=True)
    deadline = time.monotonic() + 90
    while "Ray runtime started" not in (folder / "node.log").read_text():
        assert process.poll() is None and time.monotonic() < deadline, (folder / "node.log").read_text()[-3000:]
        time.sleep(0.3)
    try:
        yield psutil.Process(process.pid)
    finally:
        kill_node(psutil.Process(process.pid)) if process.poll() is None else None


def kill_node(process: psutil.Process) -> None:
    """SIGKILL of everything on a node, at once."""
    for found in (process, *process.children(recursive=True)):
        with contextlib.suppress(psutil.Error):
            found.kill()


@contextlib.contextmanager
def ray_head(folder: Path, num_cpus: int = 8) -> Iterator[Head]:
    """``ray start --head`` on this machine until the end of the context; nothing of it is left then."""
    token = folder / "token"
    token.write_text(os.urandom(16).hex())
    token.chmod(0o600)
    mark = f"LPO_RAY_TEST_HEAD={os.urandom(8).hex()}"
    name, _, value = mark.partition("=")
    environment = {
        **{key: text for key, text in os.environ.items() if not key.startswith("RAY_")},
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(Path(__file__).parent.parent),
        "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token), "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_worker_niceness": "0", name: value,
    }  # fmt: skip
    port, dashboard = free_port(), free_port()
    command = [
        str(BIN / "ray"), "start", "--head", "--block", f"--port={port}", "--dashboard-host=127.0.0.1",
        f"--dashboard-port={dashboard}", f"--num-cpus={num_cpus}", "--object-store-memory=300000000",
    ]  # fmt: skip
    with (folder / "head.log").open("w") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
    address = f"http://127.0.0.1:{dashboard}"
    try:
        _wait_until_up(address, process, folder / "head.log")
        yield Head(address, f"127.0.0.1:{port}", environment)
    finally:
        # by descent too: an agent that sets its title writes over its environment
        below = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(20)
        left = [*marked(mark), *below]
        for found in left:
            with contextlib.suppress(psutil.Error):
                found.kill()
        psutil.wait_procs(left, timeout=10)


def _wait_until_up(address: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 90
    while True:
        assert process.poll() is None, log.read_text()
        try:
            urllib.request.urlopen(f"{address}/api/jobs/", timeout=2)
        except urllib.error.HTTPError as error:
            if error.code in (401, 403):  # it is up, and asks who we are
                return
        except OSError:
            pass
        assert time.monotonic() < deadline, f"no job server at {address}:\n{log.read_text()[-3000:]}"
        time.sleep(0.3)
