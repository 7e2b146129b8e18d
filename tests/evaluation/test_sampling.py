from __future__ import annotations

import asyncio
import io
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from lpo_ray.errors import TooManyLost
from lpo_ray.evaluation import bootstrap_interval, evaluate, pass_at_k
from lpo_ray.records import Prompt, PromptGroup, Sampling, ScoredGroup
from lpo_ray.telemetry.monitor.progress import render_evaluation
from tests.support.fakes import FakeComponents, FakeSource
from tests.support.segments import make_conversation

SAMPLING = Sampling(4, 1.0, 8, seed=0)


@given(st.integers(1, 8).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(1, n))))
def test_pass_at_k_is_the_mean_over_all_draws(case: tuple[int, int, int]) -> None:
    samples, correct, k = case
    outcomes = [1] * correct + [0] * (samples - correct)
    expected = np.mean([max(draw) for draw in combinations(outcomes, k)])
    assert pass_at_k(np.array([correct]), samples, k)[0] == pytest.approx(expected)


def test_pass_at_k_refuses_more_draws_than_samples() -> None:
    with pytest.raises(ValueError, match=r"k is 5; expected 1\.\.4"):
        pass_at_k(np.array([1]), 4, 5)


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    hits = 0
    for trial in range(200):
        values = rng.beta(1, 3, size=100)
        low, high = bootstrap_interval(values, resamples=400, seed=trial)
        hits += low <= 0.25 <= high
    assert 0.90 <= hits / 200 <= 0.99


def test_intervals_of_degenerate_values() -> None:
    assert bootstrap_interval(np.ones(5)) == (1.0, 1.0)
    assert bootstrap_interval(np.array([0.3])) == pytest.approx((0.3, 0.3))


class Rewarding(FakeComponents):
    """Two of four responses pass; counts how many prompts are on their way at once."""

    running = 0
    most = 0

    async def sample(self, prompt: Prompt, sampling: Sampling, attempt: int) -> PromptGroup:
        self.running += 1
        self.most = max(self.most, self.running)
        await asyncio.sleep(0.001)
        try:
            return await super().sample(prompt, sampling, attempt)
        finally:
            self.running -= 1

    async def score(self, group: PromptGroup) -> ScoredGroup:
        return ScoredGroup(group, np.array([1.0, 0.1, 0.0, 1.0], dtype=np.float32))


async def run(parts: Rewarding, prompts: int = 6) -> object:
    return await evaluate(
        parts, parts, FakeSource().heldout(prompts), SAMPLING, ks=[1, 4], pass_reward=1.0, max_in_flight=3
    )


async def test_estimates_and_bounded_concurrency() -> None:
    parts = Rewarding()
    result = await run(parts)
    assert result.pass_at == {1: 0.5, 4: 1.0}
    assert result.mean_reward == pytest.approx(0.525)
    assert parts.most == 3
    assert set(result.to_json()) >= {"pass@1", "pass@4", "num_prompts", "samples_per_prompt", "ci95"}


async def test_a_lost_prompt_is_tried_again_then_left_out_never_counted_as_wrong() -> None:
    result = await run(Rewarding(lose={"heldout-00000000": 2, "heldout-00000001": 99}))
    assert (result.num_prompts, result.num_lost) == (5, 1)
    assert result.pass_at[1] == 0.5


async def test_when_every_prompt_is_lost_nothing_is_claimed() -> None:
    with pytest.raises(TooManyLost, match="all 2 evaluation prompts were lost"):
        await run(Rewarding(lose={f"heldout-{n:08d}": 99 for n in range(2)}), prompts=2)


async def test_a_penalty_for_length_is_no_part_of_an_evaluation() -> None:
    class Shaped(FakeComponents):
        async def score(self, group: PromptGroup) -> ScoredGroup:
            shaping = np.array([0.0, -0.25, -0.75, -1.0], dtype=np.float32)
            return ScoredGroup(group, np.ones(4, dtype=np.float32), shaping=shaping)

    parts = Shaped()
    found = await evaluate(parts, parts, FakeSource().heldout(2), SAMPLING, ks=[1], pass_reward=1.0, max_in_flight=2)
    assert (found.pass_at[1], found.mean_reward) == (1.0, 1.0)


def test_conversations_are_evaluated_by_turn() -> None:
    """Two of three pass: one in its first turn of three at most, one in its third."""

    class Talking(FakeComponents):
        async def sample(self, prompt: Prompt, sampling: Sampling, attempt: int) -> PromptGroup:
            rng = np.random.default_rng(0)
            made = (make_conversation(rng, turns, (2,) * len(turns))[0] for turns in ((3,), (1, 2), (1, 1, 2)))
            return PromptGroup(prompt, attempt, tuple(made))

        async def score(self, group: PromptGroup) -> ScoredGroup:
            return ScoredGroup(group, np.array([1, 0, 1], np.float32))

    components = Talking()
    prompts = FakeSource().heldout(2)
    sampling = Sampling(3, 1.0, 8, seed=0, max_turns=4)
    found = asyncio.run(evaluate(components, components, prompts, sampling, ks=(1,), pass_reward=1.0, max_in_flight=2))
    value = {name: value for name, (value, _) in found.of_turns.items()}
    assert value == pytest.approx(
        {"turns": 2.0, "solved_in_turn_1": 1 / 3, "solved_in_turn_2": 0, "solved_in_turn_3": 1 / 3,
         "solved_in_turn_4": 0}
    )  # fmt: skip
    stored = found.to_json()
    assert stored["solved_in_turn_3"] == pytest.approx(1 / 3)
    assert set(stored["ci95"]) == {"pass@1", *found.of_turns}  # type: ignore[arg-type]
    shown = io.StringIO()
    Console(file=shown, width=120).print(render_evaluation(found, found))
    assert "solved in turn 3" in shown.getvalue()
