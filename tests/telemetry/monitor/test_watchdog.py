"""A stall is noticed, named, told once for each doubling, and its end too: on a clock that the test moves."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass, field

import pytest

from lpo_ray.records import BusyWorker, Process
from lpo_ray.telemetry.monitor.watchdog import INSPECTED, Watchdog
from lpo_ray.telemetry.stage_clock import StageClock
from tests.support.fakes import FakeComponents

START = 1_000_000.0
"""unix seconds when the monotonic clock shows 0"""


def rank(number: int, since: float | None = None) -> BusyWorker:
    return BusyWorker(f"learner rank {number}", "project", since, Process(100 + number, "node", "10.0.0.1", ()))


@dataclass
class Scene:
    """A watchdog that looks every second of the test's clock."""

    stall_seconds: float = 30.0
    now: float = 0.0
    notes: list[str] = field(default_factory=list)
    shown: list[dict] = field(default_factory=list)
    parts: FakeComponents = field(default_factory=FakeComponents)

    def __post_init__(self) -> None:
        self.clock = StageClock(lambda: self.now)
        self.dog = Watchdog(
            self.clock, self.stall_seconds, self.notes.append, self.shown.append, lambda: START + self.now
        )

    async def passes(self, seconds: int, *, starting: bool = False) -> None:
        for _ in range(seconds):
            self.now += 1.0
            await self.dog.look(None if starting else self.parts)


async def test_a_stall_is_noted_with_stage_holders_and_what_they_do() -> None:
    at = Scene()
    at.parts.holding["project"] = [rank(0, START + 5.0), rank(1, START + 5.0)]
    await at.passes(5)
    with at.clock.stage("project"):
        await at.passes(29)
        assert at.notes == []
        assert at.parts.inspected == []
        await at.passes(1)
    assert at.notes == [
        "nothing has moved for 30 s. The run waits for\n"
        "project: 30 s, learner rank 0, learner rank 1\n"
        "learner rank 0, project since 30 s: on 10.0.0.1, process 100 is stopped, 1 MiB resident\n  a frame\n"
        "  log: a line\n"
        "learner rank 1, project since 30 s: on 10.0.0.1, process 101 is stopped, 1 MiB resident\n  a frame\n"
        "  log: a line"
    ]


async def test_the_same_stall_is_told_again_when_it_has_doubled_and_its_end_once() -> None:
    at = Scene()
    with at.clock.stage("project"):
        await at.passes(125)
        assert [note.partition(".")[0] for note in at.notes] == [
            "nothing has moved for 30 s", "nothing has moved for 60 s", "nothing has moved for 120 s",
        ]  # fmt: skip
        at.notes.clear()
    with at.clock.stage("publish"):
        await at.passes(3)
        assert at.notes == ["continued after 125 s"]
        await at.passes(27)
    assert at.notes[1:] == ["nothing has moved for 30 s. The run waits for\npublish: 30 s, nobody who is known here"]


async def test_what_goes_on_is_no_stall() -> None:
    at = Scene()
    with at.clock.stage("evaluate"):
        for _ in range(10):
            await at.passes(20)
            at.clock.moved()
    with at.clock.stage("sample"):
        for _ in range(10):
            with at.clock.stage("sample"):
                await at.passes(20)
    await at.passes(100)  # no stage is at work: the driver itself is
    assert at.notes == []


async def test_zero_means_never_but_the_snapshot_is_kept() -> None:
    at = Scene(stall_seconds=0.0)
    with at.clock.stage("sample"):
        await at.passes(500)
    assert at.notes == []
    assert at.shown[-1]["stages"][0]["stage"] == "sample"


async def test_the_snapshot_is_shown_when_it_changed_and_only_then() -> None:
    at = Scene()
    at.parts.holding["project"] = [rank(0)]
    await at.passes(3)
    assert at.shown == [{"stages": [], "progress_at": START, "evidence": ""}]
    with at.clock.stage("sample"), at.clock.stage("project"):
        await at.passes(20)
        assert len(at.shown) == 2
        assert at.shown[1] == {
            "stages": [
                {"stage": "sample", "since": START + 3.0, "busy": []},
                {
                    "stage": "project",
                    "since": START + 3.0,
                    "busy": [
                        {
                            "name": "learner rank 0", "doing": "project", "since": None,
                            "process": {
                                    "pid": 100, "node_id": "node", "host": "10.0.0.1", "logs": (), "oom_kills": 0,
                                    "started": 0,
                                },
                        }
                    ],
                },
            ],
            "progress_at": START + 3.0,
            "evidence": "",
        }  # fmt: skip
        await at.passes(20)
        assert at.shown[-1]["evidence"].startswith("learner rank 0, project: on 10.0.0.1, process 100 is stopped")
        assert len(at.shown) == 3
    await at.passes(1)
    assert at.shown[-1] == {"stages": [], "progress_at": START + 43.0, "evidence": ""}


