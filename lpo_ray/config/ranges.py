"""The range of each value on its own. Every message names the key, its value and what was expected."""

from __future__ import annotations

import re
from collections.abc import Mapping
from operator import attrgetter
from typing import Any, NamedTuple

from lpo_ray.config.schema import Config
from lpo_ray.errors import ConfigError
from lpo_ray.learner.lr_schedule import SCHEDULES
from lpo_ray.policy.lora import RANKS

POSITIVE = (
    "run.steps",
    "model.warmup.steps", "model.warmup.batch_size", "model.lora.alpha",
    "sampling.group_size", "sampling.max_tokens", "sampling.max_turns", "sampling.max_conversation_tokens",
    "objective.temperature_floor",
    "pipeline.groups_per_step", "pipeline.updates_per_step", "pipeline.tokens_per_micro_batch", "pipeline.max_attempts",
    "pipeline.max_gib",
    "rollout.num_workers", "rollout.max_num_seqs", "rollout.threads", "rollout.tensor_parallel_size",
    "rollout.max_model_len", "rollout.kv_cache_gib", "rollout.silence_seconds", "rollout.drain_seconds",
    "environment.processes", "environment.turn_seconds", "environment.conversation_seconds", "environment.memory_mib",
    "environment.max_message_chars",
    "verifier.num_processes", "verifier.deadline_seconds", "verifier.slow_seconds", "verifier.recycle_after",
    "verifier.memory_mib", "verifier.http.concurrency", "verifier.judge.scale", "verifier.sandbox.memory_mib",
    "verifier.sandbox.processes", "verifier.sandbox.files_mib", "verifier.sandbox.output_kib",
    "learner.world_size", "learner.threads", "learner.gradient_clip", "learner.silence_seconds",
    "learner.max_skipped_updates",
    "transport.bucket_mib", "transport.prepare_seconds", "transport.join_seconds", "transport.transfer_seconds",
    "evaluation.samples_per_prompt",
    "supervision.window_seconds", "supervision.start_seconds", "supervision.start_silence_seconds",
    "cluster.placement_seconds", "cluster.object_store_gib",
    "simulation.mean_tokens", "simulation.decode_rate", "simulation.train_rate",
)  # fmt: skip

NOT_NEGATIVE = (
    "sampling.top_k",
    "objective.reference_kl", "objective.ddof",
    "pipeline.max_staleness", "pipeline.oversample_groups", "pipeline.reused_groups_per_step", "pipeline.refill_groups",
    "rollout.autoscale.min", "rollout.autoscale.max",
    "verifier.max_retries", "verifier.cached_verdicts", "verifier.overlong.penalty",
    "learner.warmup_steps",
    "evaluation.num_prompts", "evaluation.every",
    "checkpoint.every", "checkpoint.keep",
    "telemetry.stall_seconds", "telemetry.entropy_alarm", "telemetry.samples_every", "telemetry.measured_groups",
    "supervision.max_restarts", "supervision.backoff_seconds",
    "simulation.length_variation", "simulation.anchor_share", "simulation.verify_seconds", "simulation.publish_seconds",
    "simulation.environment_seconds",
    "simulation.hours_between_failures", "simulation.restart_seconds",
)  # fmt: skip


LARGEST = 10**9
"""largest value of every key that has no bound of its own: far beyond what a machine has, and far from overflow"""


class Bounds(NamedTuple):
    """Range of one key, both ends included unless it says otherwise."""

    low: float
    high: float
    above_low: bool = False
    below_high: bool = False
    what: str = ""
    """what it counts, for messages"""

    def __contains__(self, value: object) -> bool:
        """Tell whether ``value`` is a number of the range."""
        assert isinstance(value, int | float)
        least = value > self.low if self.above_low else value >= self.low
        return least and (value < self.high if self.below_high else value <= self.high)

    def __str__(self) -> str:
        """Write it as messages do."""
        ends = f"{'(' if self.above_low else '['}{self.low:,}, {self.high:,}{')' if self.below_high else ']'}"
        return f"{self.what}in {ends}"


SEED = Bounds(0, 2**63 - 1)
RATE = Bounds(0, 10, above_low=True)
CPUS = Bounds(0, 10_000)
"""of a processor's or GPU's share, too"""
SHARE = Bounds(0, 1, above_low=True)
INNER = Bounds(0, 1, above_low=True, below_high=True)
AT_LEAST_A_HUNDREDTH = Bounds(0.01, 100)
"""of a sampling temperature: vLLM raises a lower one to 0.01 by itself, and the learner would divide by another"""
BOUNDS: Mapping[str, Bounds] = {
    "run.seed": SEED, "model.warmup.seed": SEED,
    "model.lora.rank": Bounds(1, RANKS[-1], what="a whole number "), "model.lora.dropout": Bounds(0, 1),
    "model.warmup.lr": RATE, "learner.lr": RATE, "learner.weight_decay": Bounds(0, 10),
    "sampling.temperature": AT_LEAST_A_HUNDREDTH, "sampling.top_p": SHARE,
    "sampling.min_p": Bounds(0, 1, below_high=True),
    "objective.stale.min_ess": Bounds(0, 1, what="a share of K, "),
    "objective.stale.max_drift": Bounds(0, LARGEST, above_low=True, what="a number of nats "),
    "objective.importance_cap": Bounds(1, LARGEST),
    "pipeline.max_unscored_share": Bounds(0, 1, what="a share of the prompts, "),
    "objective.token_clip.low": INNER, "objective.token_clip.high": Bounds(0, LARGEST, above_low=True),
    "rollout.autoscale.target_learner_wait": INNER, "rollout.gpu_memory_utilization": SHARE,
    "rollout.cpus_per_worker": CPUS, "rollout.gpus_per_worker": CPUS, "learner.cpus_per_rank": CPUS,
    "learner.gpus_per_rank": CPUS,
    "transport.tolerance": RATE, "evaluation.pass_reward": Bounds(-LARGEST, LARGEST),
    "simulation.mean_turns": Bounds(1, LARGEST),
}  # fmt: skip
"""keys with bounds of their own; beyond them a value cannot be meant"""
DTYPES = ("float32", "bfloat16")


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
        (POSITIVE + NOT_NEGATIVE, lambda value: value <= LARGEST, f"{LARGEST:,} at most"),
    ):
        for key in keys:
            value = value_at(config, key)
            require(value is None or in_range(value), key, value, expected)
    for key, bounds in BOUNDS.items():
        value = value_at(config, key)
        require(value is None or value in bounds, key, value, str(bounds))
    temperature = config.evaluation.temperature
    in_range = temperature == 0 or temperature in AT_LEAST_A_HUNDREDTH
    require(in_range, "evaluation.temperature", temperature, f"0, or {AT_LEAST_A_HUNDREDTH}")
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
        require(dtype in DTYPES, key, dtype, f"{' or '.join(DTYPES)}; float16 would need its losses scaled")
    ks = config.evaluation.ks
    largest = config.evaluation.samples_per_prompt
    require(bool(ks) and all(1 <= k <= largest for k in ks), "evaluation.ks", ks, f"1..samples_per_prompt ({largest})")
    stops = config.sampling.stop_token_ids
    require(all(0 <= token <= LARGEST for token in stops), "sampling.stop_token_ids", stops, "token ids, from 0 on")
