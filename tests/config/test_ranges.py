from __future__ import annotations

from pathlib import Path

import pytest

from lpo_ray.config import load_config
from lpo_ray.config.ranges import NOT_NEGATIVE, POSITIVE, value_at
from lpo_ray.errors import ConfigError

QUICKSTART = Path(__file__).parents[2] / "configs" / "quickstart.yaml"


def test_the_smallest_values_are_taken() -> None:
    config = load_config(QUICKSTART, ["learner.warmup_steps=0", "pipeline.refill_groups=null"])
    assert (value_at(config, "learner.warmup_steps"), value_at(config, "pipeline.refill_groups")) == (0, None)


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [*((key, 0, "a number above 0") for key in POSITIVE), *((key, -1, "0 or more") for key in NOT_NEGATIVE)],
)
def test_a_value_below_its_range_is_named(key: str, value: int, expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(QUICKSTART, [f"{key}={value}"])
    assert str(caught.value) in (f"{key} is {value}; expected {expected}", f"{key} is {value}.0; expected {expected}")