async def test_a_stage_is_as_old_as_the_first_that_is_still_at_work() -> None:
    at = Scene()
    with contextlib.ExitStack() as first:
        first.enter_context(at.clock.stage("sample"))
        at.now = 5.0
        with at.clock.stage("sample"):
            assert at.clock.active_since == {"sample": 0.0}
        assert at.clock.moved_at == 5.0
    assert at.clock.active_since == {}


async def test_few_of_many_are_looked_at() -> None:
    at = Scene()
    at.parts.holding["project"] = [rank(number) for number in range(64)]
    at.parts.holding["checkpoint"] = [rank(0)]
    with at.clock.stage("project"), at.clock.stage("checkpoint"):
        await at.passes(30)
    assert at.parts.inspected == [100 + number for number in range(INSPECTED)]
    assert "learner rank 63" in at.notes[0]


async def test_a_normal_start_is_no_stall_and_shows_who_is_starting() -> None:
    at = Scene()
    with contextlib.ExitStack() as start:
        start.enter_context(at.clock.stage("start"))
        start.enter_context(at.clock.starting("learner", 1800.0))
        start.enter_context(at.clock.starting("rollout worker 0", 600.0))
        await at.passes(29, starting=True)
        assert at.notes == []
        (shown,) = at.shown[-1]["stages"]
        assert (shown["stage"], shown["since"]) == ("start", START)
        assert shown["busy"] == [
            {"name": "learner", "doing": "starting (limit 1800 s)", "since": START, "process": None},
            {"name": "rollout worker 0", "doing": "starting (limit 600 s)", "since": START, "process": None},
        ]
    with at.clock.stage("sample"):
        await at.passes(29)
    assert at.notes == []


async def test_a_long_start_is_told_for_each_doubling_and_a_component_is_named_at_its_limit_once() -> None:
    at = Scene()
    with at.clock.stage("start"), at.clock.starting("rollout worker 0", 100.0):
        await at.passes(10, starting=True)
        with at.clock.starting("learner", 1800.0):
            await at.passes(115, starting=True)
    assert at.notes == [
        "still starting: rollout worker 0 30 s (limit 100 s), learner 20 s (limit 1800 s)",
        "still starting: rollout worker 0 60 s (limit 100 s), learner 50 s (limit 1800 s)",
        "rollout worker 0 has not started after 100 s; expected it within 100 s",
        "still starting: rollout worker 0 120 s (limit 100 s), learner 110 s (limit 1800 s)",
    ]


@pytest.mark.parametrize("started_for", [1, 31, 500])
async def test_after_a_start_of_any_length_a_stall_is_noted_within_the_usual_time(started_for: int) -> None:
    at = Scene()
    with at.clock.stage("start"), at.clock.starting("learner", 1800.0):
        await at.passes(started_for, starting=True)
    at.notes.clear()
    with at.clock.stage("publish"):
        await at.passes(29)
        assert at.notes == []
        await at.passes(1)
    assert at.notes == ["nothing has moved for 30 s. The run waits for\npublish: 30 s, nobody who is known here"]


async def test_a_start_in_which_no_component_is_starting_can_stall() -> None:
    at = Scene()
    with at.clock.stage("start"):
        with at.clock.starting("learner", 1800.0):
            await at.passes(100, starting=True)
        at.notes.clear()
        await at.passes(30, starting=True)
    assert at.notes == [
        "nothing has moved for 30 s. The run waits for\nstart: 130 s, the components, which are starting"
    ]


async def test_a_component_whose_start_failed_is_not_starting_any_more() -> None:
    at = Scene()
    with pytest.raises(KeyError), at.clock.starting("learner", 10.0):
        raise KeyError
    assert at.clock.starts == {}


async def test_progress_during_the_look_is_no_stall() -> None:
    at = Scene()
    at.parts.holding["project"] = [rank(0)]
    stack = contextlib.ExitStack()
    stack.enter_context(at.clock.stage("project"))

    async def look_while_it_goes_on(process: Process) -> str:
        stack.close()
        return "it runs again"

    at.parts.inspect = look_while_it_goes_on
    await at.passes(30)
    assert at.notes == []
    assert at.shown[-1]["evidence"] == ""


async def test_it_ends_with_its_context_and_says_when_it_ends_before() -> None:
    at = Scene(stall_seconds=0.02)

    def broken(stage: str) -> list[BusyWorker]:
        raise RuntimeError("no such stage")

    before = asyncio.all_tasks()
    async with at.dog.running(at.parts):
        await asyncio.sleep(0)
        assert len(asyncio.all_tasks()) == len(before) + 1
    assert asyncio.all_tasks() == before
    assert at.notes == []
    at.parts.busy = broken
    with pytest.raises(KeyError), at.clock.stage("project"):
        async with at.dog.running(at.parts):
            await asyncio.sleep(0.01)
            raise KeyError
    assert at.notes == ["the watchdog ended, stalls are not reported any more: RuntimeError: no such stage"]
