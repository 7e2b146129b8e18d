from __future__ import annotations

import pytest

from actors.learner.zero_options import check_zero
from lpo_ray.errors import ConfigError


@pytest.mark.parametrize(
    "options",
    [
        {"offload_optimizer": {"device": "cpu"}},
        {"offload_param": {"device": "nvme", "nvme_path": "/ssd"}},
        {"stage": 3, "sub_group_size": 1e9},
    ],
)
def test_options_of_zero_3_are_taken(options: dict[str, object]) -> None:
    check_zero(options)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"stage": 2}, "learner.zero.stage is 2; expected 3"),
        ({"stage": "3"}, "learner.zero.stage is '3'; expected 3"),
        ({"stage": True}, "learner.zero.stage is True; expected 3"),
        ({"nonsense": 1}, "nonsense: Extra inputs are not permitted"),
        ({"offload_optimiser": {"device": "cpu"}}, "offload_optimiser: Extra inputs"),
        ({"offload_optimizer": {"device": "gpu"}}, "offload_optimizer.device: Input should be 'none', 'cpu' or 'nvme'"),
        ({"reduce_bucket_size": "many"}, "reduce_bucket_size: "),
    ],
)
def test_what_deepspeed_would_refuse_is_refused_before(
    options: dict[str, object], expected: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ConfigError, match=expected.replace(".", r"\.")):
        check_zero(options)
    assert capfd.readouterr().out == ""
