"""A real Ray head for a test: its own ports, token and folder, known and ended by its pid."""

from __future__ import annotations

import contextlib
import json
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

from tests.support.processes import marked

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
               f"--dashboard-agent-listen-port={free_port()}", "--object-store-memory=100000000"]  # fmt: skip
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


FAKE_HEAD = "f" * 51 + "00000"
"""the id that Ray's fake provider expects of its head"""


def _autoscaling(file: Path, gcs: str, head_cpus: int, node_cpus: int, nodes: int) -> dict[str, str]:
    """Ray's own autoscaler (v2) over its fake provider, whose nodes are processes of this machine: the file of
    ``--autoscaling-config``. Returns the environment that the head needs for it.
    """
    kinds = {
        "ray.head.default": {"resources": {"CPU": head_cpus}, "node_config": {}, "max_workers": 0},
        "worker": {"resources": {"CPU": node_cpus, "object_store_memory": 100_000_000}, "node_config": {},
                   "min_workers": 0, "max_workers": nodes},
    }  # fmt: skip
    # by its module: Ray's wheel lacks the file of defaults of "fake_multinode"
    module = "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider"
    provider = {"type": "external", "module": module, "head_node_id": FAKE_HEAD, "gcs_address": gcs,
                "launch_multiple": True, "use_node_id_as_ip": True, "disable_node_updaters": True,
                "disable_launch_config_check": True}  # fmt: skip
    config = {"cluster_name": "test", "max_workers": nodes, "idle_timeout_minutes": 0.02, "provider": provider,
              "available_node_types": kinds, "head_node_type": "ray.head.default", "auth": {}, "upscaling_speed": 1.0,
              "file_mounts": {}, "cluster_synced_files": [], "initialization_commands": [],
              **{f"{kind}setup_commands": [] for kind in ("", "head_", "worker_")},
              **{f"{kind}_start_ray_commands": [] for kind in ("head", "worker")}}  # fmt: skip
    file.write_text(json.dumps(config))
    return {
        "RAY_FAKE_CLUSTER": "1", "RAY_enable_autoscaler_v2": "1", "RAY_CLOUD_INSTANCE_ID": FAKE_HEAD,
        "RAY_OVERRIDE_NODE_ID_FOR_TESTING": FAKE_HEAD, "AUTOSCALER_UPDATE_INTERVAL_S": "1",
    }  # fmt: skip


@contextlib.contextmanager
def ray_head(folder: Path, num_cpus: int = 8, *, node_cpus: int = 0, max_nodes: int = 2) -> Iterator[Head]:
    """``ray start --head`` on this machine until the end of the context; nothing of it is left then.

    With ``node_cpus``, Ray's autoscaler adds up to ``max_nodes`` nodes of so many CPUs when they are asked for.
    """
    token = folder / "token"
    token.write_text(os.urandom(16).hex())
    token.chmod(0o600)
    mark = f"LPO_RAY_TEST_HEAD={os.urandom(8).hex()}"
    name, _, value = mark.partition("=")
    environment = {
        **{key: text for key, text in os.environ.items() if not key.startswith("RAY_")},
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(Path(__file__).parents[2]),
        "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token), "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_worker_niceness": "0", name: value,
    }  # fmt: skip
    port, dashboard = free_port(), free_port()
    command = [
        str(BIN / "ray"), "start", "--head", "--block", f"--port={port}", "--dashboard-host=127.0.0.1",
        f"--dashboard-port={dashboard}", f"--dashboard-agent-listen-port={free_port()}",
        f"--ray-client-server-port={free_port()}", f"--num-cpus={num_cpus}", "--object-store-memory=300000000",
    ]  # fmt: skip
    started = environment
    if node_cpus:
        file = folder / "autoscaling.json"
        started = {**environment, **_autoscaling(file, f"127.0.0.1:{port}", num_cpus, node_cpus, max_nodes)}
        command.append(f"--autoscaling-config={file}")
    with (folder / "head.log").open("w") as log:
        process = subprocess.Popen(command, env=started, stdout=log, stderr=log, start_new_session=True)
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
