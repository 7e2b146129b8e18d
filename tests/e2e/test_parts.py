"""An engine in two processes, as tensor parallelism makes it (here on CPUs, with gloo between them): it trains, is
proved at both, is evaluated, loses a process and comes back (in make soak: with another engine).
"""

from __future__ import annotations

import json
import signal
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

from actors import delivery
from actors.rollout.worker import Delivery
from lpo_ray.records import WorkerStatus
from lpo_ray.telemetry.evaluations import read_evaluations
from lpo_ray.training.loop import StepRecord
from tests.support.real_specs import plan_of
from tests.support.steered_runs import Steering, run_steered

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(600)]


def processes_of(pid: int) -> list[psutil.Process]:
    """The processes of an engine that hold a part of its weights."""
    return [p for p in psutil.Process(pid).children(recursive=True) if "Worker" in "".join(p.cmdline()[:1])]


@dataclass
class Seen:
    folder: Path
    engines: int
    """how many serve at the end"""
    text: str = ""
    parts: list[int] = field(default_factory=list)
    """processes of each engine"""
    delivered: list[Delivery] = field(default_factory=list)
    """what engines gave account of, in every publish"""
    killed: list[psutil.Process] = field(default_factory=list)
    statuses: list[tuple[WorkerStatus, ...]] = field(default_factory=list)


class Growing(Steering["Seen"]):
    """Kills a process of the engine after two steps and asks for the others, and ends the run when all serve."""

    def step_done(self, record: StepRecord) -> None:
        super().step_done(record)
        workers, rollout = tuple(record.publication.workers), self.cluster.rollout
        self.seen.statuses.append(workers)
        if record.step >= 2 and not self.seen.killed:
            self.seen.killed = processes_of(rollout.members[0].process.pid)
            self.seen.killed[-1].kill()
            rollout.scale(self.seen.engines)
        elif [worker.state for worker in workers] == ["serving"] * self.seen.engines and workers[0].restarts:
            self.seen.parts = [len(processes_of(member.process.pid)) for member in rollout.members]
            self.signals.loop.stop(signal.SIGINT)


@pytest.fixture(scope="module", params=[1, pytest.param(2, marks=pytest.mark.long)])
def seen(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, tiny_policy: Path) -> Seen:
    spec = plan_of(
        tmp_path_factory.mktemp("parts"), tiny_policy, "rollout.tensor_parallel_size=2", "run.steps=2000",
        "rollout.kv_cache_gib=0.2", "learner.world_size=1", "telemetry.progress=plain",
    )  # fmt: skip
    found = Seen(spec.run_dir, request.param)
    prove = delivery.Attempt._prove

    def noted(attempt: object, version: object, digests: object, delivered: dict, expected: object) -> None:
        found.delivered += delivered.values()
        prove(attempt, version, digests, delivered, expected)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(delivery.Attempt, "_prove", noted)
        found.text = run_steered(spec, tiny_policy, Growing, found)
    return found


def test_each_engine_has_two_processes_and_every_version_was_proved_at_both(seen: Seen) -> None:
    assert [len(seen.killed), *seen.parts] == [2] * (1 + seen.engines)
    rows = [json.loads(line) for line in (seen.folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, len(rows) + 1))
    assert all(row["publish_difference"] < 1e-3 for row in rows)
    for account in seen.delivered:
        first, second = account.digests
        assert first == second  # each process is sent every tensor, and takes its part of it
    assert len(seen.delivered) > len(rows)


def test_it_is_evaluated(seen: Seen) -> None:
    assert 0 in read_evaluations(seen.folder / "evaluations.json")


def test_one_process_lost_is_an_engine_lost_and_replaced(seen: Seen) -> None:
    assert "rollout worker 0 is taken out of the pool" in seen.text
    last = seen.statuses[-1]
    assert [worker.state for worker in last] == ["serving"] * seen.engines
    assert [worker.restarts for worker in last] == [1, 0][: seen.engines]
    assert not [process for process in seen.killed if process.is_running()]
