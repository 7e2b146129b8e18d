"""Three hosts as network namespaces: the learner on one, engines on the two others; one is cut off, and comes back."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from lpo_ray.telemetry.sinks import MetricsLog
from lpo_ray.training.ledger_audit import audit

ROOT = Path(__file__).parent.parent.parent
NETNS = str(ROOT / "launch" / "netns.sh")
QUICKSTART = str(ROOT / "configs" / "quickstart.yaml")


def _possible() -> bool:
    """Whether network namespaces and veth pairs can be made here."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        return False
    made = subprocess.run(["ip", "netns", "add", "lpo-probe"], capture_output=True, check=False).returncode == 0
    cable = ["ip", "link", "add", "lpo-probe", "type", "veth", "peer", "name", "eth0", "netns", "lpo-probe"]
    wired = made and subprocess.run(cable, capture_output=True, check=False).returncode == 0
    subprocess.run(["ip", "netns", "del", "lpo-probe"], capture_output=True, check=False)
    return wired


pytestmark = [
    pytest.mark.long,
    pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(900),
    pytest.mark.skipif(not _possible(), reason="needs root and iproute2, and a kernel that lets it make namespaces"),
]  # fmt: skip


class Hosts:
    """The cluster of launch/netns.sh, under names of its own."""

    def __init__(self, folder: Path) -> None:
        state = folder / "hosts"
        state.mkdir()
        self.environment = {
            **{key: value for key, value in os.environ.items() if not key.startswith("RAY_")},
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT), "LPO_RAY_NETNS": "lpot", "LPO_RAY_SUBNET": "10.78.0",
            "LPO_RAY_STATE": str(state), "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(state / "token"),
        }  # fmt: skip

    def __call__(self, *arguments: str) -> str:
        done = subprocess.run(
            ["bash", NETNS, *arguments], env=self.environment, capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout.strip()

    def lpo_ray(self, *arguments: str) -> str:
        command = [sys.executable, "-m", "lpo_ray", *arguments, "--address", self("address")]
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=240, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def processes(self, host: int, actor: str) -> list[psutil.Process]:
        pids = subprocess.run(
            ["ip", "netns", "pids", f"lpot{host}"], capture_output=True, text=True, check=True
        ).stdout.split()
        return [process for process in map(psutil.Process, map(int, pids)) if f"ray::{actor}" in process.name()
                or f"ray::{actor}" in " ".join(process.cmdline())]  # fmt: skip


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[Hosts]:
    made = Hosts(tmp_path)
    try:
        made("up", "3")
        yield made
    finally:
        made("down")


def test_a_host_is_cut_off_and_comes_back_then_a_rank_dies(hosts: Hosts, tmp_path: Path, tiny_policy: Path) -> None:
    run, folder = "far", tmp_path / "runs" / "far"

    def steps() -> int:
        return len(MetricsLog(folder / "metrics.jsonl").read())

    def wait_for(what: Callable[[], bool], seconds: float = 240) -> None:
        deadline = time.monotonic() + seconds
        while not what():
            assert time.monotonic() < deadline, hosts.lpo_ray("logs", run)[-5000:]
            time.sleep(0.5)

    def three_more() -> None:
        reached = steps() + 3
        wait_for(lambda: steps() >= reached)

    def serving() -> int:
        return hosts.lpo_ray("status", run).count("serving")

    hosts.lpo_ray(
        "submit", QUICKSTART, f"run.name={run}", f"run.dir={folder.parent}", f"model.path={tiny_policy}",
        "run.steps=5000",
        "pipeline.groups_per_step=8", "sampling.group_size=4", "evaluation.num_prompts=0", "checkpoint.every=5",
        "learner.world_size=2", "learner.labels={lpo-ray/role: learner}",
        "rollout.num_workers=2", "rollout.labels={lpo-ray/role: rollout}", "rollout.cpus_per_worker=3",
        "rollout.kv_cache_gib=0.2", "transport.prepare_seconds=30", "transport.transfer_seconds=60",
        "cluster.placement_seconds=60", "supervision.max_restarts=20",
    )  # fmt: skip
    wait_for(lambda: steps() >= 2)
    assert len(hosts.processes(1, "LearnerWorker")) == 2
    assert [len(hosts.processes(host, "RolloutWorker")) for host in (1, 2, 3)] == [0, 1, 1]

    hosts("cut", "3")
    three_more()
    assert serving() == 1

    hosts("kill", "3")
    hosts("heal", "3")
    hosts("start", "3")
    wait_for(lambda: serving() == 2)
    three_more()
    shown = hosts.lpo_ray("status", run)
    rows = [line for line in shown.splitlines() if "serving" in line]
    versions = {part for row in rows for part in row.split() if ":" in part}
    assert len(versions) == 1, shown  # both serve the same weights
    assert len(hosts.processes(3, "RolloutWorker")) == 1

    hosts.processes(1, "LearnerWorker")[-1].kill()
    three_more()
    said = hosts.lpo_ray("logs", run)
    assert "the learner's ranks are started again: learner rank" in said
    assert "the learner is back at step" in said
    hosts.lpo_ray("stop", run)
    books = audit(folder)
    assert books.violations == ()
    assert books.steps == steps()
    assert books.attempts["trained"] == 8 * steps()
