"""An engine in two processes, as tensor parallelism makes it (here on CPUs, with gloo between them): it trains, is
proved at both, is evaluated, loses a process and comes back, with another engine.
"""

from __future__ import annotations

import io
import json
import signal
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest
from rich.console import Console

from actors import publisher
from actors.cluster import Cluster, build_cluster, connect, disconnect
from actors.rollout.worker import Delivery
from lpo_ray.errors import Interrupted
from lpo_ray.interfaces import Events
from lpo_ray.records import WorkerStatus
from lpo_ray.run.folder import held
from lpo_ray.run.recorder import Recorder
from lpo_ray.run.signals import Signals, run_until_signal
from lpo_ray.run.spec import RunSpec
from lpo_ray.run.train import train
from lpo_ray.telemetry.evaluations import read_evaluations
from lpo_ray.training.loop import StepRecord
from tests.support.builders import recorder_of
from tests.support.real_specs import plan_of

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(600)]


def processes_of(pid: int) -> list[psutil.Process]:
    """The processes of an engine that hold a part of its weights."""
    return [p for p in psutil.Process(pid).children(recursive=True) if "Worker" in "".join(p.cmdline()[:1])]


@dataclass
class Seen:
    folder: Path
    text: str = ""
    parts: list[int] = field(default_factory=list)
    """processes of each engine"""
    delivered: list[Delivery] = field(default_factory=list)
    """what engines gave account of, in every publish"""
    killed: list[psutil.Process] = field(default_factory=list)
    statuses: list[tuple[WorkerStatus, ...]] = field(default_factory=list)


class Steering(Recorder):
    """Kills a process of the engine after two steps and asks for a second engine, and ends the run when both serve."""

    seen: Seen
    signals: Signals
    cluster: Cluster

    def step_done(self, record: StepRecord) -> None:
        super().step_done(record)
        workers, rollout = tuple(record.publication.workers), self.cluster.rollout
        self.seen.statuses.append(workers)
        if record.step >= 2 and not self.seen.killed:
            self.seen.killed = processes_of(rollout.members[0].process.pid)
            self.seen.killed[-1].kill()
            rollout.scale(2)
        elif [worker.state for worker in workers] == ["serving", "serving"]:
            self.seen.parts = [len(processes_of(member.process.pid)) for member in rollout.members]
            self.signals.loop.stop(signal.SIGINT)


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory, tiny_policy: Path) -> Seen:
    spec = plan_of(
        tmp_path_factory.mktemp("parts"), tiny_policy, "rollout.tensor_parallel_size=2", "run.steps=2000",
        "rollout.kv_cache_gib=0.2", "learner.world_size=1", "telemetry.progress=plain",
    )  # fmt: skip
    found, output = Seen(spec.run_dir), io.StringIO()
    prove = publisher._Attempt._prove

    def noted(attempt: object, version: object, digests: object, delivered: dict, expected: object) -> None:
        found.delivered += delivered.values()
        prove(attempt, version, digests, delivered, expected)

    async def build(spec: RunSpec, model_path: str, events: Events) -> Cluster:
        recorder.cluster = cluster = await build_cluster(spec, model_path, events)
        return cluster

    patched = pytest.MonkeyPatch()
    patched.setattr(publisher._Attempt, "_prove", noted)
    connect(spec.config)
    try:
        recorder = recorder_of(spec, tiny_policy, Console(file=output, width=400))
        recorder.__class__, recorder.seen = Steering, found

        async def work(signals: Signals) -> None:
            recorder.signals = signals
            with held(spec, print) as folder:
                await train(folder, str(tiny_policy), build, recorder, signals)

        with pytest.raises(Interrupted):
            run_until_signal(work)
    finally:
        disconnect()
        patched.undo()
        found.text = output.getvalue()
    return found


def test_each_engine_has_two_processes_and_every_version_was_proved_at_both(seen: Seen) -> None:
    assert [len(seen.killed), *seen.parts] == [2, 2, 2]
    rows = [json.loads(line) for line in (seen.folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, len(rows) + 1))
    assert all(row["publish_difference"] < 1e-3 for row in rows)
    for delivery in seen.delivered:
        first, second = delivery.digests
        assert first == second  # each process is sent every tensor, and takes its part of it
    assert len(seen.delivered) > len(rows)


def test_it_is_evaluated(seen: Seen) -> None:
    assert 0 in read_evaluations(seen.folder / "evaluations.json")


def test_one_process_lost_is_an_engine_lost_and_replaced(seen: Seen) -> None:
    assert "rollout worker 0 is taken out of the pool" in seen.text
    last = seen.statuses[-1]
    assert [worker.state for worker in last] == ["serving", "serving"]
    assert [worker.restarts for worker in last] == [1, 0]
    assert not [process for process in seen.killed if process.is_running()]
