"""The environment service as a component: who is at work, its silence, its replacement; and a cluster that has one."""

from __future__ import annotations

import asyncio
import math
from types import SimpleNamespace

import numpy as np
import pytest
from ray.exceptions import ActorDiedError

from actors.agents.conducting import Conversations
from actors.agents.remote import RemoteEnvironments
from actors.cluster import Cluster
from actors.runtime import supervised, watched_service
from actors.runtime.start_watch import StartWatch
from lpo_ray.common.restart_budget import RestartRule
from lpo_ray.common.silence import Progress
from lpo_ray.errors import ComponentDied, ConfigError, GroupLost
from lpo_ray.records import ConversationId, Observation, Process, Prompt, Turn
from lpo_ray.rollout.agents import AgentLimits
from lpo_ray.rollout.conversations import ConversationRollout
from tests.support.fakes import FakeEvents
from tests.support.ray_fakes import Reference

NAME = ConversationId("p0", 1, 2)
PROMPT = Prompt("p0", np.array([1]), "", "countdown")
TURN = Turn(np.array([1]), np.zeros(1, np.float32), np.zeros(1, np.int64), "stop")
PROCESS = Process(7, "node", "host", ())


class Service:
    """A handle whose calls are answered by the test, and that says how far it is."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, tuple[object, ...], Reference]] = []
        self.dead = False

    def __getattr__(self, method: str) -> SimpleNamespace:
        def call(*arguments: object) -> Reference:
            answers: dict[str, object] = {"progress": Progress(len(self.calls), False, frozenset({NAME.key}))}
            answers |= {"start": PROCESS, "resize": None, "close": None}
            reference = Reference(answers[method]) if method in answers else Reference()
            self.calls.append((method, arguments, reference))
            if self.dead:
                reference.answer(ActorDiedError())
            return reference

        return SimpleNamespace(remote=call)

    def asked(self, method: str) -> list[tuple[object, ...]]:
        return [arguments for name, arguments, _ in self.calls if name == method]

    def answer(self, method: str, result: object) -> None:
        next(r for name, _, r in self.calls if name == method and not r.future().done()).answer(result)


class Scene:
    def __init__(self, monkeypatch: pytest.MonkeyPatch, restarts: int = 1, silence_seconds: float = 5.0) -> None:
        async def inspect(process: Process) -> str:
            return "seen from outside"

        monkeypatch.setattr(supervised, "inspect", inspect)
        monkeypatch.setattr(supervised, "end", lambda process: None)
        monkeypatch.setattr(supervised.ray, "kill", lambda handle: setattr(handle, "dead", True))
        self.made: list[Service] = []
        self.sizes: list[int] = []
        self.events = FakeEvents()
        self.environments = RemoteEnvironments(
            self._make, 2, silence_seconds, StartWatch(5), 5, RestartRule(restarts, 1000.0, 0.0), self.events
        )

    def _make(self, processes: int) -> Service:
        self.sizes.append(processes)
        self.made.append(Service())
        return self.made[-1]


async def settled() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


async def test_it_is_at_work_from_the_question_to_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(monkeypatch)
    environments, (service,) = scene.environments, scene.made
    await environments.service.start()
    assert (environments.busy(), environments.silence_of(NAME.key)) == ([], math.inf)
    opening = asyncio.ensure_future(environments.open(NAME, PROMPT))
    other = asyncio.ensure_future(environments.reply(NAME._replace(response=0), TURN))
    await settled()
    (busy,) = environments.busy()
    assert (busy.name, busy.doing, busy.process) == ("environment service", "1 group, oldest p0 attempt 1", PROCESS)
    assert environments.silence_of(NAME.key) < 1
    service.answer("open", np.array([1, 2]))
    assert (await opening).tolist() == [1, 2]
    assert environments.busy(), "a conversation of the group is still at work"
    service.answer("reply", Observation(None, done=True))
    assert (await other).done
    assert (environments.busy(), environments.silence_of(NAME.key)) == ([], math.inf)
    await environments.end(NAME)
    assert service.asked("end") == [(NAME,)], "and nobody waits for it"
    assert scene.events.counts == [{"conversations_open": n, "environment_processes": 2} for n in (1, 0)]


async def test_a_conversation_does_not_outlive_its_service(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its call is made again on a new service, which has no such conversation."""
    scene = Scene(monkeypatch)
    await scene.environments.service.start()
    answering = asyncio.ensure_future(scene.environments.reply(NAME, TURN))
    await settled()
    scene.made[0].answer("reply", ActorDiedError())
    async with asyncio.timeout(5):
        while len(scene.made) < 2 or not scene.made[1].asked("reply"):
            await asyncio.sleep(0.01)
    assert scene.environments.silence_of(NAME.key) < 1
    scene.made[1].answer("reply", GroupLost(*NAME.key, "there is no such conversation here"))
    with pytest.raises(GroupLost, match="there is no such conversation here"):
        await answering
    assert any("environment service is replaced" in note for note in scene.events.notes)
    assert scene.environments.busy() == []


