"""Nodes that are lost, that go with notice, and that come when they are asked for, under a run that goes on."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from lpo_ray.telemetry.log import read_log
from lpo_ray.telemetry.sinks import MetricsLog
from lpo_ray.training.ledger_audit import audit
from tests.support.ray_heads import BIN, FAKE_HEAD, Head, kill_node, ray_head, ray_node

pytestmark = [pytest.mark.long, pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(500)]
QUICKSTART = str(Path(__file__).parent.parent.parent / "configs" / "quickstart.yaml")
SMALL = ("pipeline.groups_per_step=8", "sampling.group_size=4", "evaluation.num_prompts=0", "checkpoint.every=4",
         "rollout.kv_cache_gib=0.2", "run.steps=5000", "cluster.placement_seconds=20", "transport.prepare_seconds=30",
         "supervision.max_restarts=20", "cluster.address=auto", "telemetry.progress=quiet")  # fmt: skip


class Training:
    """``lpo-ray train`` on the head's cluster, as its own driver."""

    def __init__(self, head: Head, folder: Path, policy: Path, *overrides: str) -> None:
        self.folder = folder / "quickstart"
        command = [sys.executable, "-m", "lpo_ray", "train", QUICKSTART, f"run.dir={folder}", f"model.path={policy}"]
        environment = {**head.environment, "RAY_ADDRESS": head.gcs}
        self.process = subprocess.Popen([*command, *SMALL, *overrides], env=environment)

    def steps(self) -> list[int]:
        return [int(str(row["step"])) for row in MetricsLog(self.folder / "metrics.jsonl").read()]

    def wait_for(self, what: Callable[[], bool], seconds: float = 180) -> None:
        deadline = time.monotonic() + seconds
        while not what():
            assert self.process.poll() is None
            assert time.monotonic() < deadline, "\n".join(line.text for line in read_log(self.folder / "log.jsonl"))
            time.sleep(0.3)

    def more_steps(self, count: int) -> None:
        reached = len(self.steps()) + count
        self.wait_for(lambda: len(self.steps()) >= reached)

    def says(self, text: str) -> bool:
        return any(text in line.text for line in read_log(self.folder / "log.jsonl"))

    def wait_for_worker(self, worker: int) -> None:
        """It is up, with the current weights or, where a publish is on its way, with those that come."""
        name = f"rollout worker {worker}"
        self.wait_for(lambda: self.says(f"{name} serves") or self.says(f"{name} is up, and takes the next weights"))

    def end(self) -> None:
        self.process.terminate()
        assert self.process.wait(90) == 143
        books = audit(self.folder)
        assert books.violations == ()
        assert self.steps() == list(range(1, books.steps + 1))
        assert books.attempts["trained"] == 8 * books.steps


def on(node: psutil.Process, actor: str) -> list[psutil.Process]:
    found = []
    for process in node.children(recursive=True):
        with contextlib.suppress(psutil.Error):  # it has just ended
            found += [process] * (f"ray::{actor}" in " ".join(process.cmdline()))
    return found


def test_a_learner_whose_node_is_lost_goes_on_with_one_rank(tmp_path: Path, tiny_policy: Path) -> None:
    with ray_head(tmp_path, num_cpus=5) as head, ray_node(head, tmp_path, 4) as node:
        run = Training(
            head, tmp_path / "runs", tiny_policy, "learner.world_size=2", "learner.min_world_size=1",
            "learner.cpus_per_rank=3", "learner.silence_seconds=60",
        )  # fmt: skip
        run.wait_for(lambda: len(run.steps()) >= 6)
        assert len(on(node, "LearnerWorker")) == 1  # two of 3 CPUs do not fit the head's 5
        kill_node(node)
        run.wait_for(lambda: run.says("with 1 ranks instead of 2"))
        run.more_steps(3)
        run.end()


