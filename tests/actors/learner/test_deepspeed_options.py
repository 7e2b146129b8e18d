"""What learner.deepspeed may hold: what DeepSpeed takes, and what neither we set nor exactness forbids."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from actors.learner.deepspeed_options import OURS, ZERO_OURS, check_options, engine_config
from lpo_ray.errors import ConfigError

ZERO = "zero_optimization"


@pytest.mark.parametrize(
    "options",
    [
        {},
        {ZERO: {"offload_optimizer": {"device": "cpu"}}},
        {ZERO: {"offload_param": {"device": "nvme", "nvme_path": "/ssd"}}},
        {ZERO: {"zero_hpz_partition_size": 8}},  # a copy of the weights in each node: gathers cross none
        {ZERO: {"stage": 3, "sub_group_size": 1e9, "zero_quantized_weights": False}},
        {"comms_logger": {"enabled": True}, "wall_clock_breakdown": True, "flops_profiler": {"enabled": True}},
        {"aio": {"block_size": 1048576}, "steps_per_print": 10},
    ],
    ids=str,
)
def test_options_of_deepspeed_are_taken(options: dict[str, Any]) -> None:
    check_options(options)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({ZERO: {"stage": 2}}, "learner.deepspeed.zero_optimization.stage is 2; expected 3"),
        ({ZERO: {"stage": "3"}}, "learner.deepspeed.zero_optimization.stage is '3'; expected 3"),
        ({ZERO: {"stage": True}}, "learner.deepspeed.zero_optimization.stage is True; expected 3"),
        ({ZERO: {"nonsense": 1}}, "nonsense: Extra inputs are not permitted"),
        ({ZERO: {"offload_optimiser": {"device": "cpu"}}}, "offload_optimiser: Extra inputs"),
        ({ZERO: {"offload_optimizer": {"device": "gpu"}}}, "offload_optimizer.device: Input should be 'none', 'cpu'"),
        ({ZERO: {"reduce_bucket_size": "many"}}, "reduce_bucket_size: "),
        ({ZERO: 3}, "learner.deepspeed.zero_optimization is 3; expected a mapping"),
        ({ZERO: {"zenflow": {"topk_ratio": 0.1}}}, "zenflow is .*; expected none: some updates"),
        ({ZERO: {"zero_quantized_gradients": True}}, "zero_quantized_gradients is True; expected false: gradients"),
        ({ZERO: {"offload_optimizer": {"device": "cpu", "super_offload": True}}}, "super_offload is True; expected"),
        (
            {"offload_optimizer": {"device": "cpu"}},
            "learner.deepspeed.offload_optimizer is .*; expected one of zero_op",
        ),
        ({"compression_training": {}}, "learner.deepspeed.compression_training is {}; expected one of zero_opt"),
        ({"gradient_clipping": 2.0}, "learner.deepspeed.gradient_clipping is 2.0, which is set by learner.gradient_c"),
        ({"fp16": {"enabled": True}}, "learner.deepspeed.fp16 is .*, which is set by model.dtype; leave it out"),
        ({"comms_logger": 3}, "learner.deepspeed is {'comms_logger': 3}, which DeepSpeed refuses"),
    ],
)
def test_what_would_be_refused_later_or_changes_numbers_is_refused_before(
    options: dict[str, Any], expected: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ConfigError, match=expected):
        check_options(options)
    assert capfd.readouterr().out == ""


@pytest.mark.parametrize("key", OURS)
def test_what_we_set_is_refused_by_name(key: str) -> None:
    with pytest.raises(ConfigError, match=f"learner.deepspeed.{key} is 1, which is set by "):
        check_options({key: 1})


@pytest.mark.parametrize("key", ZERO_OURS)
def test_what_breaks_exactness_is_refused_by_name(key: str) -> None:
    with pytest.raises(ConfigError, match=rf"zero_optimization\.{key} is 2; expected "):
        check_options({ZERO: {key: 2}})


def test_defaults_follow_the_device_and_options_prevail_over_them() -> None:
    def zero(world_size: int, *, on_gpu: bool, **options: object) -> dict[str, object]:
        return engine_config({ZERO: options}, "bfloat16", world_size=world_size, on_gpu=on_gpu)[ZERO]

    threshold = "stage3_param_persistence_threshold"
    assert zero(2, on_gpu=True) == {"stage": 3}  # all else is DeepSpeed's own
    assert zero(2, on_gpu=False) == {"stage": 3, threshold: 0, "reduce_bucket_size": 20_000_000}
    assert zero(1, on_gpu=True) == {"stage": 3, threshold: sys.maxsize}  # one rank shards nothing
    assert zero(2, on_gpu=True, **{threshold: 7})[threshold] == 7
    made = engine_config({"steps_per_print": 5}, "bfloat16", world_size=2, on_gpu=True, gradient_clip=0.5)
    assert made["steps_per_print"] == 5 and made["gradient_clipping"] == 0.5 and made["bf16"] == {"enabled": True}
    assert made["data_types"] == {"grad_accum_dtype": "fp32"} and made["communication_data_type"] == "fp32"
