"""Every instant belongs to one stage, in the run and in each lane."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lpo_ray.telemetry.stage_clock import ENGINES, LEARNER, PRIORITY, StageClock, shares
from tests.support.telemetry import Ticking, by_stage


def test_an_instant_belongs_to_the_first_stage_in_priority() -> None:
    clock_time = Ticking()
    clock = StageClock(clock_time)
    clock_time.now = 1.0
    with clock.stage("sample"):
        clock_time.now = 3.0
        with clock.stage("project"), clock.stage("sample"):
            assert clock.active() == {"project": 1, "sample": 2}
            clock_time.now = 7.0
        clock_time.now = 8.0
    clock_time.now = 10.0
    totals = clock.totals().run
    assert (totals["wait"], totals["sample"], totals["project"]) == (3.0, 3.0, 4.0)
    assert clock.lap() == clock.totals()
    assert sum(clock.lap().run.values()) == 0.0
    with pytest.raises(ValueError, match="expected one of"), clock.stage("lunch"):
        pass


@given(st.lists(st.tuples(st.sampled_from(PRIORITY), st.floats(0, 10), st.floats(0, 10)), max_size=8))
def test_stage_seconds_always_add_up_to_the_time_that_passed(work: list[tuple[str, float, float]]) -> None:
    clock_time = Ticking()
    clock = StageClock(clock_time)
    for name, inside, outside in work:
        with clock.stage(name):
            clock_time.now += inside
        clock_time.now += outside
    totals = clock.totals()
    for lane in (totals.run, totals.engines, totals.learner):
        assert sum(lane.values()) == pytest.approx(clock_time.now)


def test_each_lane_has_its_own_account_of_the_same_time() -> None:
    """One step with sampling ahead: sample 4 s, of which 3 beside a projection; then a checkpoint beside sampling."""
    clock_time = Ticking()
    clock = StageClock(clock_time)

    def passes(seconds: float, *stages: str) -> None:
        with contextlib.ExitStack() as inside:
            for name in stages:
                inside.enter_context(clock.stage(name))
            clock_time.now += seconds

    passes(5.0, "start")
    passes(1.0, "sample", "verify")  # the learner waits for groups
    passes(3.0, "sample", "project")
    passes(2.0, "verify", "project")  # the engines have nothing to sample
    passes(0.5, "project")  # the gate is closed
    passes(1.5, "publish", "sample")  # groups in flight are paused
    passes(1.0, "sample", "anchor")
    passes(2.0, "sample", "checkpoint")
    passes(1.0, "evaluate")
    found = clock.totals()
    assert found.engines == by_stage(ENGINES, start=5.0, sample=7.0, verify=2.0, publish=1.5, evaluate=1.0, wait=0.5)
    assert found.learner == by_stage(
        LEARNER, start=5.0, wait=1.0, project=5.5, publish=1.5, anchor=1.0, checkpoint=2.0, evaluate=1.0
    )
    assert shares(found.engines)["sample"] == pytest.approx(7 / 12)
    assert sum(shares(found.learner).values()) == pytest.approx(1.0)
    assert "start" not in shares(found.learner)
    assert set(shares(clock.lap().run).values()) != {0.0}
    assert set(shares(clock.lap().run).values()) == {0.0}
