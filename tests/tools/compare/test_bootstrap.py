from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lpo_ray.tools.compare.bootstrap import Interval, band, count_wins, paired_bootstrap

SIZES = st.tuples(st.integers(1, 5), st.integers(1, 30), st.integers(0, 2**32 - 1))


def every_resample(difference: np.ndarray) -> np.ndarray:
    """The means of all S^S x P^P resamples, each as likely as any other."""
    seeds, prompts = (range(size) for size in difference.shape)
    return np.array(
        [
            difference[np.ix_(rows, columns)].mean()
            for rows in itertools.product(seeds, repeat=len(seeds))
            for columns in itertools.product(prompts, repeat=len(prompts))
        ]
    )


@pytest.mark.parametrize(("shape", "seed"), [((2, 3), 0), ((3, 3), 1), ((3, 4), 2), ((1, 5), 3)])
def test_the_interval_is_that_of_all_resamples(shape: tuple[int, int], seed: int) -> None:
    difference = np.random.default_rng(seed).normal(size=shape)
    means = every_resample(difference)
    found = paired_bootstrap(difference, confidence=0.8, resamples=40_000)
    assert found.mean == pytest.approx(difference.mean())
    for bound, share in ((found.low, 0.1), (found.high, 0.9)):
        assert (means < bound - 0.02).mean() <= share + 0.02
        assert (means <= bound + 0.02).mean() >= share - 0.02


@given(SIZES)
def test_an_arm_that_is_its_own_baseline_differs_by_nothing(size: tuple[int, int, int]) -> None:
    seeds, prompts, seed = size
    values = np.random.default_rng(seed).random((seeds, prompts))
    assert paired_bootstrap(values - values, resamples=200) == Interval(0.0, 0.0, 0.0)


@given(SIZES, st.floats(-1, 1))
def test_a_shift_moves_mean_and_bounds_alike(size: tuple[int, int, int], shift: float) -> None:
    seeds, prompts, seed = size
    difference = np.random.default_rng(seed).normal(size=(seeds, prompts))
    before, after = (paired_bootstrap(d, resamples=200) for d in (difference, difference + shift))
    assert before.low <= before.high
    for one, other in ((before.mean, after.mean), (before.low, after.low), (before.high, after.high)):
        assert other == pytest.approx(one + shift, abs=1e-9)


def test_pairing_finds_what_the_spread_of_prompts_would_hide() -> None:
    rng = np.random.default_rng(0)
    difficulty = rng.beta(0.3, 0.6, size=(5, 200))
    arm, baseline = difficulty + 0.02 + rng.normal(0, 0.03, difficulty.shape), difficulty
    assert paired_bootstrap(arm - baseline).excludes_zero
    assert not paired_bootstrap(arm - baseline[:, ::-1]).excludes_zero


def test_what_is_the_same_on_average_is_rarely_called_different() -> None:
    """Seeds and prompts both have effects of their own; false alarms are near 5 %, a few more with 5 seeds."""
    rng = np.random.default_rng(0)
    alarms = 0
    for trial in range(200):
        difference = rng.normal(0, 0.05, (5, 1)) + rng.normal(0, 0.1, (1, 60)) + rng.normal(0, 0.2, (5, 60))
        alarms += paired_bootstrap(difference, resamples=400, seed=trial).excludes_zero
    assert alarms / 200 <= 0.14


@given(SIZES)
def test_a_missing_pair_is_left_out_and_counts_as_nothing(size: tuple[int, int, int]) -> None:
    seeds, prompts, seed = size
    rng = np.random.default_rng(seed)
    difference = rng.normal(size=(seeds, prompts))
    difference[rng.random((seeds, prompts)) < 0.3] = np.nan
    if np.isnan(difference).all():
        with pytest.raises(ValueError, match="has 0 pairs; expected"):
            paired_bootstrap(difference)
        return
    found = paired_bootstrap(difference, resamples=200)
    assert found.mean == pytest.approx(np.nanmean(difference))
    assert np.nanmin(difference) - 1e-9 <= found.low <= found.high <= np.nanmax(difference) + 1e-9


def test_a_tie_is_no_win_and_neither_is_rounding() -> None:
    assert count_wins([0.5, 0.3 + 1e-17, 0.2, 0.9], [0.4, 0.3, 0.2, 0.95]) == 1


def test_bands_leave_out_what_is_missing() -> None:
    mean, low, high = band(np.array([[1.0, np.nan, np.nan], [3.0, 2.0, np.nan]]))
    np.testing.assert_array_equal(mean, [2.0, 2.0, np.nan])
    np.testing.assert_array_equal(low, [1.0, 2.0, np.nan])
    np.testing.assert_array_equal(high, [3.0, 2.0, np.nan])
