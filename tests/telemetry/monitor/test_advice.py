"""Who waits for whom, and the numbers proposed against it, by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from lpo_ray.telemetry.monitor.advice import EVERY_STEPS, FIRST_STEPS, Adviser, Setup, advise
from lpo_ray.telemetry.stage_clock import ENGINES, LEARNER, PRIORITY, Seconds

OVERLAPPING = Setup(max_staleness=1, num_workers=1, world_size=2, num_processes=2)
IN_TURN = replace(OVERLAPPING, max_staleness=0)


def engines(**shares: float) -> dict[str, float]:
    return {**dict.fromkeys((*ENGINES, "wait"), 0.0), **shares}


def learner(**shares: float) -> dict[str, float]:
    return {**dict.fromkeys((*LEARNER, "wait"), 0.0), **shares}


TURNS = (engines(sample=0.5, verify=0.03, publish=0.02, wait=0.45), learner(project=0.45, publish=0.02, wait=0.53))
HUNGRY = (engines(sample=0.95, publish=0.05), learner(project=0.3, anchor=0.04, publish=0.05, wait=0.61))
SLOW = (engines(sample=0.5, verify=0.05, publish=0.05, wait=0.4), learner(project=0.8, anchor=0.1, publish=0.1))


def test_lanes_that_take_turns_can_overlap() -> None:
    assert advise(*TURNS, IN_TURN) == (
        "learner waits 53 %, engines wait 45 %: they take turns; pipeline.max_staleness=1 with "
        "objective.behaviour=engine lets them overlap"
    )
    found = advise(*TURNS, OVERLAPPING)
    assert found is not None
    assert found.endswith("they take turns; pipeline.max_staleness=2 lets them overlap")


@pytest.mark.parametrize(
    ("workers", "sampling", "wanted"),
    [(1, 0.95, 3), (2, 0.95, 6), (1, 0.67, 2), (3, 0.35, 4)],  # ceil(workers * sampling / 0.34)
)
def test_a_hungry_learner_needs_workers_by_the_ratio_of_busy_times(workers: int, sampling: float, wanted: int) -> None:
    found = advise({**HUNGRY[0], "sample": sampling}, HUNGRY[1], replace(OVERLAPPING, num_workers=workers))
    assert found is not None
    how = f"lpo-ray scale RUN rollout={wanted}, or rollout.num_workers={wanted}"
    assert found == f"learner waits 61 % for groups: add rollout workers ({how})"


def test_no_more_than_four_times_as_many_are_proposed_at_once() -> None:
    found = advise(engines(sample=1.0), learner(project=0.01, wait=0.99), OVERLAPPING)
    assert found is not None
    assert "rollout.num_workers=4)" in found


def test_hungry_engines_need_ranks_or_are_too_many() -> None:
    assert advise(*SLOW, replace(OVERLAPPING, num_workers=4)) == (  # ceil(2 * 0.9 / 0.5), ceil(4 * 0.5 / 0.9)
        "engines wait 40 % for the learner: more learner ranks (learner.world_size=4) or fewer rollout workers "
        "(lpo-ray scale RUN rollout=3)"
    )
    alone = advise(*SLOW, OVERLAPPING)
    assert alone == "engines wait 40 % for the learner: more learner ranks (learner.world_size=4)"


def test_a_slow_verifier_is_named_before_the_learner_that_waits_for_it() -> None:
    found = advise(engines(sample=0.3, verify=0.4, wait=0.3), learner(project=0.3, wait=0.7), IN_TURN)
    assert found == (  # ceil(2 * 0.7 / 0.3)
        "engines have nothing to sample for 40 % of the time, while groups are verified: add verifier processes "
        "(verifier.num_processes=5)"
    )


@pytest.mark.parametrize(
    ("of_engines", "of_learner"),
    [
        (engines(sample=0.8, wait=0.2), learner(project=0.8, wait=0.2)),
        (engines(), learner()),
        (engines(evaluate=1.0), learner(evaluate=1.0)),
        (engines(sample=1.0), learner(wait=1.0)),  # nothing was learnt, so nothing can be said of a ratio
        (engines(publish=1.0), learner(publish=1.0)),
    ],
)
def test_silence(of_engines: dict[str, float], of_learner: dict[str, float]) -> None:
    assert advise(of_engines, of_learner, OVERLAPPING) is None
    assert advise(of_engines, of_learner, IN_TURN) is None


def test_advice_comes_after_ten_steps_then_every_fifty_on_the_steps_since() -> None:
    run = dict.fromkeys((*PRIORITY, "wait"), 0.0)
    hungry, well = Seconds(run, *HUNGRY), Seconds(run, engines(sample=1.0), learner(project=1.0))
    adviser = Adviser(OVERLAPPING)
    given = [adviser.step(hungry) for _ in range(FIRST_STEPS + EVERY_STEPS)]
    assert [number for number, advice in enumerate(given, start=1) if advice] == [10, 60]
    assert adviser.latest == given[-1]
    assert [adviser.step(well) for _ in range(EVERY_STEPS)] == [None] * EVERY_STEPS
    assert adviser.latest is None
