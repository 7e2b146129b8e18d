"""An actor that dies: replaced once, nobody gets the new one before it is ready, and everybody's call is made again."""

from __future__ import annotations

import asyncio
from concurrent.futures import Future
from types import SimpleNamespace

import pytest
from ray.exceptions import RayActorError

from actors.runtime import supervised
from actors.runtime.start_watch import StartWatch
from actors.runtime.supervised import RestartableActor
from lpo_ray.common.restart_budget import RestartRule
from lpo_ray.errors import ComponentDied
from lpo_ray.records import Process
from tests.support.fakes import FakeEvents

PROCESS = Process(1, "node", "host", ())


class Actor:
    """``start`` answers when the test lets it; ``ask`` fails once the actor is dead, or before it is ready."""

    def __init__(self, dies_at_start: bool = False) -> None:
        self.ready, self.dead, self._dies = False, False, dies_at_start
        self.starting: Future[Process] = Future()

    def start(self) -> SimpleNamespace:
        return SimpleNamespace(future=lambda: self.starting)

    def up(self) -> None:
        self.ready = not self._dies
        self.starting.set_exception(RayActorError()) if self._dies else self.starting.set_result(PROCESS)

    def ask(self) -> SimpleNamespace:
        future: Future[str] = Future()
        if self.dead:
            future.set_exception(RayActorError())
        elif not self.ready:
            future.set_exception(AttributeError("asked before it was ready"))
        else:
            future.set_result("an answer")
        return SimpleNamespace(future=lambda: future)


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """No Ray, no process to look at or to end."""

    async def inspect(process: Process) -> str:
        return "its last words"

    monkeypatch.setattr(supervised, "inspect", inspect)
    monkeypatch.setattr(supervised, "end", lambda process: None)
    monkeypatch.setattr(supervised.ray, "kill", lambda handle: setattr(handle, "dead", True))


async def begin(actors: list[Actor], restarts: int) -> tuple[RestartableActor, FakeEvents]:
    made, events = iter(actors), FakeEvents()
    found = RestartableActor(
        "the service",
        lambda: next(made),
        lambda a: a.start(),
        RestartRule(restarts, 100, 0),
        events,
        StartWatch(5.0),
        5.0,
    )
    actors[0].up()
    await found.start()
    return found, events


async def test_everybody_waits_for_the_new_one_and_asks_again() -> None:
    old, new = actors = [Actor(), Actor()]
    service, events = await begin(actors, 1)
    old.dead = True
    early = [asyncio.ensure_future(service.call(lambda a: a.ask(), "ask", 5)) for _ in range(3)]
    await asyncio.sleep(0.05)
    late = asyncio.ensure_future(service.call(lambda a: a.ask(), "ask", 5))  # while the new one starts
    await asyncio.sleep(0.05)
    assert not any(task.done() for task in (*early, late))
    new.up()
    assert await asyncio.gather(*early, late) == ["an answer"] * 4
    assert "its last words" in events.notes[0]
    assert len(events.notes) == 2


async def test_one_that_dies_while_it_starts_is_tried_again_until_the_restarts_are_spent() -> None:
    actors = [Actor(), Actor(dies_at_start=True), Actor()]
    service, _ = await begin(actors, 2)
    actors[0].dead = True
    actors[1].up()
    actors[2].up()
    assert await service.call(lambda a: a.ask(), "ask", 5) == "an answer"
    actors[2].dead = True
    with pytest.raises(ComponentDied, match=r"its 2 of 2 restarts in 100 s are spent \(supervision\)"):
        await service.call(lambda a: a.ask(), "ask", 5)
