"""Properties of an engine that follow from the section ``rollout`` alone, and combinations that cannot be meant."""

from __future__ import annotations

import math

from lpo_ray.config.schema import Config, EngineKind, RolloutConfig
from lpo_ray.errors import ConfigError

SPLITS = ("pipeline_parallel_size", "prefill_context_parallel_size")
"""entries of rollout.engine_args that multiply the processes of an engine, beside rollout.tensor_parallel_size"""
UTILIZATION = 0.85
"""share of a GPU's memory for weights and KV cache: new weights need some of the rest while they arrive"""
LESS_PRECISE = ("quantization", "kv_cache_dtype")
"""entries of rollout.engine_args with which an engine computes other log-probs than its learner"""


def engine_processes(rollout: RolloutConfig) -> int:
    """Count the processes of one engine, which have a GPU each where there are any."""
    return rollout.tensor_parallel_size * math.prod(_split(rollout, name) for name in SPLITS)


def pipeline_stages(rollout: RolloutConfig) -> int:
    """Count the parts into which an engine's layers are cut."""
    return _split(rollout, "pipeline_parallel_size")


def is_asynchronous(rollout: RolloutConfig) -> bool:
    """Whether engines are vLLM's AsyncLLM: on GPUs, and where one has several processes."""
    if rollout.engine is EngineKind.auto:
        return rollout.gpus_per_worker > 0 or engine_processes(rollout) > 1
    return rollout.engine is EngineKind.asynchronous


def memory_utilization(rollout: RolloutConfig) -> float:
    """Return the share of a GPU's memory that an engine may take, new weights on their way left out."""
    if rollout.gpu_memory_utilization is not None:
        return rollout.gpu_memory_utilization
    return UTILIZATION * min(1.0, rollout.gpus_per_worker or 1.0)


def less_precise(rollout: RolloutConfig) -> str:
    """Name the entries of rollout.engine_args that change an engine's log-probs, as they are set; empty: none does."""
    given = ((name, rollout.engine_args.get(name)) for name in LESS_PRECISE)
    return ", ".join(f"{name}={value}" for name, value in given if value not in (None, "auto", rollout.dtype))


def shares_gpus(config: Config) -> bool:
    """Whether each process of an engine has a share of a GPU, and a rank has one too."""
    return 0 < config.learner.gpus_per_rank < 1 and 0 < config.rollout.gpus_per_worker < 1


def check_engine_section(config: Config) -> None:
    """Raise ConfigError for an engine whose processes and GPUs do not go together."""
    rollout = config.rollout
    processes, gpus = engine_processes(rollout), rollout.gpus_per_worker
    named = f"rollout.tensor_parallel_size={rollout.tensor_parallel_size}" + "".join(
        f", engine_args.{name}={_split(rollout, name)}" for name in SPLITS if name in rollout.engine_args
    )
    if gpus and gpus != processes and not (gpus < 1 and (processes == 1 or shares_gpus(config))):
        raise ConfigError(
            f"rollout.gpus_per_worker is {gpus:g} with {named}: each of the {processes} processes of an engine needs a "
            f"GPU, all on one node; set rollout.gpus_per_worker={processes}"
            + (f", or rollout.tensor_parallel_size={gpus:g}" if processes == 1 and gpus == int(gpus) else "")
        )
    if rollout.engine is EngineKind.inprocess and processes > 1:
        raise ConfigError(
            f"rollout.engine=inprocess with {named}: the engine in the worker's own process has no others; expected "
            "rollout.engine=auto or asynchronous"
        )


def indivisible(rollout: RolloutConfig, heads: int, kv_heads: int, layers: int) -> str | None:
    """Say why vLLM does not cut a model of so many attention heads and layers into an engine's parts; None: it does."""
    parts, stages = rollout.tensor_parallel_size, pipeline_stages(rollout)
    if heads % parts:
        return (
            f"rollout.tensor_parallel_size is {parts}, which does not divide the model's {heads} attention heads; vLLM "
            "refuses that"
        )
    if kv_heads % parts and parts % kv_heads:
        return (
            f"rollout.tensor_parallel_size is {parts} for a model with {kv_heads} key-value heads; vLLM expects a "
            "divisor or a multiple of them"
        )
    if stages > layers:
        return f"rollout.engine_args.pipeline_parallel_size is {stages} for a model of {layers} layers; expected fewer"
    return None


def _split(rollout: RolloutConfig, name: str) -> int:
    value = rollout.engine_args.get(name, 1)
    if type(value) is not int or value < 1:
        raise ConfigError(f"rollout.engine_args.{name} is {value!r}; expected a whole number, 1 or more")
    return value
