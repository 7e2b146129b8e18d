"""Ranks that take long and ranks that hang: the learner in virtual time, with ranks made by hand."""

from __future__ import annotations

import asyncio
import math
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.learner import group as learner_group
from actors.learner.group import Formation, LearnerGroup, LearnerRules
from actors.learner.worker import bytes_under
from lpo_ray.common.restart_budget import RestartRule
from lpo_ray.errors import DeadlineExceeded, LearnerLost
from lpo_ray.learner.packing import Packing
from lpo_ray.records import Process
from lpo_ray.tools.simulate.virtual_time import run
from tests.support.fakes import FakeEvents
from tests.support.ray_fakes import NEVER, Reference

SILENCE, START, START_SILENCE, MINUTE = 1800.0, 3600.0, 600.0, 60.0


def now() -> float:
    return asyncio.get_running_loop().time()


@dataclass
class Rank:
    """Does a micro-batch every ``pace`` seconds, and answers a call after ``seconds``; is stopped from ``stops`` on."""

    seconds: float = 0.0
    pace: float = 60.0
    stops: float = math.inf
    """its process is stopped"""
    waits: bool = False
    """in a collective, for others: it gets nothing done itself"""
    start_seconds: float = 0.0

    def __getattr__(self, name: str) -> SimpleNamespace:
        def remote(*_: object) -> Reference:
            if name == "effort":
                return Reference(NEVER if now() >= self.stops else int(now() / self.pace))
            if name == "progress":
                done = 0 if self.waits else int(now() / self.pace)
                return Reference(NEVER if now() >= self.stops else (done, 0))
            if name == "address":
                return Reference(("host", 1))
            answer = Reference()
            seconds = self.start_seconds if name == "start" else self.seconds
            result = Process(7, "node", "host", ()) if name == "start" else {"a": "digest"}
            if now() + seconds < self.stops:
                asyncio.get_running_loop().call_later(seconds, answer.answer, result)
            return answer

        return SimpleNamespace(remote=remote, options=lambda **_: SimpleNamespace(remote=remote))


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    async def inspect(process: Process) -> str:
        return "its stack"

    monkeypatch.setattr(learner_group, "inspect", inspect)


async def started(*ranks: Rank) -> LearnerGroup:
    async def form(size: int) -> Formation:
        return Formation(list(ranks), lambda: None)

    rules = LearnerRules(
        len(ranks), 1, Packing(1, 100, False), SILENCE, START, START_SILENCE, RestartRule(1, 100.0, 0.0)
    )
    learner = LearnerGroup(form, rules, FakeEvents())
    learner._manifest = SimpleNamespace(digest=lambda digests: "whole")
    await learner.start()
    return learner


@given(st.floats(1, 50 * SILENCE), st.floats(1, SILENCE / 2))
@settings(max_examples=50)
def test_a_step_may_take_any_time_while_one_rank_gets_on(seconds: float, pace: float) -> None:
    """The others wait for it in a collective."""

    async def main() -> None:
        learner = await started(Rank(seconds, pace), Rank(seconds, waits=True))
        assert await learner.digest() == "whole"

    run(main())


@given(st.floats(1, 5 * SILENCE))
@settings(max_examples=50)
def test_a_rank_that_is_stopped_is_found_within_the_silence_and_shown(stops: float) -> None:
    """The other stops with it, at the next collective."""

    async def main() -> None:
        learner = await started(Rank(1e9, stops=stops), Rank(1e9, waits=True))
        with pytest.raises(LearnerLost, match=r"got on with nothing for .* \(learner.silence_seconds\)") as caught:
            await learner.digest()
        assert "its stack" in str(caught.value)
        assert now() <= max(stops, 0.0) + SILENCE + 1e-3

    run(main())


def test_a_checkpoint_that_takes_twenty_minutes_or_twenty_hours(tmp_path: Path) -> None:
    async def main() -> None:
        for seconds in (20 * MINUTE, 20 * 60 * MINUTE):
            learner = await started(Rank(seconds, pace=5 * MINUTE), Rank(seconds, waits=True))
            await learner.save(tmp_path)

    run(main())


def test_a_start_has_a_limit_of_its_own() -> None:
    async def main() -> None:
        await started(Rank(start_seconds=45 * MINUTE), Rank(start_seconds=MINUTE))
        with pytest.raises((DeadlineExceeded, LearnerLost), match=r"learner rank 1 did not finish 'start' within 3.6e"):
            await started(Rank(start_seconds=MINUTE), Rank(start_seconds=61 * MINUTE))
        begun = now()
        with pytest.raises(LearnerLost, match=r"nothing for 600 s \(supervision.start_silence_seconds\)"):
            await started(Rank(start_seconds=9 * MINUTE), Rank(start_seconds=9 * MINUTE, stops=begun + 300))
        assert now() <= begun + 300 + START_SILENCE + 1

    run(main())


def test_a_file_that_grows_is_progress(tmp_path: Path) -> None:
    assert bytes_under(tmp_path / "nothing") == 0
    (tmp_path / "shards").mkdir()
    for size in (10, 1000):
        (tmp_path / "shards" / "rank_0.pt").write_bytes(b"x" * size)
        assert bytes_under(tmp_path) == size
