"""The ranks as one learner: what counts as lost, and how they come back, with hand-made ranks in place of processes."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest
from ray.exceptions import RayActorError

from actors.learner import group as learner_group
from actors.learner.group import Formation, LearnerGroup, LearnerRules
from lpo_ray.common.restart_budget import RestartRule
from lpo_ray.errors import ComponentDied, ComponentFailed, LearnerLost, NoRoom, WeightsNotProved
from lpo_ray.learner.packing import Packing
from lpo_ray.records import Process
from tests.support.fakes import FakeEvents
from tests.support.ray_fakes import Reference

GLOO = RuntimeError("[../gloo/transport/tcp/pair.cc:534] Connection closed by peer [10.0.0.2]:4711")


class Rank:
    """Every call answers at once: what ``answers`` says of it, else None."""

    def __init__(self, answers: dict[str, object]) -> None:
        self.answers = {"address": ("host", 1), "start": Process(7, "node", "host", ()), **answers}

    def __getattr__(self, name: str) -> SimpleNamespace:
        return SimpleNamespace(remote=lambda *_: Reference(self.answers.get(name)))


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    async def inspect(process: Process) -> str:
        return "its last words"

    monkeypatch.setattr(learner_group, "inspect", inspect)
    monkeypatch.setattr(learner_group, "end", lambda process: None)
    monkeypatch.setattr(learner_group.ray, "kill", lambda handle: None)


def group(
    *ranks: Rank, room: Callable[[int], bool] = lambda size: True, least: int = 2, restarts: int = 3
) -> tuple[LearnerGroup, FakeEvents]:
    async def form(size: int) -> Formation:
        if not room(size):
            raise NoRoom(f"no place for {size} ranks")
        return Formation(list(ranks[:size]), lambda: None)

    events = FakeEvents()
    rules = LearnerRules(2, least, Packing(2, 100, False), 5.0, 5.0, 5.0, RestartRule(restarts, 100.0, 0.0))
    return LearnerGroup(form, rules, events), events


async def test_a_rank_that_complains_of_its_peers_is_not_the_one_that_is_lost() -> None:
    learner, _ = group(Rank({"digests": GLOO}), Rank({"digests": RayActorError()}))
    await learner.start()
    with pytest.raises(LearnerLost) as caught:
        await learner.digest()
    assert caught.value.who == "learner rank 1"


async def test_a_broken_collective_with_all_alive_is_lost_an_error_of_its_own_is_not() -> None:
    learner, _ = group(Rank({"digests": GLOO}), Rank({"digests": GLOO}))
    await learner.start()
    with pytest.raises(LearnerLost, match="Connection closed by peer"):
        await learner.digest()
    broken = ValueError("a bug")
    learner, _ = group(Rank({"digests": broken}), Rank({"digests": broken}))
    await learner.start()
    with pytest.raises(ComponentFailed, match="a bug"):
        await learner.digest()


async def test_an_engine_that_leaves_a_transfer_does_not_make_the_learner_lost() -> None:
    learner, _ = group(Rank({"advance": GLOO}), Rank({}))
    await learner.start()
    with pytest.raises(ComponentFailed):
        await learner.advance(0, [0], 5.0)


async def test_it_comes_back_with_fewer_ranks_where_that_is_allowed_and_with_all_when_there_is_room_again() -> None:
    places = {2}
    learner, events = group(Rank({}), Rank({}), room=lambda size: size <= max(places), least=1)
    await learner.start()
    places = {1}
    await learner.reform(LearnerLost("learner rank 1", "its node is gone"))
    assert (learner.world_size, len(learner.ranks), len(learner.processes), learner.generation) == (1, 1, 1, 2)
    assert "no place for 2 ranks; trying 1 learner ranks (learner.min_world_size)" in events.notes[-1]
    places = {2}
    await learner.reform(LearnerLost("learner rank 0", "killed"))
    assert (learner.world_size, learner.generation) == (2, 3)


async def test_it_does_not_shrink_unasked_and_ends_when_its_restarts_are_spent() -> None:
    places = {2}
    learner, events = group(Rank({}), Rank({}), room=lambda size: size <= max(places), restarts=1)
    await learner.start()
    lost = LearnerLost("learner rank 1", "killed")
    await learner.reform(lost)
    assert "learner rank 0: its last words" in events.notes[0]
    with pytest.raises(
        ComponentDied, match=r"killed; the learner's 1 of 1 restarts in 100 s are spent \(supervision\)"
    ):
        await learner.reform(lost)
    learner, _ = group(Rank({}), Rank({}), room=lambda size: size <= max(places))
    await learner.start()
    places = {1}
    with pytest.raises(NoRoom, match="no place for 2 ranks"):
        await learner.reform(lost)


async def test_ranks_may_round_otherwise_and_not_gather_other_weights() -> None:
    rows = [np.full(9, -1.0), np.full(1, -1.0)]
    other = [rows[0] + 0.01, rows[1]]
    learner, _ = group(Rank({"probe": rows}), Rank({"probe": other}))
    await learner.start()
    assert await learner.probe([], 0.02) == rows
    with pytest.raises(WeightsNotProved, match="the ranks gather different weights") as caught:
        await learner.probe([], 0.005)
    assert (caught.value.engine, caught.value.tolerance) == ("learner rank 1", 0.005)
    with pytest.raises(WeightsNotProved):
        await learner.probe([])  # ranks of one kind of device agree bit for bit
