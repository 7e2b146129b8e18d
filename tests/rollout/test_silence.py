"""Slow engines and stopped ones: the real pool in virtual time, with engines that decode at a rate."""

from __future__ import annotations

import asyncio
import itertools
import math
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lpo_ray.common.restart_budget import RestartRule
from lpo_ray.common.silence import Progress
from lpo_ray.errors import ComponentDied, DeadlineExceeded, GroupLost
from lpo_ray.records import Key, Process, Prompt, PromptGroup, Response, Sampling, WeightsVersion
from lpo_ray.rollout.member import Member
from lpo_ray.rollout.pool import PoolSettings, RolloutPool
from lpo_ray.tools.simulate.virtual_time import run
from tests.support.fakes import FakeEvents

SILENCE, START, PLACE = 600.0, 1800.0, 120.0
SAMPLING = Sampling(group_size=8, temperature=1.0, max_tokens=32_768, seed=0)
RESPONSE = Response(np.array([1]), np.zeros(1, np.float32), np.zeros(1, np.int64), "stop")


@dataclass
class Engine:
    """Decodes ``at_once`` groups at a time, each for ``tokens / rate`` seconds; the others wait inside."""

    name: str
    rate: float = 20.0
    """tokens a second of one response"""
    tokens: int = 32_000
    """of each response"""
    at_once: int = 8
    stops: float = math.inf
    """moment at which its process is stopped: it decodes and says nothing from then on"""
    start_seconds: float = 0.0
    loses: frozenset[str] = frozenset()
    """groups whose answer never comes"""
    groups: set[Key] = field(default_factory=set)
    busy_since: float = 0.0

    def __post_init__(self) -> None:
        self.places = asyncio.Semaphore(self.at_once)
        self.broken = asyncio.Event()

    @property
    def is_stopped(self) -> bool:
        return now() >= self.stops

    async def start(self, seconds: float) -> Process:
        try:
            async with asyncio.timeout(seconds):
                await asyncio.sleep(self.start_seconds)
        except TimeoutError:
            raise DeadlineExceeded(self.name, "start its engine", seconds) from None
        return Process(0, "node", "host", ())

    async def sample(self, prompt: Prompt, sampling: Sampling, attempt: int) -> PromptGroup:
        if not self.groups:
            self.busy_since = now()
        self.groups.add(key := (prompt.prompt_id, attempt))
        try:
            work = asyncio.ensure_future(self._decode())
            broken = asyncio.ensure_future(self.broken.wait())
            await asyncio.wait({work, broken}, return_when=asyncio.FIRST_COMPLETED)
            work.cancel()
            broken.cancel()
        finally:
            self.groups.discard(key)
        if self.broken.is_set():
            raise ComponentDied(self.name, "killed")
        if prompt.prompt_id in self.loses and attempt == 0:
            await asyncio.Event().wait()
        return PromptGroup(prompt, attempt, (RESPONSE,) * sampling.group_size)

    async def _decode(self) -> None:
        async with self.places:
            await asyncio.sleep(self.tokens / self.rate)
            if self.is_stopped:
                await asyncio.Event().wait()

    async def progress(self) -> Progress | None:
        if self.is_stopped:
            await asyncio.Event().wait()
        return Progress(int(now() * self.rate), not self.groups, frozenset(self.groups))

    async def inspect(self) -> str:
        return "seen from outside"

    async def close(self, seconds: float) -> None:
        pass

    def kill(self) -> None:
        self.broken.set()


def now() -> float:
    return asyncio.get_running_loop().time()


class Scene:
    """A pool whose engines are taken from ``make`` in turn; the last one again and again."""

    def __init__(self, *engines: dict[str, object], num_workers: int = 1, slots: int = 128) -> None:
        self._kinds = itertools.chain(engines, itertools.repeat(engines[-1]))
        self.made: list[Engine] = []
        self.told = FakeEvents()
        limits = PoolSettings(SILENCE, START, PLACE, 60.0, slots, RestartRule(3, 3600.0, 1.0))
        self.pool = RolloutPool(self._spawn, num_workers, settings=limits, events=self.told)
        self.pool.admit = self._admit

    def _spawn(self, index: int, name: str) -> Engine:
        self.made.append(Engine(name, **next(self._kinds)))
        return self.made[-1]

    async def _admit(self, member: Member[Engine]) -> None:
        self.pool.serve([member], WeightsVersion(1, "one"))

    async def begin(self) -> None:
        await self.pool.start()
        await self.pool.admit_all()

    async def sampled(self, count: int, attempts: int = 5) -> list[GroupLost]:
        """Sample groups; returns the attempts that were lost on the way."""
        lost: list[GroupLost] = []

        async def one(number: int) -> None:
            for attempt in range(attempts):
                try:
                    await self.pool.sample(Prompt(f"p{number}", np.array([1]), "", "v"), SAMPLING, attempt)
                except GroupLost as error:
                    lost.append(error)
                else:
                    return
            raise AssertionError(f"p{number} was never sampled")

        async with asyncio.TaskGroup() as tasks:
            for number in range(count):
                tasks.create_task(one(number))
        return lost


