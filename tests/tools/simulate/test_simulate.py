from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from lpo_ray.config import load_config
from lpo_ray.errors import ConfigError
from lpo_ray.tools.simulate.run import render, simulate
from lpo_ray.tools.simulate.virtual_time import Deadlock, run

RECIPE = Path(__file__).parents[3] / "configs" / "simulate.yaml"
SMALL = [
    "rollout.num_workers=4", "pipeline.groups_per_step=32", "learner.world_size=1", "simulation.train_rate=100",
    "simulation.hours_between_failures=0",
]  # fmt: skip


def test_virtual_time_passes_without_waiting_and_timers_keep_their_order() -> None:
    order: list[float] = []

    async def sleeper(seconds: float) -> None:
        await asyncio.sleep(seconds)
        order.append(seconds)

    async def main() -> float:
        await asyncio.gather(*(sleeper(seconds) for seconds in (3600.0, 1.0, 60.0)))
        assert await asyncio.to_thread(lambda: 7) == 7
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(100):
                await asyncio.Event().wait()
        return asyncio.get_running_loop().time()

    started = time.monotonic()
    assert run(main()) == pytest.approx(3700)
    assert order == [1.0, 60.0, 3600.0]
    assert time.monotonic() - started < 5


def test_a_deadlock_is_an_error_not_a_hang() -> None:
    async def main() -> None:
        await asyncio.Event().wait()

    with pytest.raises(Deadlock, match="every task waits for another"):
        run(main())


def test_a_learner_that_is_the_slower_lane_is_never_idle_and_its_rate_is_the_simulated_one() -> None:
    outcome = simulate(load_config(RECIPE, SMALL), engines=4)
    assert outcome.balances
    assert outcome.learner_idle < 0.01
    seconds_a_step = 32 * 8 * 32 / 100 * 1.3 + 2
    assert outcome.groups_per_second == pytest.approx(32 / seconds_a_step, rel=0.1)
    assert sum(outcome.staleness) == pytest.approx(1)
    assert outcome.lost == outcome.restarts == 0


def test_without_staleness_the_lanes_take_turns() -> None:
    outcome = simulate(load_config(RECIPE, [*SMALL, "pipeline.max_staleness=0"]), engines=4)
    assert outcome.staleness == (1.0,)
    assert outcome.learner_idle > 0.2
    assert outcome.engines_idle > 0.3


def test_engines_that_fail_lose_groups_and_come_back() -> None:
    outcome = simulate(load_config(RECIPE, [*SMALL, "simulation.hours_between_failures=0.3"]), engines=4)
    assert outcome.lost > 0
    assert outcome.restarts > 0
    assert outcome.balances


def test_groups_and_ranks_go_along_with_the_engines() -> None:
    config = load_config(RECIPE, [*SMALL, "run.steps=6"])
    one, two = simulate(config, engines=4), simulate(config, engines=8)
    assert two.groups_per_second == pytest.approx(2 * one.groups_per_second, rel=0.15)
    assert render([one, two]).row_count == 2


def test_too_few_steps_are_refused() -> None:
    with pytest.raises(ConfigError, match="a simulation needs 6 or more"):
        simulate(load_config(RECIPE, [*SMALL, "run.steps=5"]), engines=4)


def test_turns_take_the_environments_time_and_engines_do_not_wait_for_it() -> None:
    turns = [*SMALL, "simulation.mean_turns=3", "sampling.max_turns=5", "simulation.train_rate=10000"]
    quick = simulate(load_config(RECIPE, [*turns, "simulation.environment_seconds=0"]), engines=4)
    slow = simulate(load_config(RECIPE, [*turns, "simulation.environment_seconds=20"]), engines=4)
    assert quick.balances
    assert slow.balances
    assert slow.groups_per_second < quick.groups_per_second
    assert slow.engines_idle > quick.engines_idle
    single = simulate(load_config(RECIPE, [*SMALL, "simulation.train_rate=10000"]), engines=4)
    assert quick.groups_per_second < single.groups_per_second, "there is more to decode"


def test_engines_that_fail_in_a_turn_hand_it_on() -> None:
    fails = [*SMALL, "simulation.hours_between_failures=0.3"]
    single = simulate(load_config(RECIPE, fails), engines=4)
    outcome = simulate(load_config(RECIPE, [*fails, "simulation.mean_turns=3", "sampling.max_turns=5"]), engines=4)
    assert outcome.restarts > 0
    assert outcome.balances
    assert outcome.lost / outcome.restarts < single.lost / single.restarts / 2, "only what was hit twice is lost"
