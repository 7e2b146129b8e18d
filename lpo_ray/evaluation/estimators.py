"""Estimators of one prompt's n samples, and intervals over prompts. P prompts, n samples of each, R resamples."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from lpo_ray.records import IntArray

RESAMPLES = 4000
CHUNK = 500
"""most resamples that are in memory at once"""


def pass_at_k(num_correct: IntArray, num_samples: int, k: int) -> np.ndarray:
    """Estimate, unbiased, [P] 1 - C(n - c, k)/C(n, k) of passing at least once in k draws (Chen et al. 2021, Eq. 1)."""
    if not 1 <= k <= num_samples:
        raise ValueError(f"k is {k}; expected 1..{num_samples}, the samples of each prompt")
    wrong = num_samples - np.asarray(num_correct, dtype=np.float64)[:, None]
    draws = np.arange(k)
    return 1.0 - np.prod(np.clip(wrong - draws, 0, None) / (num_samples - draws), axis=1)


def majority(answers: Sequence[str | None], passed: Sequence[bool]) -> float:
    """Compute how probably the majority's answer passes: maj@n of one prompt (self-consistency, Wang et al. 2022).

    ``answers``: [n], None for a response without one, which has no vote. The most frequent answer wins, one of several
    by a fair draw; should verdicts on responses with that answer differ, one of them is drawn. 0 without any vote.
    """
    if len(answers) != len(passed):
        raise ValueError(f"{len(answers)} answers and {len(passed)} verdicts; expected one of each for a response")
    votes = Counter(answer for answer in answers if answer is not None)
    if not votes:
        return 0.0
    most = max(votes.values())
    winners = {answer for answer, count in votes.items() if count == most}
    right = sum(verdict for answer, verdict in zip(answers, passed, strict=True) if answer in winners)
    return right / (most * len(winners))


def of_turns(passed: np.ndarray, turns: np.ndarray, last: int) -> dict[str, np.ndarray]:
    """Compute [P] the turns of a prompt's responses and, for each turn 1 to ``last``, the share of them that pass and
    ended in it: together the share that passes. ``passed``, ``turns``: [P, n].
    """
    solved = {f"solved_in_turn_{turn}": (passed & (turns == turn)).mean(axis=1) for turn in range(1, last + 1)}
    return {"turns": turns.mean(axis=1), **solved}


def num_distinct(answers: Sequence[str | None]) -> int:
    """Count the different answers among those given."""
    return len({answer for answer in answers if answer is not None})


def entropy(answers: Sequence[str | None]) -> float:
    """Compute the entropy, in nats, of the frequencies of the answers given: 0 when all agree (or none was given), at
    most log n. It is biased down by a small number of samples, so compare only equal numbers.
    """
    counts = np.array(list(Counter(answer for answer in answers if answer is not None).values()), dtype=np.float64)
    shares = counts / counts.sum() if len(counts) else counts
    return float(np.abs((shares * np.log(shares)).sum()))


def bootstrap_interval(
    values: np.ndarray, *, confidence: float = 0.95, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[float, float]:
    """Compute the percentile interval of the mean of ``values`` [P]. Prompts are resampled, each with its samples."""
    return bootstrap_intervals([values], confidence=confidence, resamples=resamples, seed=seed)[0]


def bootstrap_intervals(
    quantities: Sequence[np.ndarray], *, confidence: float = 0.95, resamples: int = RESAMPLES, seed: int = 0
) -> list[tuple[float, float]]:
    """Compute ``bootstrap_interval`` of several quantities [P] of the same prompts, over the same resamples."""
    values = np.asarray(quantities, dtype=np.float64)
    size = values.shape[1]
    if not size:
        raise ValueError("an interval over 0 prompts; expected one at least")
    rng = np.random.default_rng(seed)
    means = []
    for first in range(0, resamples, CHUNK):
        rows = min(CHUNK, resamples - first)
        drawn = rng.integers(0, size, size=(rows, size)) + size * np.arange(rows)[:, None]
        times = np.bincount(drawn.ravel(), minlength=rows * size).reshape(rows, size)
        means.append(times @ values.T / size)
    lows, highs = percentile_interval(np.concatenate(means), confidence)
    return [(float(low), float(high)) for low, high in zip(lows, highs, strict=True)]


def percentile_interval(resampled: np.ndarray, confidence: float) -> tuple[np.ndarray, np.ndarray]:
    """Lower and upper bound of each column of ``resampled`` [R, ...], or of all of it when it is [R]."""
    tail = (1 - confidence) / 2
    low, high = np.quantile(resampled, [tail, 1 - tail], axis=0)
    return low, high
