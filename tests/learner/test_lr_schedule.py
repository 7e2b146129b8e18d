from __future__ import annotations

import pytest
from transformers import SchedulerType

from lpo_ray.errors import ConfigError
from lpo_ray.learner.lr_schedule import SCHEDULES, learning_rates


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_name_gives_a_rate_for_every_step(name: str) -> None:
    arguments = {
        "polynomial": {"lr_end": 1e-4},
        "cosine_with_min_lr": {"min_lr": 1e-4},
        "cosine_warmup_with_min_lr": {"min_lr": 1e-4},
        "warmup_stable_decay": {"num_decay_steps": 5},
    }.get(name, {})
    rates = learning_rates(name, 1e-3, steps=20, warmup_steps=4, arguments=arguments)
    values = [rates(step) for step in range(20)]
    assert max(values) == pytest.approx(1e-3)
    assert all(0 <= value <= 1e-3 for value in values)
    if name != "constant":
        assert values[0] < values[4]


def test_linear_by_hand() -> None:
    rates = learning_rates("linear", 1.0, steps=10, warmup_steps=2, arguments={})
    assert [rates(step) for step in (0, 1, 2, 6)] == pytest.approx([0.0, 0.5, 1.0, 0.5])


def test_arguments_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"learner\.lr_schedule=linear"):
        learning_rates("linear", 1.0, steps=10, warmup_steps=0, arguments={"slope": 1})
    with pytest.raises(ConfigError, match="lr_end"):
        learning_rates("polynomial", 1e-5, steps=10, warmup_steps=0, arguments={"lr_end": 1e-4})


def test_the_schedules_are_those_of_transformers_that_follow_the_step() -> None:
    assert set(SCHEDULES) == {kind.value for kind in SchedulerType} - {"reduce_lr_on_plateau", "greedy"}
    assert list(SCHEDULES) == sorted(SCHEDULES)
