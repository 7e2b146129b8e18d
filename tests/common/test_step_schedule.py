from __future__ import annotations

import pytest

from lpo_ray.common.step_schedule import StepSchedule


def test_a_scheduled_value_holds_from_its_step_on() -> None:
    found = StepSchedule(((0, "a"), (3, "b"), (4, "c")))
    assert [found.at(step) for step in range(6)] == ["a", "a", "a", "b", "c", "c"]
    assert StepSchedule.constant(7).at(10**6) == 7


@pytest.mark.parametrize("steps", [(), (1,), (0, 0), (0, 3, 2)])
def test_a_scheduled_value_begins_at_0_and_ascends(steps: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="expected ascending steps that begin with 0"):
        StepSchedule(tuple((step, "a") for step in steps))
