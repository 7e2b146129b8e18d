from __future__ import annotations

import math

import numpy as np
import pytest

from lpo_ray.records import AnchorGroup, ScoredGroup, on_policy_anchor
from lpo_ray.targets import StaleRule, TargetRule, build_targets, why_dropped
from tests.builders import make_group

KEEP = StaleRule("keep", 0.3, 0.2)
RULE = TargetRule("group_std", 0, 1e-6, anchored=True, stale=KEEP)


def scored(number: int, rewards: list[float]) -> ScoredGroup:
    return ScoredGroup(make_group(number, (3,) * len(rewards)), np.array(rewards, dtype=np.float32))


def anchor_of(log_ratio: list[float], drift: float = 0.0) -> AnchorGroup:
    values = np.array(log_ratio, dtype=np.float32)
    return AnchorGroup(values, np.full(len(values), drift, np.float32), np.zeros(len(values), np.float32))


def test_targets_by_hand_and_groups_of_unequal_size() -> None:
    groups = [scored(0, [1.0, 0.0]), scored(1, [1.0, 0.0, 0.0, 1.0])]
    first, second = build_targets(groups, on_policy_anchor(groups), RULE)
    odds = math.exp(2)  # tau = 0.5 in both
    assert np.exp(first.log_target).tolist() == pytest.approx([odds / (odds + 1), 1 / (odds + 1)], rel=1e-4)
    assert np.exp(second.log_target).sum() == pytest.approx(1.0)
    assert second.temperature == pytest.approx(0.5, rel=1e-4)


def test_the_anchor_enters_the_target_unless_it_is_first_order() -> None:
    groups = [scored(0, [1.0, 1.0])]
    anchor = (anchor_of([0.5, -0.5]),)
    anchored = build_targets(groups, anchor, RULE)[0]
    plain = build_targets(groups, anchor, TargetRule("group_std", 0, 1e-6, anchored=False, stale=KEEP))[0]
    assert anchored.log_target[0] - anchored.log_target[1] == pytest.approx(1.0)
    assert plain.log_target.tolist() == pytest.approx([math.log(0.5)] * 2)


def test_single_responses_are_measured_against_the_batch() -> None:
    groups = [scored(n, [float(n % 2)]) for n in range(4)]
    targets = build_targets(groups, on_policy_anchor(groups), TargetRule("one", 0, 1e-6, anchored=True, stale=KEEP))
    assert np.exp([t.log_target[0] for t in targets]) == pytest.approx([1 / (1 + math.exp(0.5)), 0.62245933] * 2)


def test_a_missing_anchor_is_refused() -> None:
    with pytest.raises(ValueError, match="1 groups but 0 anchors"):
        build_targets([scored(0, [1.0, 0.0])], (), RULE)


def test_a_tempered_group_counts_as_sampled_from_a_mixture_whose_sample_size_holds() -> None:
    groups, anchor = [scored(0, [1.0, 1.0, 1.0, 1.0])], (anchor_of([3.0, 0.0, 0.0, 0.0]),)
    rule = TargetRule("group_std", 0, 1e-6, anchored=True, stale=StaleRule("temper", 0.75, 0.2))
    (target,) = build_targets(groups, anchor, rule)
    assert 0 < target.tempering < 1
    weights = np.exp(target.log_target.astype(float))
    assert 1 / (weights**2).sum() == pytest.approx(3.0, rel=1e-6)
    start = np.exp(anchor[0].log_ratio - target.offset)  # what the learner has at theta_t
    assert weights == pytest.approx(start / start.sum(), rel=1e-6)
    assert build_targets(groups, anchor, RULE)[0].tempering == 1.0


def test_why_a_group_is_dropped() -> None:
    rule = StaleRule("drop", 0.5, 0.2)
    assert why_dropped(anchor_of([0.0, 0.0, 0.0, 0.0]), rule) == ""
    assert why_dropped(anchor_of([9.0, 0.0, 0.0, 0.0]), rule) == "its 4 responses are worth 1.00, less than 0.5 of them"
    reason = "its tokens' log-probs have moved by 0.3 nats on average, more than 0.2"
    assert why_dropped(anchor_of([0.0, 0.0], drift=0.3), rule) == reason
    assert why_dropped(anchor_of([9.0, 0.0, 0.0, 0.0]), KEEP) == ""
    assert why_dropped(anchor_of([0.0]), rule) == ""
