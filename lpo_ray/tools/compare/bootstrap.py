"""Intervals of paired differences, wins and bands over seeds. S seeds, P held-out prompts, T steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lpo_ray.evaluation.estimators import RESAMPLES, percentile_interval

TIE = 1e-9
"""difference of means that is rounding"""


@dataclass(frozen=True, slots=True)
class Interval:
    """Mean with its bounds."""

    mean: float
    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        """Whether the sign is clear."""
        return self.low > 0 or self.high < 0


def paired_bootstrap(
    difference: np.ndarray, *, confidence: float = 0.95, resamples: int = RESAMPLES, seed: int = 0
) -> Interval:
    """Compute the mean of ``difference`` [S, P], arm minus baseline of the same seed and prompt, with a percentile
    interval.

    Seeds and prompts are resampled together, each with replacement and independently (the pigeonhole bootstrap, Owen
    2007, "The pigeonhole bootstrap", Ann. Appl. Stat. 1): a seed keeps its prompts, a prompt its seeds. It is right
    where all seeds share the prompts, and where each has its own; its bounds are rather too wide than too narrow. NaN:
    a pair that is missing, left out. One seed: the interval is of prompts alone. ValueError when nothing is left.
    """
    difference = np.asarray(difference, dtype=np.float64)
    known = np.isfinite(difference)
    if difference.ndim != 2 or not known.any():
        raise ValueError(
            f"difference {difference.shape} has {int(known.sum())} pairs; expected [S, P] and at least one"
        )
    values = np.where(known, difference, 0.0)
    rng = np.random.default_rng(seed)
    seeds, prompts = difference.shape
    of_seeds = rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=resamples).astype(np.float64)
    of_prompts = rng.multinomial(prompts, np.full(prompts, 1 / prompts), size=resamples).astype(np.float64)
    pairs = (of_seeds @ known * of_prompts).sum(1)
    means = (of_seeds @ values * of_prompts).sum(1)[pairs > 0] / pairs[pairs > 0]
    low, high = percentile_interval(means, confidence)
    return Interval(float(values.sum() / known.sum()), float(low), float(high))


def count_wins(values: Sequence[float], baselines: Sequence[float]) -> int:
    """Count in how many settings the value is above its own baseline, as the paper counts; a tie is not a win."""
    return sum(value > baseline + TIE for value, baseline in zip(values, baselines, strict=True))


def band(lines: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the mean, smallest and largest over the seeds of ``lines`` [S, T], each [T]. NaN is left out."""
    lines = np.asarray(lines, dtype=np.float64)
    known = np.isfinite(lines)
    count = known.sum(0)
    mean = np.where(count > 0, np.where(known, lines, 0.0).sum(0) / np.maximum(count, 1), np.nan)
    low, high = np.where(known, lines, np.inf).min(0), np.where(known, lines, -np.inf).max(0)
    return mean, np.where(count > 0, low, np.nan), np.where(count > 0, high, np.nan)
