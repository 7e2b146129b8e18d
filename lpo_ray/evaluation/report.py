"""Report of an evaluation: estimates with 95 % intervals over prompts, for all prompts and for groups of them, and
statistics of lengths. P prompts, n responses of each.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from lpo_ray.evaluation.breakdown import CAVEAT, OWN, by_column, by_pass_rate
from lpo_ray.evaluation.estimators import (
    bootstrap_intervals,
    entropy,
    majority,
    num_distinct,
    of_turns,
    pass_at_k,
)
from lpo_ray.evaluation.results import PromptResult

QUANTILES = (10, 50, 90, 99)


@dataclass(frozen=True, slots=True)
class Estimate:
    """Mean over prompts with its 95 % interval. Example: ``Estimate(0.31, 0.27, 0.35)``"""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Measures:
    """Estimates of some prompts. Names: pass@k for k = 1..n, avg@n (the share of responses that pass, which is pass@1),
    maj@n, mean_reward, distinct_answers (of n), answer_entropy (nats), unanswered (share of responses), length
    (tokens), truncated (share of responses). Of conversations: turns, and for each turn t solved_in_turn_t (the share
    of responses that pass and ended in it).
    """

    num_prompts: int
    samples_per_prompt: int
    estimates: Mapping[str, Estimate]

    def to_json(self) -> dict[str, Any]:
        """Return each name with its value, and the intervals under ``ci95``: the form of summary.json."""
        return {
            **{name: estimate.value for name, estimate in self.estimates.items()},
            "num_prompts": self.num_prompts,
            "samples_per_prompt": self.samples_per_prompt,
            "ci95": {name: [estimate.low, estimate.high] for name, estimate in self.estimates.items()},
        }


@dataclass(frozen=True, slots=True)
class Lengths:
    """Statistics of the lengths of some responses, in tokens; None where there are no responses."""

    num_responses: int
    mean: float | None
    quantiles: Mapping[str, int | None]
    """p10, p50, p90, p99"""
    longest: int | None
    truncated: float | None
    """share of responses that were cut off at max_tokens"""


@dataclass(frozen=True, slots=True)
class Report:
    """Numbers of one evaluation."""

    title: str
    """what was evaluated on what"""
    about: Mapping[str, Any]
    """model, task, sampling and whatever else says how, as plain JSON values"""
    overall: Measures
    by: Mapping[str, Mapping[str, Measures]]
    """breakdown -> group -> measures: by OWN, and by a column of the data"""
    lengths: Mapping[str, Lengths]
    """all, correct, wrong"""
    lost: Mapping[str, str] = field(default_factory=dict)
    """prompts that no number is about -> why"""

    def to_json(self) -> dict[str, Any]:
        """Return the content of results.json."""
        return {
            **self.about,
            **self.overall.to_json(),
            "lost": len(self.lost),
            "lost_prompts": dict(self.lost),
            "lengths": {name: asdict(lengths) for name, lengths in self.lengths.items()},
            "by": {
                name: {group: measures.to_json() for group, measures in groups.items()}
                for name, groups in self.by.items()
            },
            "caveat": CAVEAT,
        }


def make_report(
    results: Sequence[PromptResult],
    *,
    title: str,
    about: Mapping[str, Any],
    pass_reward: float,
    lost: Mapping[str, str],
    column: tuple[str, Mapping[str, str]] | None = None,
) -> Report:
    """Make the report of ``results``, at least one. ``column``: name of a column of the data, and each prompt's group
    by it (``breakdown.groups_of``).
    """
    by = {OWN: by_pass_rate(results, pass_reward)}
    if column is not None:
        by[column[0]] = by_column(results, column[1])
    return Report(
        title=title,
        about=about,
        overall=measure(results, pass_reward),
        by={
            name: {group: measure(members, pass_reward) for group, members in groups.items()}
            for name, groups in by.items()
        },
        lengths=_lengths(results, pass_reward),
        lost=lost,
    )


def measure(results: Sequence[PromptResult], pass_reward: float) -> Measures:
    """Compute all estimates over ``results``, which have the same number of responses."""
    n = len(results[0].rewards)
    passed = np.array([result.passed(pass_reward) for result in results])
    num_correct = passed.sum(axis=1)

    def each(quantity: Callable[[PromptResult], float]) -> np.ndarray:
        return np.array([quantity(result) for result in results], dtype=np.float64)

    quantities = {
        **{f"pass@{k}": pass_at_k(num_correct, n, k) for k in range(1, n + 1)},
        f"avg@{n}": passed.mean(axis=1),
        f"maj@{n}": np.array(
            [majority(result.answers, list(row)) for result, row in zip(results, passed, strict=True)]
        ),
        "mean_reward": each(lambda result: float(np.mean(result.rewards))),
        "distinct_answers": each(lambda result: num_distinct(result.answers)),
        "answer_entropy": each(lambda result: entropy(result.answers)),
        "unanswered": each(lambda result: result.answers.count(None) / n),
        "length": each(lambda result: float(np.mean(result.lengths))),
        "truncated": each(lambda result: result.finish_reasons.count("length") / n),
        **_of_turns(results, passed),
    }
    intervals = bootstrap_intervals(list(quantities.values()))
    estimates = {
        name: Estimate(float(values.mean()), *interval)
        for (name, values), interval in zip(quantities.items(), intervals, strict=True)
    }
    return Measures(len(results), n, estimates)


def _of_turns(results: Sequence[PromptResult], passed: np.ndarray) -> dict[str, np.ndarray]:
    """Compute [P] turns of a response and the share solved in each; {} when there is no conversation among them."""
    if not any(result.turns for result in results):
        return {}
    turns = np.array([result.turns or (1,) * len(result.rewards) for result in results])
    return of_turns(passed, turns, int(turns.max()))


def _lengths(results: Sequence[PromptResult], pass_reward: float) -> dict[str, Lengths]:
    lengths = np.array([result.lengths for result in results])
    truncated = np.array([[reason == "length" for reason in result.finish_reasons] for result in results])
    passed = np.array([result.passed(pass_reward) for result in results])
    kinds = {"all": np.ones_like(passed), "correct": passed, "wrong": ~passed}
    return {name: _lengths_of(lengths[chosen], truncated[chosen]) for name, chosen in kinds.items()}


def _lengths_of(lengths: np.ndarray, truncated: np.ndarray) -> Lengths:
    names = [f"p{quantile}" for quantile in QUANTILES]
    if not len(lengths):
        return Lengths(0, None, dict.fromkeys(names), None, None)
    found = np.percentile(lengths, QUANTILES, method="higher")
    return Lengths(
        num_responses=len(lengths),
        mean=float(lengths.mean()),
        quantiles={name: int(value) for name, value in zip(names, found, strict=True)},
        longest=int(lengths.max()),
        truncated=float(truncated.mean()),
    )


def ks_shown(n: int) -> list[int]:
    """List the powers of two up to n, and n."""
    return sorted({*(2**power for power in range(n.bit_length()) if 2**power <= n), n})
