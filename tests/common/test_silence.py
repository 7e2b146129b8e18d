"""Who is given up, and when: workers that get on at any speed, and stop at any moment, in virtual time."""

from __future__ import annotations

import asyncio
import math
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lpo_ray.common.silence import Progress, Silent, Watch
from lpo_ray.tools.simulate.virtual_time import run

LIMIT = 600.0
MINUTE = 60.0


def now() -> float:
    return asyncio.get_running_loop().time()


@dataclass
class Worker:
    """Gets something done every ``pace`` seconds, from its start until ``stops``."""

    pace: float
    stops: float = math.inf
    answer_seconds: float = 0.0
    """that it takes to say how far it is"""
    mute: bool = False
    """whether it says nothing once it has stopped, as a process does that is stopped"""
    idle: bool = False
    holds: frozenset[str] | None = None
    asked: list[float] = field(default_factory=list)

    async def progress(self) -> Progress | None:
        self.asked.append(now())
        if self.mute and now() >= self.stops:
            await asyncio.Event().wait()
        await asyncio.sleep(self.answer_seconds)
        return Progress(int(min(now(), self.stops) / self.pace), self.idle, self.holds)

    def watch(self) -> Watch:
        return Watch(self.progress, LIMIT, "a setting")


@given(st.floats(0.01, LIMIT / 2), st.floats(0, 40 * LIMIT), st.floats(0, 60))
def test_one_that_gets_on_is_never_given_up_however_long_it_takes(pace: float, length: float, answer: float) -> None:
    async def main() -> str:
        return await Worker(pace, answer_seconds=answer).watch().result(asyncio.sleep(length, "done"))

    assert run(main()) == "done"


@given(st.floats(0.01, LIMIT / 2), st.floats(0, 40 * LIMIT), st.booleans())
def test_one_that_stops_is_given_up_within_the_limit(pace: float, stops: float, mute: bool) -> None:
    async def main() -> float:
        with pytest.raises(Silent):
            await Worker(pace, stops, mute=mute).watch().result(asyncio.sleep(stops + 10 * LIMIT))
        return now()

    assert run(main()) <= stops + LIMIT + 1e-3


def test_an_answer_is_a_sign_of_life_for_the_other_calls() -> None:
    async def main() -> None:
        watch = Worker(1.0, stops=0.0).watch()
        short = [asyncio.ensure_future(_after(watch, 400.0 * n)) for n in range(1, 6)]
        with pytest.raises(Silent):
            await watch.result(asyncio.sleep(1e9))
        assert all(task.done() for task in short)
        assert now() == pytest.approx(2000 + LIMIT)

    async def _after(watch: Watch, seconds: float) -> None:
        await watch.result(asyncio.sleep(seconds))

    run(main())


def test_one_to_whom_nothing_is_up_is_not_silent() -> None:
    async def main() -> None:
        watch = Worker(1.0, stops=0.0, idle=True).watch()
        assert await watch.result(asyncio.sleep(100 * LIMIT, "done")) == "done"

    run(main())


def test_a_call_that_the_worker_does_not_hold_is_not_renewed_by_what_it_gets_done() -> None:
    async def main() -> None:
        watch = Worker(1.0, holds=frozenset({"held"})).watch()
        calls = [asyncio.ensure_future(watch.result(asyncio.Event().wait(), name)) for name in ("held", "gone")]
        await asyncio.sleep(10 * LIMIT)
        assert watch.silence_of("held") <= LIMIT / 2
        assert watch.silence_of("gone") == pytest.approx(10 * LIMIT)
        assert watch.silence_of("nobody's") == math.inf
        for call in calls:
            call.cancel()

    run(main())


def test_a_quick_call_is_never_asked_about_and_a_failed_one_raises_what_it_raised() -> None:
    async def main() -> None:
        worker = Worker(1.0)
        watch = worker.watch()
        for _ in range(100):
            await watch.result(asyncio.sleep(LIMIT / 10))
        assert not worker.asked
        with pytest.raises(ValueError, match="its own"):
            await watch.result(_fails())
        await asyncio.sleep(LIMIT)
        assert not worker.asked, "nobody listens once the last call has ended"

    async def _fails() -> None:
        raise ValueError("its own")

    run(main())


def test_what_is_given_up_is_cancelled() -> None:
    ended: list[str] = []

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("cancelled")

    async def main() -> None:
        with pytest.raises(Silent):
            await Worker(1.0, stops=0.0).watch().result(work())
        await asyncio.sleep(0)

    run(main())
    assert ended == ["cancelled"]


def test_a_checkpoint_that_takes_twenty_minutes_and_more() -> None:
    """Its files grow; the ranks that have written theirs wait for the others."""

    async def main() -> None:
        for seconds in (20 * MINUTE, 20 * 60 * MINUTE):
            watch = Worker(pace=2 * MINUTE).watch()
            assert await watch.result(asyncio.sleep(seconds, "written")) == "written"

    run(main())
