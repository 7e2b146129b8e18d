"""Who is known to be at work, without asking anybody: the pool, the learner's ranks and the cluster of both."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import numpy as np
import pytest

from actors.cluster import Cluster
from actors.learner.group import Formation, LearnerGroup, LearnerRules
from actors.learner.target_builder import RemoteTargetBuilder
from actors.runtime.start_watch import StartWatch
from actors.runtime.supervised import RestartableActor
from actors.verifier.remote import RemoteVerifier
from lpo_ray.common.restart_budget import RestartRule
from lpo_ray.errors import NoRoom
from lpo_ray.learner.packing import Packing
from lpo_ray.records import BusyWorker, Process, Prompt, PromptGroup, Response, Sampling, WeightsVersion
from lpo_ray.rollout.pool import PoolSettings, RolloutPool
from tests.support.fakes import FakeEvents
from tests.support.ray_fakes import Reference, remote_worker


class Remote:
    """A handle: every method is called with ``.remote`` and answers when the test says so."""

    def __init__(self) -> None:
        self.pending: list[Reference] = []

    def __getattr__(self, method: str) -> SimpleNamespace:
        def remote(*_: object) -> Reference:
            self.pending.append(reference := Reference())
            return reference

        return SimpleNamespace(remote=remote)

    def answer(self, result: object) -> None:
        self.pending.pop(0).answer(result)


def process(pid: int) -> Process:
    return Process(pid, "node", "10.0.0.1", ())


def prompt(number: int) -> Prompt:
    return Prompt(f"train-{number:08d}", np.array([1]), "", "countdown")


SAMPLING = Sampling(group_size=1, temperature=1.0, max_tokens=4, seed=0)
RESPONSE = Response(np.array([1]), np.zeros(1, np.float32), np.zeros(1, np.int64), "stop")


def make_cluster() -> Cluster:
    never, events = RestartRule(0, 1.0, 0.0), FakeEvents()
    pool = RolloutPool(
        lambda index, name: remote_worker(name, Remote()),
        2,
        settings=PoolSettings(5, 5, 0, 5, 100, never),
        events=events,
    )
    learner = LearnerGroup(no_room, LearnerRules(2, 2, Packing(2, 100, False), 5, 5, 5, never), events)
    learner._formation = Formation([Remote(), Remote()], lambda: None)
    learner.processes = [process(1), process(2)]
    verifier = RemoteVerifier(lambda count: Remote(), 2, 5, StartWatch(5), 5, never, events)
    builder = RemoteTargetBuilder(
        RestartableActor("target builder", Remote, lambda actor: actor.start(), never, events, StartWatch(5), 5)
    )
    verifier.service.process, builder.builder.process = process(3), process(4)
    return Cluster(pool, verifier, builder, learner, SimpleNamespace(), SimpleNamespace())


async def no_room(world_size: int) -> Formation:
    raise NoRoom("there is none")


def names(busy: list[BusyWorker]) -> list[str]:
    return [f"{holder.name}: {holder.doing}" for holder in busy]


async def started(work) -> asyncio.Task:
    task = asyncio.ensure_future(work)
    for _ in range(5):
        await asyncio.sleep(0)
    return task


async def test_a_member_knows_its_groups_and_the_oldest(monkeypatch: pytest.MonkeyPatch) -> None:
    at = make_cluster()
    assert names(at.busy("sample")) == ["rollout worker 0: starting", "rollout worker 1: starting"]
    workers = [remote_worker(f"rollout worker {n}", Remote()) for n in (0, 1)]
    slots = at.rollout._slots.values()
    members = [at.rollout._join(s, w, process(10 + s.index)) for s, w in zip(slots, workers, strict=True)]
    at.rollout.members = list(members)
    at.rollout.serve(members, WeightsVersion(3, "abc"))
    assert at.busy("sample") == []
    tasks = []
    for n, now in ((7, 50.0), (8, 51.0), (9, 52.0)):
        monkeypatch.setattr("lpo_ray.common.held.time", SimpleNamespace(time=lambda now=now: now))
        tasks.append(await started(at.rollout.sample(prompt(n), SAMPLING, n % 2)))
    first, second = at.busy("sample")
    assert first == BusyWorker("rollout worker 0", "2 groups, oldest train-00000007 attempt 1", 50.0, process(10))
    assert second == BusyWorker("rollout worker 1", "1 group, oldest train-00000008 attempt 0", 51.0, process(11))
    members[0].worker.handle.answer("a group")
    assert await tasks[0] == "a group"
    assert at.busy("evaluate")[0].doing == "1 group, oldest train-00000009 attempt 1"
    assert names(at.busy("publish")) == [
        "rollout worker 0: takes new weights, has 3:abc", "rollout worker 1: takes new weights, has 3:abc",
    ]  # fmt: skip
    members[0].worker.handle.answer("a group")
    members[1].worker.handle.answer("a group")
    await asyncio.gather(*tasks)
    assert at.busy("sample") == []


async def test_the_verifier_knows_its_groups() -> None:
    at = make_cluster()
    assert at.busy("verify") == []
    task = await started(at.verifier.score(PromptGroup(prompt(7), 2, (RESPONSE,))))
    assert names(at.busy("verify")) == ["verifier service: 1 group, oldest train-00000007 attempt 2"]
    assert at.busy("verify") == at.busy("evaluate")[-1:]
    at.verifier.service.handle.answer((np.array([0.5], dtype=np.float32), ("value 21, target 22",)))
    scored = await task
    assert (scored.group.key, scored.rewards.tolist()) == (("train-00000007", 2), [0.5])
    assert scored.details == ("value 21, target 22",)
    assert at.busy("verify") == []


async def test_ranks_hold_what_is_asked_of_them_and_nothing_after_it() -> None:
    at = make_cluster()
    assert names(at.busy("anchor")) == ["target builder: builds targets"]
    assert at.busy("project") == at.busy("checkpoint") == []
    task = await started(at.learner.probe([]))
    for stage in ("anchor", "project", "checkpoint", "publish"):
        assert names(at.busy(stage)) == ["learner rank 0: compute the probe", "learner rank 1: compute the probe"]
    assert [holder.process for holder in at.busy("project")] == [process(1), process(2)]
    for rank in at.learner.ranks:
        rank.answer([])
    await task
    assert at.learner.busy() == []
    task = await started(at.learner.logprobs([[], [], []], 1.0))
    assert names(at.busy("project")) == ["learner rank 0: logprobs", "learner rank 1: logprobs"]
    for rank, answer in zip(at.learner.ranks, ([["of 0"], ["of 2"]], [["of 1", "of 1 too"]]), strict=True):
        rank.answer(answer)
    assert await task == ["of 0", "of 1", "of 1 too", "of 2"]
