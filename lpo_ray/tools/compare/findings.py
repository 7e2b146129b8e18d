"""Arm against baseline: what a comparison found, in numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lpo_ray.tools.compare.bootstrap import Interval, count_wins, paired_bootstrap
from lpo_ray.tools.compare.grid import BASELINE, CONTROL, Arm
from lpo_ray.tools.compare.outcome import CURVES, ArmResult

Results = Mapping[Arm, Mapping[int, ArmResult]]
"""arm -> seed -> what came out; only what finished is there"""
WHEN = {False: "at the end", True: "over the curve"}
"""Measure.over_curve, for readers"""
LAST_STEPS = 10
"""steps over which the metrics of steps are averaged"""


@dataclass(frozen=True, slots=True)
class Measure:
    """Quantity that arms are judged by. ``over_curve``: mean over all evaluations after step 0, not only the last."""

    k: int
    over_curve: bool

    @property
    def label(self) -> str:
        """Name for readers."""
        return f"pass@{self.k} {WHEN[self.over_curve]}"


@dataclass(frozen=True, slots=True)
class Difference:
    """One arm minus another, by measure."""

    arm: Arm
    than: Arm
    num_seeds: int
    """seeds that both have"""
    by: Mapping[Measure, Interval]

    @property
    def pair(self) -> str:
        """Arms, the second of which is subtracted from the first."""
        other = "" if self.than.setting == self.arm.setting else f" at {self.than.setting_label}"
        return f"{self.arm.divergence} - {self.than.divergence}{other}"

    @property
    def meaning(self) -> str:
        """Reading of a difference in Findings.parts: what it comes from."""
        return f"{'projection' if self.than.divergence == CONTROL else 'weighting'}: {self.pair}"


@dataclass(frozen=True, slots=True)
class Found:
    """Means of one arm over its seeds."""

    arm: Arm
    num_seeds: int
    scores: Mapping[Measure, float]
    metrics: Mapping[str, float]
    """metrics of outcome.CURVES, over the last LAST_STEPS"""
    difference: Difference | None
    """difference to the matched baseline; None: it is the baseline, or there is nothing to pair"""


@dataclass(frozen=True, slots=True)
class Wins:
    """Settings in which a divergence is above its own baseline."""

    divergence: str
    settings: int
    wins: Mapping[Measure, int]
    clear: Mapping[Measure, int]
    """those of ``wins`` whose interval excludes 0"""


@dataclass(frozen=True, slots=True)
class Findings:
    """All findings of a comparison."""

    measures: Sequence[Measure]
    arms: Sequence[Found]
    parts: Sequence[Difference]
    """weighting and projection, in each setting"""
    to_first: Sequence[Difference]
    """every arm to the first one of the grid, but those that have it as their baseline"""
    wins: Sequence[Wins]
    checks: Sequence[str]
    """what was seen of the runs being comparable"""


def find(results: Results, ks: Sequence[int]) -> Findings:
    """Compare every arm of ``results`` with the baseline of its setting."""
    measures = [Measure(k, over_curve) for over_curve in (False, True) for k in ks]
    arms = [_found(arm, results, measures) for arm in results if results[arm]]
    divergences = dict.fromkeys(found.arm.divergence for found in arms if found.difference is not None)
    return Findings(
        measures,
        arms,
        [part for arm in results for part in _parts(arm, results, measures)],
        _to_first(results, measures),
        [_wins(name, arms, measures) for name in divergences],
        _checks(results),
    )


def scores(outcome: ArmResult, measure: Measure, prompts: Sequence[str]) -> np.ndarray:
    """Score one run: [P] values, one for each prompt."""
    last = max(outcome.num_correct)
    steps = [step for step in outcome.num_correct if step > 0] if measure.over_curve else [last]
    return np.mean([outcome.pass_at(measure.k, step, prompts) for step in steps], axis=0)


def _matrix(
    outcomes: Mapping[int, ArmResult], seeds: Sequence[int], measure: Measure, prompts: list[str]
) -> np.ndarray:
    """Stack the scores of an arm's runs: [S, P]."""
    return np.stack([scores(outcomes[seed], measure, prompts) for seed in seeds])


def _prompts(*several: Mapping[int, ArmResult]) -> list[str]:
    found = (outcome.num_correct.values() for outcomes in several for outcome in outcomes.values())
    return sorted({prompt for evaluations in found for evaluation in evaluations for prompt in evaluation})


def _found(arm: Arm, results: Results, measures: Sequence[Measure]) -> Found:
    outcomes = results[arm]
    prompts, seeds = _prompts(outcomes), sorted(outcomes)
    return Found(
        arm,
        len(seeds),
        {measure: float(np.nanmean(_matrix(outcomes, seeds, measure, prompts))) for measure in measures},
        {name: float(np.mean([outcomes[seed].curves[name][-LAST_STEPS:].mean() for seed in seeds])) for name in CURVES},
        _difference(arm, Arm(BASELINE, arm.setting), results, measures),
    )


def _difference(arm: Arm, other: Arm, results: Results, measures: Sequence[Measure]) -> Difference | None:
    seeds = sorted(results[arm].keys() & results.get(other, {}).keys())
    if arm == other or not seeds:
        return None
    prompts = _prompts(results[arm], results[other])
    return Difference(
        arm,
        other,
        len(seeds),
        {
            measure: paired_bootstrap(
                _matrix(results[arm], seeds, measure, prompts) - _matrix(results[other], seeds, measure, prompts)
            )
            for measure in measures
        },
    )


def _parts(arm: Arm, results: Results, measures: Sequence[Measure]) -> list[Difference]:
    """Split the gain over the baseline: the control has what the weighting of prompts gives, forward KL what the
    projection gives beyond that.
    """
    than = {CONTROL: BASELINE, "forward_kl": CONTROL}.get(arm.divergence)
    found = None if than is None else _difference(arm, Arm(than, arm.setting), results, measures)
    return [] if found is None else [found]


def _to_first(results: Results, measures: Sequence[Measure]) -> list[Difference]:
    first = next(iter(results))
    others = [arm for arm in results if Arm(BASELINE, arm.setting) != first]
    found = [_difference(arm, first, results, measures) for arm in others]
    return [difference for difference in found if difference is not None]


def _wins(divergence: str, arms: Sequence[Found], measures: Sequence[Measure]) -> Wins:
    pairs = [found.difference for found in arms if found.arm.divergence == divergence and found.difference is not None]
    means = {measure: [pair.by[measure] for pair in pairs] for measure in measures}
    zeros = [0.0] * len(pairs)
    return Wins(
        divergence,
        len(pairs),
        {measure: count_wins([interval.mean for interval in found], zeros) for measure, found in means.items()},
        {measure: count_wins([interval.low for interval in found], zeros) for measure, found in means.items()},
    )


def _checks(results: Results) -> list[str]:
    by_seed: dict[int, list[ArmResult]] = {}
    for outcomes in results.values():
        for seed, outcome in outcomes.items():
            by_seed.setdefault(seed, []).append(outcome)
    trained = sorted({outcome.trained for outcomes in by_seed.values() for outcome in outcomes})
    alike = sum(
        all(one.num_correct[0] == outcomes[0].num_correct[0] for one in outcomes) for outcomes in by_seed.values()
    )
    return [
        f"groups trained in a run: {' or '.join(str(count) for count in trained)}",
        f"the evaluation before the first step, prompt by prompt: the same in all arms for {alike} of "
        f"{len(by_seed)} seeds",
    ]
