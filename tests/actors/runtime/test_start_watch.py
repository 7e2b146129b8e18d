"""Starts that take long and starts that hang, in virtual time; and what a real process is seen to do."""

from __future__ import annotations

import asyncio
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.runtime.start_watch import EffortCounter, StartWatch
from lpo_ray.errors import DeadlineExceeded, NoProgress
from lpo_ray.tools.simulate.virtual_time import run
from tests.support.ray_fakes import NEVER, Reference

SILENCE, LIMIT, MINUTE = 600.0, 1800.0, 60.0


def now() -> float:
    return asyncio.get_running_loop().time()


@dataclass
class Actor:
    """Takes ``seconds`` to start, and does something every ``pace`` seconds of them until ``stops``."""

    seconds: float = 0.0
    pace: float = 1.0
    stops: float = math.inf
    """moment at which its process is stopped: it says nothing from then on"""
    waits: float = math.inf
    """moment from which it waits for a lock: it answers, and does nothing"""

    @property
    def effort(self) -> SimpleNamespace:
        def remote() -> Reference:
            return Reference(NEVER if now() >= self.stops else int(min(now(), self.waits) / self.pace))

        return SimpleNamespace(options=lambda concurrency_group: SimpleNamespace(remote=remote))

    def start(self) -> Reference:
        reference = Reference()
        if self.seconds < min(self.stops, self.waits):
            asyncio.get_running_loop().call_later(self.seconds, reference.answer, "up")
        return reference


async def started(watch: StartWatch, *actors: Actor, name: str = "rank") -> list[str]:
    names = [f"{name} {number}" for number in range(len(actors))]
    return await watch.start([actor.start() for actor in actors], actors, who=names, what="start", seconds=LIMIT)


@given(st.floats(1, LIMIT - 1), st.floats(1, SILENCE / 2))
@settings(max_examples=50)
def test_a_start_that_does_something_has_the_whole_limit(seconds: float, pace: float) -> None:
    async def main() -> None:
        assert await started(StartWatch(SILENCE), Actor(seconds, pace)) == ["up"]

    run(main())


@given(st.floats(0, 1000), st.booleans())
@settings(max_examples=50)
def test_one_that_is_stopped_or_waits_for_ever_is_found_within_the_silence(moment: float, is_stopped: bool) -> None:
    async def main() -> None:
        actor = Actor(1200.0, **{"stops" if is_stopped else "waits": moment})
        with pytest.raises(NoProgress, match=r"nothing for 600 s \(supervision.start_silence_seconds\)"):
            await started(StartWatch(SILENCE), actor)
        assert now() <= moment + SILENCE + 1

    run(main())


def test_what_spins_is_found_by_the_limit() -> None:
    async def main() -> None:
        with pytest.raises(DeadlineExceeded, match=r"within 1.8e\+03 s") as caught:
            await started(StartWatch(SILENCE), Actor(1e9))
        assert not isinstance(caught.value, NoProgress)
        assert now() == pytest.approx(LIMIT)

    run(main())


def test_one_that_waits_for_the_download_of_another_is_waited_for() -> None:
    async def main() -> None:
        watch = StartWatch(SILENCE)
        loads, waits = Actor(20 * MINUTE), Actor(21 * MINUTE, pace=1e9)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(started(watch, loads, name="engine"))
            tasks.create_task(started(watch, waits, name="other"))
        assert now() == 21 * MINUTE

    run(main())


def test_a_stopped_rank_is_found_though_the_others_spin_in_a_collective() -> None:
    async def main() -> None:
        with pytest.raises(NoProgress, match="rank 0, rank 1"):
            await started(StartWatch(SILENCE), Actor(1e9), Actor(1e9, stops=100.0))
        assert now() <= 100 + SILENCE + 1

    run(main())


def test_work_and_waiting_of_a_process_and_its_children_are_told_apart() -> None:
    counter = EffortCounter()
    time.sleep(0.3)
    assert counter.count() == 0, "it slept"
    end = time.process_time() + 0.1
    while time.process_time() < end:
        pass
    assert counter.count() == 1, "it worked"
    time.sleep(0.3)
    assert counter.count() == 1, "looking is no work"
    spins = "end = __import__('time').monotonic() + 60\nwhile __import__('time').monotonic() < end: pass"
    child = subprocess.Popen([sys.executable, "-c", spins])
    try:
        time.sleep(0.5)
        assert counter.count() == 2, "its child worked"
        os.kill(child.pid, signal.SIGSTOP)
        time.sleep(0.1)
        counter.count()
        before = counter.count()
        time.sleep(0.5)
        assert counter.count() == before, "its child is stopped"
    finally:
        child.kill()
        child.wait()


def test_bytes_are_work_where_they_cost_no_time(tmp_path) -> None:
    counter = EffortCounter()
    (tmp_path / "weights").write_bytes(bytes(2_000_000))
    time.sleep(1.0)
    assert counter.count() == 1
