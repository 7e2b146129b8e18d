"""Workers that come and go while groups are on their way: the real pool in virtual time, with workers made by hand."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field

import numpy as np
import pytest

from lpo_ray.common.restart_budget import RestartRule
from lpo_ray.common.silence import Progress
from lpo_ray.errors import ComponentDied, DeadlineExceeded, GroupLost, LpoRayError, NoRoom
from lpo_ray.interfaces import RolloutEngine
from lpo_ray.records import Process, Prompt, PromptGroup, Response, Sampling, WeightsVersion
from lpo_ray.rollout.member import Member
from lpo_ray.rollout.pool import PoolSettings, RolloutPool
from lpo_ray.tools.simulate.virtual_time import run
from tests.support.fakes import FakeEvents

SAMPLING = Sampling(group_size=2, temperature=1.0, max_tokens=4, seed=0)
RESPONSE = Response(np.array([1]), np.zeros(1, np.float32), np.zeros(1, np.int64), "stop")
SLOTS = 4


@dataclass
class Hand:
    """A worker that samples for ``seconds`` and notes what is asked of it."""

    name: str
    events: list[str]
    seconds: float = 10.0
    start_seconds: float = 5.0
    fails: list[LpoRayError] = field(default_factory=list)
    """instead of starting, once for each entry"""
    node_id: str = "node"
    broken: asyncio.Future[None] | None = None

    async def start(self, seconds: float) -> Process:
        await asyncio.sleep(self.start_seconds)
        if self.fails:
            raise self.fails.pop(0)
        self.broken = asyncio.get_running_loop().create_future()
        self.events.append(f"{self.name} up")
        return Process(0, self.node_id, "host", ())

    async def sample(self, prompt: Prompt, sampling: Sampling, attempt: int) -> PromptGroup:
        assert self.broken is not None
        self.events.append(f"{self.name} {prompt.prompt_id}")
        await asyncio.wait({self.broken}, timeout=self.seconds)
        if self.broken.done():
            raise ComponentDied(self.name, "killed")
        return PromptGroup(prompt, attempt, (RESPONSE, RESPONSE))

    async def progress(self) -> Progress:
        return Progress(asyncio.get_running_loop().time())

    async def inspect(self) -> str:
        return "seen from outside"

    async def close(self, seconds: float) -> None:
        self.events.append(f"{self.name} closed")

    def kill(self) -> None:
        if self.broken is not None and not self.broken.done():
            self.broken.set_result(None)
        self.events.append(f"{self.name} killed")


@dataclass
class Scene:
    """A pool whose members are admitted with version 1."""

    num_workers: int = 1
    drain_seconds: float = 60.0
    restarts: RestartRule = field(default_factory=lambda: RestartRule(2, 1000.0, 1.0))
    events: list[str] = field(default_factory=list)
    told: FakeEvents = field(default_factory=FakeEvents)
    made: dict[str, list[Hand]] = field(default_factory=dict)
    change: Callable[[Hand], None] = lambda hand: None

    @property
    def settings(self) -> PoolSettings:
        return PoolSettings(100.0, 100.0, 0.0, self.drain_seconds, SLOTS, self.restarts)

    async def begin(self) -> RolloutPool[Hand]:
        self.pool = RolloutPool(self.spawn, self.num_workers, settings=self.settings, events=self.told)
        self.pool.admit = self.admit
        await self.pool.start()
        self.pool.serve(self.pool.members, WeightsVersion(1, "one"))
        return self.pool

    async def lent(self) -> AbstractAsyncContextManager[RolloutEngine]:
        """One worker of a pool that has begun."""
        found = (await self.begin()).lend()
        assert found is not None
        return found

    def spawn(self, index: int, name: str) -> Hand:
        hand = Hand(name.removeprefix("rollout worker "), self.events)
        self.change(hand)
        self.made.setdefault(hand.name, []).append(hand)
        return hand

    async def admit(self, member: Member[Hand]) -> None:
        self.events.append(f"{member.worker.name} admitted")
        self.pool.serve([member], WeightsVersion(1, "one"))

    def sample(self, number: int) -> asyncio.Task[PromptGroup]:
        return asyncio.ensure_future(self.pool.sample(prompt(number), SAMPLING, 0))

    def states(self) -> list[str]:
        return [f"{status.name[-1]} {status.state}" for status in self.pool.statuses()]


def prompt(number: int) -> Prompt:
    return Prompt(f"p{number}", np.array([1]), "", "countdown")


async def at(seconds: float) -> None:
    await asyncio.sleep(seconds - asyncio.get_running_loop().time())


def test_what_has_no_room_waits_and_a_joiner_takes_it_at_once() -> None:
    async def main() -> None:
        scene = Scene()
        pool = await scene.begin()
        tasks = [scene.sample(number) for number in range(6)]
        await asyncio.sleep(0.1)
        assert [e for e in scene.events if " p" in e] == ["0 p0", "0 p1"]  # 4 slots, 2 responses each
        assert pool.scale(2) == "2 rollout workers: rollout worker 1 joining"
        await asyncio.sleep(5.1)
        assert [e for e in scene.events if e.startswith("1 ")] == ["1 up", "1 admitted", "1 p2", "1 p3"]
        await asyncio.gather(*tasks)
        assert scene.states() == ["0 serving", "1 serving"]
        assert "rollout worker 1 serves 1:one after" in scene.told.notes[-1]

    run(main())


def test_one_that_is_not_admitted_at_the_start_is_replaced_and_the_others_serve() -> None:
    async def main() -> None:
        scene = Scene(2)
        pool = RolloutPool(scene.spawn, 2, settings=scene.settings, events=scene.told)
        scene.pool = pool

        async def admit(member: Member[Hand]) -> None:
            if len(scene.made["1"]) == 1 and member.worker.name == "1":
                raise DeadlineExceeded("rollout worker 1", "serve the weights it has loaded", 100.0)
            await scene.admit(member)

        pool.admit = admit
        await pool.start()
        await pool.admit_all()
        assert scene.states() == ["0 serving", "1 starting"]
        await scene.sample(0)
        assert scene.states() == ["0 serving", "1 serving"]
        assert scene.events.count("0 admitted") == scene.events.count("1 admitted") == 1
        assert "rollout worker 1 is taken out of the pool" in scene.told.notes[0]

    run(main())


def test_a_leaver_ends_what_it_has_and_gets_no_more() -> None:
    async def main() -> None:
        scene = Scene(2)
        pool = await scene.begin()
        tasks = [scene.sample(number) for number in range(4)]
        await asyncio.sleep(1)
        assert pool.scale(1) == "1 rollout workers: rollout worker 1 leaving"
        assert scene.states() == ["0 serving", "1 leaving"]
        later = [scene.sample(number) for number in (7, 8)]
        assert len(await asyncio.gather(*tasks, *later)) == 6
        assert not [e for e in scene.events if e in ("1 p7", "1 p8")]
        await asyncio.sleep(1)
        assert scene.events[-2:] != [] and {"1 closed", "1 killed"} <= set(scene.events)
        assert scene.states() == ["0 serving"]
        assert pool.members == [m for m in pool.members if m.name == "rollout worker 0"]

    run(main())


def test_a_leaver_that_is_late_hands_its_groups_back() -> None:
    async def main() -> None:
        scene = Scene(2, drain_seconds=3.0)
        scene.change = lambda hand: setattr(hand, "seconds", 1000.0 if hand.name == "1" else 10.0)
        await scene.begin()
        tasks = [scene.sample(number) for number in range(4)]
        await asyncio.sleep(1)
        scene.pool.scale(1)
        results = await asyncio.gather(*tasks, return_exceptions=True)
        lost = [result for result in results if isinstance(result, GroupLost)]
        assert len(lost) == 2
        assert all("rollout worker 1 left before it had sampled it" in lost_one.reason for lost_one in lost)
        assert "rollout worker 1 leaves: 2 of its 2 groups go back after 3 s" in scene.told.notes
        assert not [note for note in scene.told.notes if "taken out" in note]

    run(main())


def test_none_then_some_then_none_then_some() -> None:
    async def main() -> None:
        scene = Scene(2)
        pool = await scene.begin()
        pool.scale(0)
        assert await pool.started() == []  # a publish goes on without anybody
        tasks = [scene.sample(number) for number in range(3)]
        await asyncio.sleep(5000)  # far beyond every deadline of the pool
        assert not any(task.done() for task in tasks)
        assert pool.busy()[0].doing == "no rollout workers are wanted, 3 groups wait"
        pool.scale(1)
        await asyncio.sleep(8)
        pool.scale(0)
        await asyncio.sleep(1000)
        assert [task.done() for task in tasks] == [True, True, False]
        pool.scale(2)
        await tasks[2]
        assert scene.states() == ["3 serving", "4 serving"]

    run(main())


def test_what_is_on_its_way_up_is_the_first_to_go_and_never_comes() -> None:
    async def main() -> None:
        scene = Scene()
        pool = await scene.begin()
        pool.scale(3)
        await asyncio.sleep(1)
        assert scene.states() == ["0 serving", "1 starting", "2 starting"]
        assert pool.scale(1) == "1 rollout workers: rollout worker 2, rollout worker 1 leaving"
        await asyncio.sleep(100)
        assert scene.states() == ["0 serving"]
        assert not [e for e in scene.events if e in ("1 up", "2 up")]
        assert {"1 killed", "2 killed"} <= set(scene.events)

    run(main())


def test_a_joiner_without_a_place_is_tried_again_and_given_up_the_others_go_on() -> None:
    async def main() -> None:
        scene = Scene(restarts=RestartRule(2, 1000.0, 1.0))
        pool = await scene.begin()
        scene.change = lambda hand: setattr(hand, "fails", [NoRoom("no node has a GPU left")])
        pool.scale(2)
        await asyncio.sleep(100)
        assert scene.states() == ["0 serving", "1 out"]
        assert len(scene.made["1"]) == 3
        assert "its 2 of 2 restarts in 1000 s are spent (supervision) and it is given up" in scene.told.notes[-1]
        await scene.sample(0)
        scene.change = lambda hand: None
        pool.scale(2)  # asked for again, there is room now
        await asyncio.sleep(10)
        assert scene.states() == ["0 serving", "2 serving"]

    run(main())


def test_a_node_with_notice_is_left_and_as_many_workers_start_elsewhere() -> None:
    async def main() -> None:
        scene = Scene(2)
        scene.change = lambda hand: setattr(hand, "node_id", "spot" if hand.name == "1" else "node")
        pool = await scene.begin()
        tasks = [scene.sample(number) for number in range(4)]
        await asyncio.sleep(1)
        pool.vacate(["spot"], "its node goes in 100 s")
        assert scene.states() == ["0 serving", "1 leaving", "2 starting"]
        await asyncio.gather(*tasks)
        await asyncio.sleep(1)
        assert scene.states() == ["0 serving", "2 serving"]
        assert pool.wanted == 2

    run(main())


def test_restarts_wait_longer_each_time_and_a_leaver_that_dies_is_not_replaced() -> None:
    async def main() -> None:
        scene = Scene(restarts=RestartRule(3, 1000.0, 4.0))
        pool = await scene.begin()
        ups = []
        for _ in range(3):
            died = asyncio.get_running_loop().time()
            pool.take_out(pool.members[0], ComponentDied("rollout worker 0", "killed"))
            while not pool.members or pool.members[0].version is None:
                await asyncio.sleep(0.25)
            ups.append(round(asyncio.get_running_loop().time() - died))
        assert ups == [5, 9, 13]  # 5 to start, after 0, 4 and 8
        task = scene.sample(0)
        await asyncio.sleep(1)
        pool.scale(0)
        scene.made["0"][-1].kill()
        with pytest.raises(GroupLost, match="left before"):
            await task
        await asyncio.sleep(100)
        assert scene.states() == []

    run(main())


def test_when_nobody_serves_although_somebody_should_groups_do_not_wait_for_ever() -> None:
    async def main() -> None:
        scene = Scene()
        pool = await scene.begin()
        pool.members[0].version = None
        scene.change = lambda hand: setattr(hand, "start_seconds", 1e6)
        pool.take_out(pool.members[0], ComponentDied("rollout worker 0", "killed"))
        with pytest.raises(DeadlineExceeded, match="rollout worker 0 did not finish 'serve' within 100 s"):
            await scene.sample(0)
        with pytest.raises(DeadlineExceeded):
            await pool.started()
        await pool.close()

    run(main())


def test_a_group_that_is_given_up_while_it_waits_leaves_its_place_to_the_next() -> None:
    async def main() -> None:
        scene = Scene()
        pool = await scene.begin()
        tasks = [scene.sample(number) for number in range(5)]
        await asyncio.sleep(1)
        tasks[2].cancel()
        await asyncio.sleep(9.1)
        assert [e for e in scene.events if " p" in e] == ["0 p0", "0 p1", "0 p3", "0 p4"]
        assert pool.members[0].responses == SLOTS
        await asyncio.gather(*tasks, return_exceptions=True)
        assert pool.members[0].responses == 0

    run(main())


def test_one_that_is_lent_keeps_its_version_and_gets_nothing_else_until_it_is_back() -> None:
    async def main() -> None:
        scene = Scene(num_workers=3)
        pool = await scene.begin()
        busy = scene.sample(1)  # worker 0
        await at(6)
        lent = pool.lend()
        assert lent is not None
        assert scene.states() == ["0 serving", "1 lent", "2 serving"]
        assert [member.name[-1] for member in await pool.started()] == ["0", "2"], "who gets new weights"
        assert [member.name[-1] for member in pool.up()] == ["0", "1", "2"]
        async with lent as engine:
            more = [scene.sample(number) for number in range(2, 5)]
            group = await engine.sample(prompt(9), SAMPLING, 0)
            assert group.prompt.prompt_id == "p9"
            assert "1 p9" in scene.events
            assert not {f"1 p{number}" for number in range(2, 5)} & set(scene.events)
        assert "1 admitted" not in scene.events
        await asyncio.sleep(0.1)
        assert "1 admitted" in scene.events, "as a joiner is"
        assert scene.states() == ["0 serving", "1 serving", "2 serving"]
        await asyncio.gather(busy, *more)
        later = [scene.sample(number) for number in range(10, 16)]
        await asyncio.gather(*later)
        assert any(f"1 p{number}" in scene.events for number in range(10, 16))

    run(main())


def test_what_one_has_when_it_is_lent_it_ends() -> None:
    async def main() -> None:
        scene = Scene(num_workers=2)
        pool = await scene.begin()
        tasks = [scene.sample(number) for number in range(4)]
        await at(6)
        lent = pool.lend()
        assert lent is not None
        async with lent:
            assert {(await task).prompt.prompt_id for task in tasks} == {"p0", "p1", "p2", "p3"}

    run(main())


@pytest.mark.parametrize("num_workers", [0, 1])
def test_there_is_none_to_lend_where_it_would_be_missed(num_workers: int) -> None:
    async def main() -> None:
        pool = await Scene(num_workers=num_workers).begin()
        assert pool.lend() is None

    run(main())


def test_one_that_dies_while_it_is_lent_is_replaced_and_its_weights_are_gone() -> None:
    async def main() -> None:
        scene = Scene(num_workers=2)
        async with await scene.lent() as engine:
            sampling = asyncio.ensure_future(engine.sample(prompt(1), SAMPLING, 0))
            await asyncio.sleep(1)
            scene.made["0"][0].kill()
            with pytest.raises(ComponentDied, match="rollout worker 0"):
                await sampling
            await asyncio.sleep(30)
            assert scene.states() == ["0 serving", "1 serving"], "another, with the weights of now"
            with pytest.raises(ComponentDied, match="replaced while it was lent"):
                await engine.sample(prompt(2), SAMPLING, 0)
        assert scene.states() == ["0 serving", "1 serving"]

    run(main())


def test_one_that_is_lent_leaves_when_fewer_are_wanted() -> None:
    async def main() -> None:
        scene = Scene(num_workers=2)
        async with await scene.lent() as engine:
            scene.pool.scale(1)
            with pytest.raises(ComponentDied):
                await engine.sample(prompt(1), SAMPLING, 0)
            await asyncio.sleep(1)
        assert scene.states() == ["1 serving"]
        assert scene.pool.lend() is None

    run(main())
