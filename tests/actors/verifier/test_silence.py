"""A verifier service that has much to do, one that is stopped, and requests that wait for a place."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace

import httpx
import numpy as np
import pytest

from actors.runtime import supervised
from actors.runtime.start_watch import StartWatch
from actors.verifier.endpoint import RemoteSettings, RemoteVerdicts
from actors.verifier.remote import RemoteVerifier
from lpo_ray.common.restart_budget import RestartRule
from lpo_ray.common.silence import Progress
from lpo_ray.records import Process, PromptGroup, Response
from lpo_ray.tools.simulate.virtual_time import run
from lpo_ray.verifiers.calling.case import Case
from tests.support.builders import make_prompt
from tests.support.fakes import FakeEvents
from tests.support.ray_fakes import NEVER, Reference

SILENCE, HOUR = 200.0, 3600.0
RESPONSE = Response(np.array([1]), np.zeros(1, np.float32), np.zeros(1, np.int64), "stop")
SCORES = (np.ones(2, np.float32), ("", ""))


def now() -> float:
    return asyncio.get_running_loop().time()


def group(number: int) -> PromptGroup:
    return PromptGroup(make_prompt(number), 0, (RESPONSE, RESPONSE))


@dataclass
class Service:
    """Scores one group after the other, each for ``seconds``, a verdict every 10 s; is stopped from ``stops`` on."""

    seconds: float
    stops: float = math.inf
    ends: float = 0.0
    asked: list[str] = field(default_factory=list)

    def __getattr__(self, name: str) -> SimpleNamespace:
        answers: dict[str, Callable[[], Reference]] = {
            "start": lambda: Reference(Process(1, "node", "host", ())),
            "score": self.scored,
            "progress": lambda: Reference(NEVER if now() >= self.stops else Progress(int(now() / 10))),
        }
        return SimpleNamespace(remote=lambda *_: answers[name]())

    def scored(self) -> Reference:
        self.ends = max(self.ends, now()) + self.seconds
        answer = Reference()
        if self.ends < self.stops:
            asyncio.get_running_loop().call_later(self.ends - now(), answer.answer, SCORES)
        return answer


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    async def inspect(process: Process) -> str:
        return "its stack"

    monkeypatch.setattr(supervised, "inspect", inspect)
    monkeypatch.setattr(supervised, "end", lambda process: None)
    monkeypatch.setattr(supervised.ray, "kill", lambda handle: None)


async def started(*services: Service) -> tuple[RemoteVerifier, FakeEvents]:
    made, events = iter(services), FakeEvents()
    verifier = RemoteVerifier(
        lambda count: next(made), 2, SILENCE, StartWatch(600.0), 1800.0, RestartRule(3, HOUR, 0.0), events
    )
    await verifier.service.start()
    return verifier, events


def test_groups_may_wait_for_their_verdicts_for_hours_while_others_get_theirs() -> None:
    async def main() -> None:
        verifier, events = await started(Service(HOUR))
        scoring = [asyncio.ensure_future(verifier.score(group(n))) for n in range(6)]
        await asyncio.sleep(4.5 * HOUR)
        assert verifier.silence_of(group(5).key) <= SILENCE / 2
        assert verifier.silence_of(group(0).key) == math.inf
        await asyncio.gather(*scoring)
        assert now() == pytest.approx(6 * HOUR)
        assert events.notes == []

    run(main())


def test_a_service_that_is_stopped_is_replaced_within_its_silence_and_asked_again() -> None:
    async def main() -> None:
        verifier, events = await started(Service(HOUR, stops=1000.0), Service(10.0))
        assert (await verifier.score(group(0))).rewards.tolist() == [1, 1]
        assert now() <= 1000 + SILENCE + 10 + 1e-3
        assert "got on with nothing for 200 s (by verifier.deadline_seconds)" in events.notes[0]

    run(main())


def remote(seconds: float, concurrency: int) -> RemoteSettings:
    asked = {"response": "response"}
    return RemoteSettings(seconds, concurrency, asked, "reward", {}, False, None, "http://judge", "", None, "", 10)


@pytest.mark.parametrize("judged", [False, True])
async def test_requests_that_wait_for_a_place_are_not_late(judged: bool) -> None:
    """Eight at once, one place, each takes most of the limit of an answer: all are scored, none counts as a failure."""
    busy = most = 0

    async def answer(request: httpx.Request) -> httpx.Response:
        nonlocal busy, most
        busy += 1
        most = max(most, busy)
        await asyncio.sleep(0.12)
        busy -= 1
        if judged:
            return httpx.Response(200, json={"choices": [{"message": {"content": '{"score": 10, "reason": ""}'}}]})
        return httpx.Response(200, json={"reward": 1.0})

    settings = RemoteSettings(
        0.2, 1, {"response": "response"}, "reward", {}, False, None, "http://judge", "", None, "", 10
    )
    verdicts = RemoteVerdicts(settings)
    client = httpx.AsyncClient(transport=httpx.MockTransport(answer), timeout=0.2)
    verdicts._client = lambda proxy: client
    cases = [Case("", str(n), "") for n in range(8)]
    found = await verdicts.verdicts("judge" if judged else "http://service", cases)
    assert [verdict.reward for verdict in found] == [1.0] * 8
    assert most == 1
    assert verdicts.given == 8


async def test_an_answer_that_does_not_come_is_given_up() -> None:
    async def answer(request: httpx.Request) -> httpx.Response:
        await asyncio.sleep(1000)
        return httpx.Response(200)

    verdicts = RemoteVerdicts(remote(0.1, 2))
    client = httpx.AsyncClient(transport=httpx.MockTransport(answer), timeout=None)
    verdicts._client = lambda proxy: client
    async with asyncio.timeout(5):
        found = await verdicts.verdicts("http://service", [Case("", str(n), "") for n in range(4)])
    assert not any(verdict.is_scored for verdict in found)
