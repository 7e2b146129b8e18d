"""DeepSpeed's configuration: what we set in it, what learner.deepspeed may add, and what is refused by name."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from lpo_ray.errors import ConfigError
from lpo_ray.learner.settings import zero_defaults

ZERO = "zero_optimization"
DIAGNOSTIC = ("aio", "comms_logger", "flops_profiler", "wall_clock_breakdown", "memory_breakdown", "dump_state",
              "steps_per_print", "disable_python_gc", "timers", "log_level")  # fmt: skip
"""keys of DeepSpeed that measure, or say how files are read: they change no number"""
OURS = {
    "train_batch_size": "pipeline.groups_per_step",
    "train_micro_batch_size_per_gpu": "pipeline.tokens_per_micro_batch",
    "gradient_accumulation_steps": "pipeline.tokens_per_micro_batch",
    "managed_gradient_accumulation": "the loop, which knows when an update is complete",
    "gradient_clipping": "learner.gradient_clip",
    "optimizer": "learner.betas and learner.weight_decay",
    "scheduler": "learner.lr_schedule",
    "bf16": "model.dtype",
    "fp16": "model.dtype",
    "amp": "model.dtype",
    "torch_autocast": "model.dtype",
    "data_types": "us: gradients are added up in fp32",
    "communication_data_type": "us: gradients are reduced in fp32",
    "seq_parallel_communication_data_type": "us: gradients are reduced in fp32",
    "zero_allow_untested_optimizer": "us: the optimizer is torch's AdamW",
    "zero_force_ds_cpu_optimizer": "us: the optimizer is torch's AdamW",
    "activation_checkpointing": "learner.gradient_checkpointing",
    "checkpoint": "checkpoint.every",
    "gradient_predivide_factor": "us: denominators are global, and known before the backward pass",
    "prescale_gradients": "us: denominators are global, and known before the backward pass",
}
"""keys that are set already -> by what"""
ZERO_OURS = {
    "stage": "3: checkpoints and transports take the weights from the shards of ZeRO-3",
    "zero_quantized_weights": "false: the forward would have rounded weights, which no engine has",
    "zero_quantized_nontrainable_weights": "false: the reference would have rounded weights",
    "zero_quantized_gradients": "false: gradients would be rounded on their way",
    "zenflow": "none: some updates would come later than others",
    "elastic_checkpoint": "false: checkpoints are ours, and fit any number of ranks",
    "load_from_fp32_weights": "its default: checkpoints are ours",
    "pipeline_loading_checkpoint": "false: checkpoints are ours",
    "stage3_gather_16bit_weights_on_model_save": "false: the policy's folder is written by us",
    "stage3_gather_fp16_weights_on_model_save": "false: the policy's folder is written by us",
}
"""keys of zero_optimization that are refused -> what is expected, and why"""


def engine_config(
    options: Mapping[str, Any], dtype: str, *, world_size: int, on_gpu: bool, gradient_clip: float = 0.0
) -> dict[str, Any]:
    """Make the configuration of an engine. ``options``: the checked value of learner.deepspeed."""
    return {
        "steps_per_print": 10**9,
        **{key: value for key, value in options.items() if key != ZERO},
        "train_micro_batch_size_per_gpu": 1,
        "managed_gradient_accumulation": False,  # the caller says when an update is complete
        "gradient_clipping": gradient_clip,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "bf16": {"enabled": dtype == "bfloat16"},  # fp32 master weights are DeepSpeed's own
        # DeepSpeed's default is the model's dtype: in bf16 a sum over micro-batches and ranks has 2 to 3 digits.
        "data_types": {"grad_accum_dtype": "fp32"},
        "communication_data_type": "fp32",
        ZERO: {"stage": 3, **zero_defaults(world_size, on_gpu=on_gpu), **options.get(ZERO, {})},
    }


def check_options(options: Mapping[str, Any]) -> None:
    """Check a value of learner.deepspeed. Raises ConfigError."""
    for key, value in options.items():
        if key in OURS:
            raise ConfigError(f"learner.deepspeed.{key} is {value!r}, which is set by {OURS[key]}; leave it out")
        if key != ZERO and key not in DIAGNOSTIC:
            raise ConfigError(
                f"learner.deepspeed.{key} is {value!r}; expected one of {', '.join((ZERO, *DIAGNOSTIC))}: no other "
                "section of DeepSpeed is known to leave the gradient as it is"
            )
    zero = options.get(ZERO, {})
    if not isinstance(zero, Mapping):
        raise ConfigError(f"learner.deepspeed.{ZERO} is {zero!r}; expected a mapping in braces")
    for key, expected in ZERO_OURS.items():
        value = zero.get(key)
        if (value != 3 or isinstance(value, bool)) if key == "stage" and key in zero else bool(value):
            raise ConfigError(f"learner.deepspeed.{ZERO}.{key} is {value!r}; expected {expected}")
    optimizer = zero.get("offload_optimizer")
    if isinstance(optimizer, Mapping) and optimizer.get("super_offload"):
        raise ConfigError(
            f"learner.deepspeed.{ZERO}.offload_optimizer.super_offload is {optimizer['super_offload']!r}; expected "
            "false: it has an optimizer of its own"
        )
    _ask_deepspeed(options, zero)


def _ask_deepspeed(options: Mapping[str, Any], zero: Mapping[str, Any]) -> None:
    """Have DeepSpeed's own models of its configuration check the values."""
    logging.disable(logging.WARNING)  # the import and deprecated options are told on standard output
    try:
        from deepspeed.runtime.config import DeepSpeedConfig, DeepSpeedConfigError
        from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
        from pydantic import ValidationError

        try:
            DeepSpeedZeroConfig(**{**zero, "stage": 3})
        except ValidationError as error:
            reasons = "; ".join(f"{'.'.join(map(str, found['loc']))}: {found['msg']}" for found in error.errors())
            raise _refused(f"learner.deepspeed.{ZERO}", zero, reasons) from error
        except (TypeError, ValueError, AssertionError) as error:
            raise _refused(f"learner.deepspeed.{ZERO}", zero, str(error)) from error
        try:
            DeepSpeedConfig(engine_config(options, "float32", world_size=1, on_gpu=True))
        except (TypeError, ValueError, AssertionError, AttributeError, KeyError, DeepSpeedConfigError) as error:
            raise _refused("learner.deepspeed", options, " ".join(str(error).split())) from error
    finally:
        logging.disable(logging.NOTSET)


def _refused(key: str, value: Mapping[str, Any], reason: str) -> ConfigError:
    return ConfigError(f"{key} is {dict(value)}, which DeepSpeed refuses ({reason}); expected options as it has them")