async def test_its_restarts_are_counted_and_then_the_run_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(monkeypatch, restarts=0)
    await scene.environments.service.start()
    answering = asyncio.ensure_future(scene.environments.reply(NAME, TURN))
    await settled()
    scene.made[0].answer("reply", ActorDiedError())
    with pytest.raises(ComponentDied, match="its 0 of 0 restarts in 1000 s are spent"):
        await answering


async def test_one_that_answers_nothing_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(monkeypatch, silence_seconds=0.2)
    monkeypatch.setattr(watched_service, "call", lambda *_, **__: asyncio.sleep(60))
    await scene.environments.service.start()
    answering = asyncio.ensure_future(scene.environments.open(NAME, PROMPT))
    async with asyncio.timeout(10):
        while len(scene.made) < 2:
            await asyncio.sleep(0.02)
    answering.cancel()


async def test_another_number_of_processes_outlasts_a_replacement(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(monkeypatch)
    await scene.environments.service.start()
    assert await scene.environments.scale(5) == "5 environment processes"
    assert scene.made[0].asked("resize") == [(5,)]
    scene.environments.service._make()
    assert scene.sizes == [2, 5]


async def test_a_cluster_conducts_conversations_where_it_has_environments(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(monkeypatch)
    pool = SimpleNamespace(
        scale=lambda count: "scaled", silence_of=lambda key: math.inf, has_work=True, busy=lambda: []
    )
    verifier = SimpleNamespace(silence_of=lambda key: math.inf, busy=lambda: [], service=SimpleNamespace(process=None))
    builder = SimpleNamespace(builder=SimpleNamespace(process=None))
    layout = SimpleNamespace(most_engines=lambda: None)
    alone = Cluster(pool, verifier, builder, SimpleNamespace(), None, layout)
    assert alone.rollout is pool
    with pytest.raises(ConfigError, match=r"expected rollout=N or verifier=N.*and this run has no environments"):
        await alone.scale("environment", 2)
    conducted = Conversations(scene.environments, AgentLimits(64, 1, 1))
    cluster = Cluster(pool, verifier, builder, SimpleNamespace(), None, layout, [], conducted)
    assert isinstance(cluster.rollout, ConversationRollout)
    assert await cluster.scale("environment", 3) == "3 environment processes"
    for role, count, expected in (
        ("environment", 0, "expected 1 or more"), ("learner", 2, "rollout=N, verifier=N or environment=N"),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=expected):
            await cluster.scale(role, count)
    assert cluster.silence_of(NAME.key) == math.inf
    asking = asyncio.ensure_future(scene.environments.open(NAME, PROMPT))
    await settled()
    assert cluster.silence_of(NAME.key) < 1
    assert [found.name for found in cluster.busy("sample")] == ["environment service"]
    asking.cancel()