def live_nodes(head: Head, condition: str) -> list[str]:
    """The ids of the live nodes ``n`` of ray.nodes() of which the condition is true."""
    code = (
        "import ray; ray.init(address='auto', logging_level='ERROR'); "
        f"print(*sorted(n['NodeID'] for n in ray.nodes() if n['Alive'] and {condition}))"
    )
    environment = {**head.environment, "RAY_ADDRESS": head.gcs}
    found = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    return found.stdout.split()


def started_nodes(head: Head) -> list[str]:
    """Those that Ray's autoscaler started."""
    return live_nodes(head, f"n['NodeID'] != '{FAKE_HEAD}'")


def test_a_worker_comes_with_a_node_and_leaves_before_it_goes(tmp_path: Path, tiny_policy: Path) -> None:
    """rollout.autoscale asks for a second worker, a node joins with room for it, and goes again with notice."""
    with ray_head(tmp_path, num_cpus=6) as head:
        run = Training(
            head, tmp_path / "runs", tiny_policy, "rollout.cpus_per_worker=3", "learner.world_size=1",
            "rollout.autoscale.max=2", "rollout.autoscale.target_learner_wait=0.02", "cluster.autoscaling=true",
            "pipeline.max_staleness=1", "objective.behaviour=engine", "sampling.max_tokens=40",
            "pipeline.updates_per_step=1", "cluster.placement_seconds=120",
        )  # fmt: skip
        run.wait_for(lambda: run.says("rollout.autoscale: 2 rollout workers"))
        run.wait_for(lambda: run.says("rollout worker 1: waiting for room"))
        with ray_node(head, tmp_path, 3) as node:
            run.wait_for_worker(1)
            assert len(on(node, "RolloutWorker")) == 1
            run.more_steps(3)
            (going,) = live_nodes(head, "n['Resources'].get('CPU') == 3")
            subprocess.run(
                [BIN / "ray", "drain-node", "--address", head.gcs, "--node-id", going, "--reason",
                 "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "spot", "--deadline-remaining-seconds", "120"],
                env=head.environment, check=True, capture_output=True,
            )  # fmt: skip
            run.wait_for(lambda: run.says("rollout worker 1 leaves: its node"))
            run.wait_for(lambda: not on(node, "RolloutWorker"), 60)
            kill_node(node)  # as the cloud does; nothing of the run was on it any more
            run.more_steps(3)
            run.end()


def test_rays_autoscaler_starts_the_node_that_a_worker_waits_for_and_ends_it_when_it_has_left(
    tmp_path: Path, tiny_policy: Path
) -> None:
    """rollout.autoscale asks for a second worker for which no node has room: Ray's autoscaler starts one. `scale` takes
    the worker from the live run: the node is idle and goes. The rule asks again: the next node comes.
    """
    with ray_head(tmp_path, num_cpus=6, node_cpus=3) as head:
        run = Training(
            head, tmp_path / "runs", tiny_policy, "rollout.cpus_per_worker=3", "learner.world_size=1",
            "rollout.autoscale.max=2", "rollout.autoscale.target_learner_wait=0.02", "cluster.autoscaling=true",
            "pipeline.max_staleness=1", "objective.behaviour=engine", "sampling.max_tokens=40",
            "pipeline.updates_per_step=1", "cluster.placement_seconds=120",
            "sampling.group_size=64",  # steps so long that an idle node is gone before the rule has seen enough of them
        )  # fmt: skip
        run.wait_for(lambda: run.says("rollout.autoscale: 2 rollout workers"))
        run.wait_for_worker(1)
        first = started_nodes(head)
        assert len(first) == 1
        run.more_steps(2)
        subprocess.run(
            [sys.executable, "-m", "lpo_ray", "scale", str(run.folder), "rollout=1"],
            env={**head.environment, "RAY_ADDRESS": head.gcs}, check=True, capture_output=True,
        )  # fmt: skip
        run.wait_for(lambda: not set(first) & set(started_nodes(head)))
        run.wait_for_worker(2)
        second = started_nodes(head)
        assert len(second) == 1 and second != first
        run.more_steps(2)
        run.end()
        deadline = time.monotonic() + 60
        while started_nodes(head):
            assert time.monotonic() < deadline