def test_responses_of_32k_tokens_at_20_tokens_a_second_of_which_half_wait_in_the_engine() -> None:
    async def main() -> None:
        await (scene := Scene({})).begin()
        assert await scene.sampled(64) == []
        assert len(scene.made) == 1
        assert scene.told.notes == []
        assert now() == 8 * 32_000 / 20

    run(main())


def test_an_engine_that_takes_twelve_minutes_to_start_at_first_and_as_a_replacement() -> None:
    async def main() -> None:
        scene = Scene({"start_seconds": 720.0, "stops": 1000.0}, {"start_seconds": 720.0})
        await scene.begin()
        assert now() == 720
        lost = await scene.sampled(16)
        assert len(scene.made) == 2
        assert {str(error.attempt) for error in lost} == {"0"}

    run(main())


def test_an_engine_that_does_not_start_is_given_up_and_groups_do_not_wait_for_ever() -> None:
    async def main() -> None:
        scene = Scene({"stops": 100.0}, {"start_seconds": 1e9})
        await scene.begin()
        with pytest.raises(ExceptionGroup) as raised:
            await scene.sampled(1)
        assert raised.group_contains(ComponentDied, match="did not finish 'start its engine' within 1.8e")
        assert len(scene.made) == 4
        assert now() < 100 + SILENCE + 3 * (START + 10)

    run(main())


@given(
    st.lists(
        st.fixed_dictionaries({"rate": st.floats(0.01, 1000), "tokens": st.integers(1, 32_000)}), min_size=1, max_size=4
    ),
    st.integers(1, 30),
)
@settings(max_examples=40)
def test_an_engine_that_decodes_is_never_taken_out_whatever_its_speed(kinds: list[dict], groups: int) -> None:
    async def main() -> None:
        scene = Scene(*kinds, num_workers=len(kinds), slots=32)
        await scene.begin()
        assert await scene.sampled(groups) == []
        assert len(scene.made) == len(kinds)

    run(main())


@given(st.lists(st.floats(0, 5000), min_size=1, max_size=3), st.integers(1, 20))
@settings(max_examples=40)
def test_an_engine_that_stops_is_found_within_its_silence_and_the_others_keep_their_groups(
    stops: list[float], groups: int
) -> None:
    async def main() -> None:
        kinds = [{}, *({"stops": moment} for moment in stops), {}]
        scene = Scene(*kinds, num_workers=1 + len(stops), slots=64)
        await scene.begin()
        found: dict[str, float] = {}
        take_out = scene.pool.take_out

        def noted(member: Member[Engine], error: Exception) -> None:
            found.setdefault(member.name, now())
            take_out(member, error)

        scene.pool.take_out = noted
        lost = await scene.sampled(groups)
        for engine in scene.made[1 : 1 + len(stops)]:
            if engine.name in found:
                assert engine.stops <= found[engine.name] <= max(engine.stops, engine.busy_since) + SILENCE + 1e-3
        assert scene.made[0].name not in found
        assert all("got on with nothing for 600 s (rollout.silence_seconds)" in error.reason for error in lost)

    run(main())


def test_one_late_group_costs_the_group_and_not_the_engine() -> None:
    """Its answer is lost on the way: the engine works, and does not have it any more."""

    async def main() -> None:
        scene = Scene({"tokens": 1000, "loses": frozenset({"late"})})
        await scene.begin()
        late = asyncio.ensure_future(scene.pool.sample(Prompt("late", np.array([1]), "", "v"), SAMPLING, 0))
        for _ in range(40):
            await scene.sampled(8)
        assert now() > 3 * SILENCE
        assert scene.pool.silence_of(("late", 0)) >= 3 * SILENCE - 60, "the lease of the sample lane ends"
        assert not late.done()
        late.cancel()
        assert len(scene.made) == 1

    run(main())


def test_a_group_that_waits_for_a_worker_is_not_silent() -> None:
    async def main() -> None:
        scene = Scene({}, slots=8)
        await scene.begin()
        tasks = [
            asyncio.ensure_future(scene.pool.sample(Prompt(f"p{n}", np.array([1]), "", "v"), SAMPLING, 0))
            for n in range(3)
        ]
        await asyncio.sleep(1500)
        assert scene.pool.silence_of(("p1", 0)) == scene.pool.silence_of(("p2", 0)) == 0
        assert scene.pool.silence_of(("p0", 0)) <= SILENCE / 2
        assert scene.pool.silence_of(("p9", 0)) == math.inf
        await asyncio.gather(*tasks)

    run(main())


def test_one_that_is_up_and_waits_for_weights_is_waited_for() -> None:
    """Its weights come when the learner is done, however long that takes; the learner has a limit of its own."""

    async def main() -> None:
        scene = Scene({"tokens": 10})
        await scene.pool.start()
        task = asyncio.ensure_future(scene.sampled(1))
        await asyncio.sleep(10 * START)
        assert not task.done()
        await scene.pool.admit_all()
        assert await task == []

    run(main())
