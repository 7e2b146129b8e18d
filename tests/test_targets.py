from __future__ import annotations

import math

import numpy as np
import pytest

from lpo_ray.records import AnchorGroup, ScoredGroup, zero_anchor
from lpo_ray.targets import TargetRule, build_targets
from tests.builders import make_group

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


def test_single_responses_are_measured_against_the_batch() -> None:
    groups = [scored(n, [float(n % 2)]) for n in range(4)]
    targets = build_targets(groups, zero_anchor(groups), TargetRule("one", 0, 1e-6, anchored=True))
    assert np.exp([t.log_target[0] for t in targets]) == pytest.approx([1 / (1 + math.exp(0.5)), 0.62245933] * 2)


def test_a_missing_anchor_is_refused() -> None:
    with pytest.raises(ValueError, match="1 groups but 0 anchors"):
        build_targets([scored(0, [1.0, 0.0])], (), RULE)
