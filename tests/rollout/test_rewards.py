"""A group's scores from its verdicts: what evaluations count, what training adds, and whose fault a lack is."""

from __future__ import annotations

import pickle

import pytest

from lpo_ray.errors import GroupLost, Unscored
from lpo_ray.records import ScoredGroup
from lpo_ray.rollout.rewards import scores_of
from lpo_ray.verdict import Verdict
from lpo_ray.verifiers.calling.overlong import Overlong
from tests.support.builders import make_group

RIGHT = Verdict.scored(1.0, "equal")


def test_a_penalty_for_length_stands_beside_the_rewards() -> None:
    group = make_group(0, (50, 90, 100))
    scored = ScoredGroup(group, *scores_of(group, [RIGHT] * 3, Overlong(100, 20)))
    assert scored.rewards.tolist() == [1, 1, 1]
    assert scored.shaped.tolist() == [1, 0.5, 0]
    assert scored.details == ("equal",) * 3


@pytest.mark.parametrize(
    ("verdict", "error"),
    [
        (Verdict.unscored("it says nothing"), Unscored), (Verdict.abstained("not for this"), Unscored),
        (Verdict.failed("the service is gone"), GroupLost),
    ],
)  # fmt: skip
def test_whose_fault_a_missing_reward_is(verdict: Verdict, error: type[GroupLost]) -> None:
    group = make_group(0, (3, 3))
    with pytest.raises(GroupLost, match=f"response 1 stayed unscored: {verdict.detail}") as caught:
        scores_of(group, [RIGHT, verdict], Overlong(100))
    assert type(caught.value) is error
    assert type(pickle.loads(pickle.dumps(caught.value))) is error  # it comes from the service's process
