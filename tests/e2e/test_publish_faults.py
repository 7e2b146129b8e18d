"""A run with two engines, one of which is killed and then the other stopped, each between prepare and transfer."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import time
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

from actors.cluster import Cluster
from lpo_ray.records import WorkerStatus
from lpo_ray.training.loop import StepRecord
from tests.support.real_specs import plan_of
from tests.support.steered_runs import Steering, run_steered

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(400)]
PREPARE, TRANSFER = 20.0, 8.0
FAULTS = {"rollout worker 1": signal.SIGKILL, "rollout worker 0": signal.SIGSTOP}
"""in this order; the second once the first is back"""


@dataclass
class Faulty:
    """Sends each signal once, after the engines have stopped decoding and before the first bucket is staged."""

    folder: Path = Path()
    text: str = ""
    seconds: dict[str, float] = field(default_factory=dict)
    """of the publish in which each worker failed"""
    pids: dict[str, int] = field(default_factory=dict)
    statuses: list[tuple[WorkerStatus, ...]] = field(default_factory=list)
    due: list[str] = field(default_factory=lambda: list(FAULTS))
    back: set[str] = field(default_factory=set)

    def attach(self, cluster: Cluster) -> None:
        learner, transport = cluster.learner, cluster.transport
        advance, publish = learner.advance, transport.publish
        step = 0  # outside a publish; a newcomer is given its weights there, too

        async def timed(number: int) -> object:
            nonlocal step
            step, before, started = number, list(self.due), time.monotonic()
            publication = await publish(number)
            step = 0
            for name in set(before) - set(self.due):
                self.seconds[name] = time.monotonic() - started
            return publication

        async def faulty(sent: int | None, groups: list[int], seconds: float) -> object:
            members = {member.name: member for member in cluster.rollout.members}
            if sent is None and step >= 2 and self.due and len(members) == 2:
                name = self.due.pop(0)
                self.pids[name] = members[name].process.pid
                os.kill(self.pids[name], FAULTS[name])
            return await advance(sent, groups, seconds)

        learner.advance, transport.publish = faulty, timed


class Stopping(Steering[Faulty]):
    """Ends the run once both workers are back."""

    def step_done(self, record: StepRecord) -> None:
        super().step_done(record)
        workers = record.publication.workers
        self.seen.statuses.append(workers)
        if not self.seen.due and all(w.state == "serving" and w.restarts == 1 for w in workers):
            self.signals.loop.stop(signal.SIGINT)


@pytest.fixture(scope="module", params=["shared_memory", pytest.param("gloo", marks=pytest.mark.long)])
def seen(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, tiny_policy: Path) -> Faulty:
    spec = plan_of(
        tmp_path_factory.mktemp(request.param), tiny_policy, f"transport.kind={request.param}", "run.steps=200",
        "rollout.num_workers=2", "rollout.kv_cache_gib=0.2", f"transport.prepare_seconds={PREPARE}",
        "transport.bucket_mib=1", f"transport.transfer_seconds={TRANSFER}", "learner.world_size=1",
        "evaluation.num_prompts=0", "telemetry.progress=plain",
    )  # fmt: skip
    found = Faulty(spec.run_dir)
    found.text = run_steered(spec, tiny_policy, Stopping, found, found.attach)
    return found


def test_the_publish_ends_within_its_deadlines(seen: Faulty) -> None:
    assert set(seen.seconds) == set(FAULTS)
    for seconds in seen.seconds.values():
        assert seconds < PREPARE + TRANSFER


def test_the_message_names_the_engine_and_shows_what_it_did(seen: Faulty) -> None:
    killed = seen.text.index("rollout worker 1 is taken out of the pool: rollout worker 1 died")
    stopped = seen.text.index("rollout worker 0 is taken out of the pool: rollout worker 0 did not finish 'receive")
    assert f"process {seen.pids['rollout worker 1']} is gone" in seen.text[killed:stopped]
    evidence = seen.text[stopped:]
    assert f"process {seen.pids['rollout worker 0']} is stopped" in evidence
    assert "Thread " in evidence  # its stack, read from outside
    assert "  log: " in evidence


def test_training_went_on_and_every_step_is_there(seen: Faulty) -> None:
    rows = [json.loads(line) for line in (seen.folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, len(rows) + 1))
    assert {row["workers_serving"] for row in rows} == {1, 2}
    database = sqlite3.connect(seen.folder / "ledger.sqlite")
    reasons = [reason for (reason,) in database.execute("select reason from attempts where reason is not null")]
    database.close()
    assert all("rollout worker" in reason or "when the run ended" in reason for reason in reasons)


def test_both_engines_came_back_with_the_right_version(seen: Faulty) -> None:
    last = seen.statuses[-1]
    assert [worker.state for worker in last] == ["serving", "serving"]
    assert len({worker.version for worker in last}) == 1
    assert all(worker.detail for worker in last)
    status = json.loads((seen.folder / "status.json").read_text())
    assert {worker["version"] for worker in status["workers"].values()} == {status["weights_version"]}


def test_nothing_of_the_old_processes_is_left(seen: Faulty) -> None:
    assert not [pid for pid in seen.pids.values() if psutil.pid_exists(pid)]
