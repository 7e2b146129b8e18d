from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from lpo_ray.learner.targets import KEEP, StaleRule, TargetRule, build_targets, why_dropped
from lpo_ray.records import AnchorGroup, ScoredGroup, zero_anchor
from tests.support.builders import make_group

RULE = TargetRule("group_std", 0, 1e-6, anchored=True)


def scored(number: int, rewards: list[float]) -> ScoredGroup:
    return ScoredGroup(make_group(number, (3,) * len(rewards)), np.array(rewards, dtype=np.float32))


def anchor_of(log_ratio: list[float], drift: float = 0.0) -> AnchorGroup:
    s_t = np.array(log_ratio, dtype=np.float32)
    return AnchorGroup(s_t, np.full_like(s_t, drift), np.full_like(s_t, drift**2 / 2))


def test_targets_by_hand_and_groups_of_unequal_size() -> None:
    groups = [scored(0, [1.0, 0.0]), scored(1, [1.0, 0.0, 0.0, 1.0])]
    first, second = build_targets(groups, zero_anchor(groups), RULE)
    odds = math.exp(2)  # tau = 0.5 in both
    assert np.exp(first.log_target).tolist() == pytest.approx([odds / (odds + 1), 1 / (odds + 1)], rel=1e-4)
    assert np.exp(second.log_target).sum() == pytest.approx(1.0)
    assert second.temperature == pytest.approx(0.5, rel=1e-4)


def test_the_anchor_enters_the_target_unless_it_is_first_order() -> None:
    groups = [scored(0, [1.0, 1.0])]
    anchor = (anchor_of([0.5, -0.5]),)
    anchored = build_targets(groups, anchor, RULE)[0]
    plain = build_targets(groups, anchor, TargetRule("group_std", 0, 1e-6, anchored=False))[0]
    assert anchored.log_target[0] - anchored.log_target[1] == pytest.approx(1.0)
    assert plain.log_target.tolist() == pytest.approx([math.log(0.5)] * 2)


def test_a_scale_multiplies_tau() -> None:
    groups = [scored(0, [1.0, 0.0])]
    half = build_targets(groups, zero_anchor(groups), replace(RULE, scale=0.5))[0]
    assert half.temperature == pytest.approx(0.25, rel=1e-4)
    assert half.log_target[0] - half.log_target[1] == pytest.approx(4.0, rel=1e-4)


def test_single_responses_are_measured_against_the_batch() -> None:
    groups = [scored(n, [float(n % 2)]) for n in range(4)]
    targets = build_targets(groups, zero_anchor(groups), TargetRule("one", 0, 1e-6, anchored=True))
    assert np.exp([t.log_target[0] for t in targets]) == pytest.approx([1 / (1 + math.exp(0.5)), 0.62245933] * 2)


DROP = StaleRule("drop", 0.3, math.log(1.2))
TEMPER = StaleRule("temper", 0.9, math.log(1.2))


def test_a_tempered_target_has_the_shrunk_anchor_and_keeps_the_measured_one() -> None:
    """s_t = (log 3, 0) has ESS 1.6 of 2; 1.8 is reached where P = (2/3, 1/3), that is lambda = log 2 / log 3."""
    groups = [scored(0, [1.0, 0.0]), scored(1, [1.0, 1.0]), scored(2, [1.0, 0.0])]
    anchor = (anchor_of([math.log(3), 0.0]), anchor_of([math.log(3), 0.0]), anchor_of([0.1, 0.0]))
    first, equal, near = build_targets(groups, anchor, replace(RULE, stale=TEMPER))
    assert first.tempering == equal.tempering == pytest.approx(math.log(2) / math.log(3), rel=1e-6)
    assert first.anchor is anchor[0]
    assert first.start.tolist() == pytest.approx([math.log(2), 0.0], rel=1e-6)
    assert (first.start + first.offset).tolist() == pytest.approx([math.log(3), 0.0], rel=1e-6)
    assert first.log_target[0] - first.log_target[1] == pytest.approx(1.0 / first.temperature + math.log(2), rel=1e-5)
    assert np.exp(equal.log_target).tolist() == pytest.approx([2 / 3, 1 / 3], rel=1e-6)
    assert near.tempering == 1.0
    assert not near.offset.any()


@pytest.mark.parametrize("rule", [KEEP, DROP])
def test_only_the_rule_that_tempers_does(rule: StaleRule) -> None:
    groups, anchor = [scored(0, [1.0, 0.0])], (anchor_of([5.0, 0.0]),)
    found, plain = (build_targets(groups, anchor, replace(RULE, stale=stale))[0] for stale in (rule, KEEP))
    assert found.tempering == 1.0
    np.testing.assert_array_equal(found.log_target, plain.log_target, strict=True)


def test_single_responses_are_not_tempered() -> None:
    groups = [scored(n, [float(n % 2)]) for n in range(2)]
    targets = build_targets(groups, (anchor_of([3.0]), anchor_of([-3.0])), replace(RULE, stale=TEMPER))
    assert [target.tempering for target in targets] == [1.0, 1.0]


def test_a_group_is_dropped_with_the_numbers_that_say_why() -> None:
    few = anchor_of([9.0, 0.0, 0.0, 0.0], drift=0.1)
    assert why_dropped(few, DROP) == (
        "its effective sample size is 1.00 of 4 responses, expected at least 1.20 (objective.stale.min_ess=0.3)"
    )
    far = anchor_of([0.0, 0.0], drift=0.25)
    assert why_dropped(far, DROP) == (
        "its mean drift is 0.2500 nats, expected at most 0.1823 (objective.stale.max_drift)"
    )
    both = why_dropped(anchor_of([9.0, 0.0, 0.0, 0.0], drift=0.25), DROP)
    assert both is not None
    assert both.count(";") == 1
    assert why_dropped(anchor_of([0.1, 0.0, 0.0, 0.0], drift=0.18), DROP) is None
    for rule in (KEEP, replace(DROP, policy="keep"), replace(DROP, policy="temper")):
        assert why_dropped(few, rule) is None
        assert why_dropped(far, rule) is None


def test_a_single_response_is_dropped_for_drift_only() -> None:
    strict = StaleRule("drop", 1.0, 0.1)
    assert why_dropped(anchor_of([9.0], drift=0.05), strict) is None
    assert why_dropped(anchor_of([0.0], drift=0.2), strict) is not None


def test_an_on_policy_group_is_never_dropped() -> None:
    assert why_dropped(zero_anchor([scored(0, [1.0] * 7)])[0], StaleRule("drop", 1.0, 1e-9)) is None


def test_a_missing_anchor_is_refused() -> None:
    with pytest.raises(ValueError, match="1 groups but 0 anchors"):
        build_targets([scored(0, [1.0, 0.0])], (), RULE)


def test_targets_are_made_of_what_training_adds_too() -> None:
    rule = TargetRule("group_std", 1, 1e-3, anchored=True)
    shaped = ScoredGroup(make_group(0, (3, 3)), np.ones(2, np.float32), shaping=np.array([0.0, -1.0], np.float32))
    [target] = build_targets([shaped], zero_anchor([shaped]), rule)
    assert target.log_target[0] > target.log_target[1]
