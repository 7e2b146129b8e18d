"""The range of each value on its own. Every message names the key, its value and what was expected."""

from __future__ import annotations

import re
from operator import attrgetter
from typing import Any

from lpo_ray.config.schema import Config
from lpo_ray.errors import ConfigError
from lpo_ray.learner.lr_schedule import SCHEDULES

POSITIVE = (
    "run.steps",
    "model.warmup.steps", "model.warmup.batch_size",
    "sampling.group_size", "sampling.max_tokens",
    "objective.temperature_floor",
    "pipeline.groups_per_step", "pipeline.updates_per_step", "pipeline.tokens_per_micro_batch", "pipeline.max_attempts",
    "pipeline.lease_seconds", "pipeline.max_gib",
    "rollout.num_workers", "rollout.max_num_seqs", "rollout.threads", "rollout.tensor_parallel_size",
    "rollout.kv_cache_gib", "rollout.deadline_seconds", "rollout.drain_seconds",
    "verifier.num_processes", "verifier.deadline_seconds", "verifier.slow_seconds", "verifier.recycle_after",
    "verifier.memory_mib", "verifier.http.concurrency", "verifier.judge.scale", "verifier.sandbox.memory_mib",
    "verifier.sandbox.processes", "verifier.sandbox.files_mib", "verifier.sandbox.output_kib",
    "learner.world_size", "learner.threads", "learner.lr", "learner.gradient_clip", "learner.deadline_seconds",
    "learner.max_skipped_updates",
    "transport.bucket_mib", "transport.prepare_seconds", "transport.transfer_seconds",
    "evaluation.samples_per_prompt",
    "supervision.window_seconds",
    "cluster.placement_seconds", "cluster.object_store_gib",
    "simulation.mean_tokens", "simulation.decode_rate", "simulation.train_rate",
)  # fmt: skip

NOT_NEGATIVE = (
    "run.seed",
    "sampling.top_k",
    "objective.reference_kl", "objective.ddof",
    "pipeline.max_staleness", "pipeline.oversample_groups", "pipeline.reused_groups_per_step", "pipeline.refill_groups",
    "rollout.autoscale.min", "rollout.autoscale.max",
    "verifier.max_retries", "verifier.cached_verdicts", "verifier.overlong.penalty",
    "learner.warmup_steps", "learner.weight_decay",
    "evaluation.num_prompts", "evaluation.every", "evaluation.temperature",
    "checkpoint.every", "checkpoint.keep",
    "telemetry.stall_seconds", "telemetry.entropy_alarm", "telemetry.samples_every", "telemetry.measured_groups",
    "supervision.max_restarts", "supervision.backoff_seconds",
    "simulation.length_variation", "simulation.anchor_share", "simulation.verify_seconds", "simulation.publish_seconds",
    "simulation.hours_between_failures", "simulation.restart_seconds",
)  # fmt: skip


def require(condition: bool, key: str, value: object, expected: str) -> None:
    """Raise ConfigError unless ``condition`` holds."""
    if not condition:
        raise ConfigError(f"{key} is {value!r}; expected {expected}")


def value_at(config: Config, key: str) -> Any:  # noqa: ANN401 - of the key's own type
    """Look up ``key``, such as "run.steps"."""
    return attrgetter(key)(config)


def check_ranges(config: Config) -> None:
    """Raise ConfigError for the first value that is out of its range; null is in any."""
    for keys, in_range, expected in (
        (POSITIVE, lambda value: value > 0, "a number above 0"),
        (NOT_NEGATIVE, lambda value: value >= 0, "0 or more"),
    ):
        for key in keys:
            value = value_at(config, key)
            require(value is None or in_range(value), key, value, expected)
    require(config.sampling.temperature > 0, "sampling.temperature", config.sampling.temperature, "above 0 in training")
    require(0 < config.sampling.top_p <= 1, "sampling.top_p", config.sampling.top_p, "in (0, 1]")
    require(0 <= config.sampling.min_p < 1, "sampling.min_p", config.sampling.min_p, "in [0, 1)")
    share = config.pipeline.max_unscored_share
    require(0 <= share <= 1, "pipeline.max_unscored_share", share, "a share of the prompts, in [0, 1]")
    objective = config.objective
    stale, clip, cap = objective.stale, objective.token_clip, objective.importance_cap
    require(0 <= stale.min_ess <= 1, "objective.stale.min_ess", stale.min_ess, "a share of K, in [0, 1]")
    require(stale.max_drift > 0, "objective.stale.max_drift", stale.max_drift, "a number of nats above 0")
    require(cap is None or cap >= 1, "objective.importance_cap", cap, "a number of 1 or more, or null")
    require(0 < clip.low < 1, "objective.token_clip.low", clip.low, "in (0, 1)")
    require(clip.high > 0, "objective.token_clip.high", clip.high, "above 0")
    schedule = config.learner.lr_schedule
    require(schedule in SCHEDULES, "learner.lr_schedule", schedule, f"one of {', '.join(SCHEDULES)}")
    betas = config.learner.betas
    require(len(betas) == 2 and all(0 <= b < 1 for b in betas), "learner.betas", betas, "two numbers in [0, 1)")
    name = config.run.name
    require(
        re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name) is not None,
        "run.name",
        name,
        "letters, digits, '.', '_', '-'",
    )
    for key, dtype in (("model.dtype", config.model.dtype), ("rollout.dtype", config.rollout.dtype)):
        require(dtype in ("float32", "bfloat16"), key, dtype, "float32 or bfloat16")
    ks = config.evaluation.ks
    largest = config.evaluation.samples_per_prompt
    require(bool(ks) and all(1 <= k <= largest for k in ks), "evaluation.ks", ks, f"1..samples_per_prompt ({largest})")
