"""What is measured after a step: the real learner, moved by an update."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from lpo_ray.learner.merge_ranks import merge_reports
from lpo_ray.learner.packing import Packing, pack_update
from lpo_ray.learner.settings import Objective
from lpo_ray.learner.updates import run_updates
from lpo_ray.objective import diagnose
from lpo_ray.policy.scoring import response_logprobs
from lpo_ray.records import FloatArray, ScoringItem, StepReport, TargetGroup
from lpo_ray.training.measurement import Measurement, MeasureRule
from tests.support.policies import OBJECTIVE, make_policy, make_targets

RULE = MeasureRule(100, 40, 1.0, "mean", behaviour_from_engine=True)


class OnePolicy:
    """As much of a learner as is asked."""

    def __init__(self, objective: Objective) -> None:
        self.policy, self._objective, self.forwards = make_policy(), objective, 0

    async def logprobs(self, forwards: list[list[ScoringItem]], temperature: float) -> list[FloatArray]:
        self.forwards += len(forwards)
        return [row for bundles in forwards for row in response_logprobs(self.policy, bundles, temperature)]

    def project(self, targets: list[TargetGroup], rate: float) -> StepReport:
        update = pack_update(targets, Packing(1, 10**6, False))
        return merge_reports([run_updates(self.policy, [update], 0, self._objective, rate)])


@pytest.mark.parametrize("engine", [True, False])
@pytest.mark.parametrize("length_norm", ["mean", "sum"])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
async def test_after_a_step_is_what_the_next_one_would_see_first(
    engine: bool, length_norm: str, temperature: float
) -> None:
    """The next update's own log-ratios of the same groups, which the learner reports before it moves."""
    objective = replace(
        OBJECTIVE, length_norm=length_norm, behaviour_from_engine=engine, sampling_temperature=temperature
    )
    learner, targets = OnePolicy(objective), make_targets()
    rule = replace(RULE, length_norm=length_norm, behaviour_from_engine=engine, temperature=temperature)
    measurement = Measurement(learner, targets, rule)
    await measurement.before()
    unmoved = await measurement.after()
    learner.project(targets, 0.05)
    after = await measurement.after()
    assert set(after) == {target.group.key for target in targets}
    # the report of an update with the engine's behaviour is to the engine; so compare differences of the two
    watched = OnePolicy(replace(objective, behaviour_from_engine=True))
    first = {group.key: group for group in watched.project(targets, 0.0).groups}
    watched.policy = learner.policy
    second = {group.key: group for group in watched.project(targets, 0.0).groups}
    for key, found in after.items():
        expected = second[key].log_ratio - first[key].log_ratio
        np.testing.assert_allclose(found.log_ratio - unmoved[key].log_ratio, expected, atol=2e-6)
        if not engine:
            np.testing.assert_allclose(unmoved[key].log_ratio, 0.0, atol=1e-7)
        for k, tokens in enumerate(found.token_log_ratio):
            whole = tokens.sum() if length_norm == "sum" else tokens.mean()
            assert float(found.log_ratio[k]) == pytest.approx(float(whole), abs=1e-5)


async def test_a_step_closes_the_gap_and_keeps_theorem_2s_bound() -> None:
    learner, targets = OnePolicy(OBJECTIVE), make_targets()
    measurement = Measurement(learner, targets, RULE)
    await measurement.before()
    gaps = []
    for _ in range(8):
        after = await measurement.after()
        gap = 0.0
        for target in targets:
            rows = (
                target.scored.rewards,
                target.start,
                after[target.group.key].log_ratio - target.offset,
                target.log_target,
            )
            tensors = [torch.from_numpy(np.array(row, dtype=np.float64))[None] for row in rows]
            found = diagnose(tensors[0], torch.tensor([target.temperature], dtype=torch.float64), *tensors[1:])
            gap += float(found.kl_target_policy)
            bound = found.predicted_gain - float(np.ptp(target.scored.rewards)) * found.total_variation
            assert float(found.realised_gain) >= float(bound) - 1e-6
        gaps.append(gap)
        learner.project(targets, 0.05)
    assert gaps[-1] < gaps[0]


async def test_groups_are_spread_over_the_step_and_forwards_bounded() -> None:
    learner, targets = OnePolicy(OBJECTIVE), make_targets()
    measurement = Measurement(learner, targets, replace(RULE, num_groups=2))
    await measurement.before()
    found = await measurement.after()
    keys = [target.group.key for target in targets]
    assert list(found) == [keys[0], keys[len(keys) // 2]]
    assert learner.forwards > 1
    nothing = Measurement(learner, targets, replace(RULE, num_groups=0))
    await nothing.before()
    assert await nothing.after() == {}
