"""How many workers follow from who waits for whom, in a world where sampling goes with their number."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lpo_ray.rollout.autoscale import STEPS, Autoscaler, AutoscaleRule
from lpo_ray.telemetry.stage_clock import Seconds


def step(sampling: float, learning: float) -> Seconds:
    """Of a step whose lanes overlap: ``sampling`` seconds of all workers together, ``learning`` of the learner."""
    length = max(sampling, learning)
    engines = {"sample": sampling, "verify": 0.0, "publish": 0.0, "wait": length - sampling}
    return Seconds({}, engines, {"project": learning, "anchor": 0.0, "wait": length - learning})


def settled(rule: AutoscaleRule, worker_seconds: float, learning: float, workers: int) -> list[int]:
    """Numbers of workers, change by change; ``worker_seconds``: that one worker needs for a step's groups."""
    scaler, seen = Autoscaler(rule), [workers]
    for _ in range(20 * STEPS):
        wanted = scaler.step(step(worker_seconds / seen[-1], learning), seen[-1])
        if wanted is not None:
            seen.append(wanted)
    return seen


@pytest.mark.parametrize(
    ("worker_seconds", "learning", "begin", "seen"),
    [
        (8.0, 2.0, 1, [1, 2, 4]),  # a learner that waits 75 % asks for twice as many, and again
        (8.0, 2.0, 8, [8, 5]),  # half of them have nothing to do
        (2.0, 2.0, 1, [1]),
        (100.0, 1.0, 1, [1, 2, 4, 8, 10]),  # no more than the rule allows
        (0.1, 5.0, 4, [4, 1]),
        (8.0, 2.2, 4, [4]),  # ten in a hundred to spare are no reason
    ],
)
def test_it_settles_where_nobody_waits_for_long(
    worker_seconds: float, learning: float, begin: int, seen: list[int]
) -> None:
    assert settled(AutoscaleRule(1, 10, 0.1), worker_seconds, learning, begin) == seen


@given(st.floats(0.01, 1000), st.floats(0.1, 100), st.integers(1, 64), st.integers(1, 8), st.integers(8, 64))
def test_it_comes_to_rest_within_its_bounds(
    worker_seconds: float, learning: float, begin: int, least: int, most: int
) -> None:
    seen = settled(AutoscaleRule(least, most, 0.1), worker_seconds, learning, begin)
    assert all(least <= workers <= most for workers in seen[1:])
    assert len(seen) <= 12
    waits = 1 - learning / max(worker_seconds / seen[-1], learning)
    assert waits <= 0.1 + 1e-6 or seen[-1] == most


def test_while_workers_come_and_go_nothing_is_decided_and_the_first_steps_after_a_change_do_not_count() -> None:
    scaler = Autoscaler(AutoscaleRule(1, 10, 0.1))
    for _ in range(STEPS + 3):
        assert scaler.step(step(8.0, 2.0), 0) is None
    assert [scaler.step(step(8.0, 2.0), 2) for _ in range(STEPS + 1)] == [None] * STEPS + [4]
    assert [scaler.step(step(4.0, 2.0), 4) for _ in range(STEPS)] == [None] * STEPS


def test_a_user_who_scales_a_live_run_is_not_overruled_by_the_steps_before() -> None:
    scaler = Autoscaler(AutoscaleRule(1, 10, 0.1))
    assert [scaler.step(step(4.0, 2.0), 2) for _ in range(STEPS)] == [None] * STEPS
    assert [scaler.step(step(8.0, 2.0), 1) for _ in range(STEPS + 1)] == [None] * STEPS + [2]
