"""What the types cannot say: ranges and combinations. Every rule names the key, its value and what to do."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence

from lpo_ray.common.plugins import UnknownName, resolve
from lpo_ray.config.schema import (
    Attention,
    Behaviour,
    ChangeConfig,
    ClipCentre,
    Config,
    EqualRewards,
    LengthNorm,
    ObjectiveConfig,
    StaleConfig,
    StalePolicy,
)
from lpo_ray.config.verifier import check_verifier_section
from lpo_ray.errors import ConfigError
from lpo_ray.learner.lr_schedule import SCHEDULES
from lpo_ray.objective import DIVERGENCES, TEMPERATURES, TOKEN_CLIPS


def validate(config: Config) -> None:
    """Check the whole configuration without touching disk, network or hardware. Raises ConfigError."""
    _ranges(config)
    check_verifier_section(config, _require)
    _objective(config)
    _combinations(config)


def warnings(config: Config) -> list[str]:
    """What a valid configuration does that its author may not have meant, one sentence each: shown by --dry-run and at
    the start of a run.
    """
    return [*_warn_of_behaviour(config), *_warn_of_what_has_no_effect(config)]


def _warn_of_behaviour(config: Config) -> list[str]:
    objective, pipeline = config.objective, config.pipeline
    found = []
    if objective.behaviour is Behaviour.recomputed:
        weighted = objective.importance_cap is not None
        if pipeline.max_staleness:
            found.append(
                f"pipeline.max_staleness={pipeline.max_staleness} with objective.behaviour=recomputed: responses of "
                "older weights count as the current policy's and targets have no anchor"
                + (", only their tokens are weighted (objective.importance_cap)" if weighted else "")
                + "; objective.behaviour=engine has the anchor"
            )
        if truncated := _truncated(config):
            found.append(
                f"{truncated} cuts the support of the sampling distribution, and objective.behaviour=recomputed scores "
                "the responses under the whole one: the policy that is trained is not quite the one that sampled"
            )
        if config.model.dtype != config.rollout.dtype and not weighted:
            found.append(
                f"rollout.dtype={config.rollout.dtype} with model.dtype={config.model.dtype} and "
                "objective.behaviour=recomputed: the engine's log-probs differ from the learner's and nothing corrects "
                "for it; objective.behaviour=engine does, and so does objective.importance_cap"
            )
    if pipeline.equal_rewards is EqualRewards.drop and (pipeline.max_staleness or pipeline.updates_per_step > 1):
        found.append(
            "pipeline.equal_rewards=drop off-policy or with several updates a step: groups of equal rewards would pull "
            "the policy back to the anchor, and that is dropped too"
        )
    clip = objective.token_clip
    if objective.behaviour is Behaviour.engine and clip.kind == "ppo_ratio" and clip.around is ClipCentre.anchor:
        found.append(
            "objective.token_clip.kind=ppo_ratio with objective.behaviour=engine and token_clip.around=anchor: its "
            "ratio is to the policy before the step, so stale tokens are not weighted; set "
            "token_clip.around=behaviour, or behaviour=recomputed with objective.importance_cap"
        )
    if (
        objective.behaviour is Behaviour.engine
        and objective.length_norm is LengthNorm.sum
        and (objective.stale.policy is not StalePolicy.keep)
    ):
        found.append(
            f"objective.length_norm=sum with objective.stale.policy={objective.stale.policy.value}: summed log-ratios "
            "of long responses are far apart after a small drift, so most groups may fall below objective.stale.min_ess"
        )
    return found


def _warn_of_what_has_no_effect(config: Config) -> list[str]:
    objective, found = config.objective, []
    if objective.behaviour is Behaviour.recomputed and objective.stale != StaleConfig():
        found.append(
            "objective.stale has no effect with objective.behaviour=recomputed, which measures no drift before the "
            "update; set objective.behaviour=engine"
        )
    if objective.reference_path is not None and not objective.reference_kl:
        found.append("objective.reference_path has no effect while objective.reference_kl=0")
    best, evaluation = config.checkpoint.best, config.evaluation
    if best is not None and best.startswith("pass@") and not evaluation.every:
        found.append(
            f"checkpoint.best={best} with evaluation.every=0: the policy is evaluated before and after the run only, "
            "so no checkpoint of the run has a value; set evaluation.every"
        )
    return found


def _truncated(config: Config) -> str:
    """The sampling options that cut the support, as they are set; empty when none does."""
    sampling = config.sampling
    options = (("top_p", sampling.top_p, 1.0), ("top_k", sampling.top_k, 0), ("min_p", sampling.min_p, 0.0))
    return ", ".join(f"sampling.{name}={value}" for name, value, off in options if value != off)


def _require(condition: bool, key: str, value: object, expected: str) -> None:
    if not condition:
        raise ConfigError(f"{key} is {value!r}; expected {expected}")


def _ranges(config: Config) -> None:
    positive = {
        "run.steps": config.run.steps,
        "sampling.group_size": config.sampling.group_size,
        "sampling.max_tokens": config.sampling.max_tokens,
        "pipeline.groups_per_step": config.pipeline.groups_per_step,
        "pipeline.updates_per_step": config.pipeline.updates_per_step,
        "pipeline.tokens_per_micro_batch": config.pipeline.tokens_per_micro_batch,
        "pipeline.max_attempts": config.pipeline.max_attempts,
        "pipeline.lease_seconds": config.pipeline.lease_seconds,
        "pipeline.max_gib": config.pipeline.max_gib,
        "rollout.num_workers": config.rollout.num_workers,
        "rollout.max_num_seqs": config.rollout.max_num_seqs,
        "rollout.threads": config.rollout.threads,
        "rollout.tensor_parallel_size": config.rollout.tensor_parallel_size,
        "rollout.kv_cache_gib": config.rollout.kv_cache_gib,
        "rollout.deadline_seconds": config.rollout.deadline_seconds,
        "rollout.drain_seconds": config.rollout.drain_seconds,
        "supervision.window_seconds": config.supervision.window_seconds,
        "cluster.placement_seconds": config.cluster.placement_seconds,
        "learner.world_size": config.learner.world_size,
        "learner.threads": config.learner.threads,
        "learner.lr": config.learner.lr,
        "learner.gradient_clip": config.learner.gradient_clip,
        "learner.deadline_seconds": config.learner.deadline_seconds,
        "learner.max_skipped_updates": config.learner.max_skipped_updates,
        "transport.bucket_mib": config.transport.bucket_mib,
        "transport.prepare_seconds": config.transport.prepare_seconds,
        "transport.transfer_seconds": config.transport.transfer_seconds,
        "evaluation.samples_per_prompt": config.evaluation.samples_per_prompt,
        "objective.temperature_floor": config.objective.temperature_floor,
        "model.warmup.steps": config.model.warmup.steps,
        "model.warmup.batch_size": config.model.warmup.batch_size,
        "cluster.object_store_gib": config.cluster.object_store_gib,
        "simulation.mean_tokens": config.simulation.mean_tokens,
        "simulation.decode_rate": config.simulation.decode_rate,
        "simulation.train_rate": config.simulation.train_rate,
    }
    for key, value in positive.items():
        _require(value > 0, key, value, "a number above 0")
    not_negative = {
        "run.seed": config.run.seed,
        "objective.reference_kl": config.objective.reference_kl,
        "learner.warmup_steps": config.learner.warmup_steps,
        "telemetry.stall_seconds": config.telemetry.stall_seconds,
        "telemetry.entropy_alarm": config.telemetry.entropy_alarm,
        "pipeline.max_staleness": config.pipeline.max_staleness,
        "pipeline.oversample_groups": config.pipeline.oversample_groups,
        "pipeline.reused_groups_per_step": config.pipeline.reused_groups_per_step,
        "pipeline.refill_groups": config.pipeline.refill_groups or 0,
        "sampling.top_k": config.sampling.top_k,
        "rollout.autoscale.min": config.rollout.autoscale.min,
        "rollout.autoscale.max": config.rollout.autoscale.max,
        "supervision.max_restarts": config.supervision.max_restarts,
        "supervision.backoff_seconds": config.supervision.backoff_seconds,
        "learner.weight_decay": config.learner.weight_decay,
        "evaluation.num_prompts": config.evaluation.num_prompts,
        "evaluation.every": config.evaluation.every,
        "evaluation.temperature": config.evaluation.temperature,
        "checkpoint.every": config.checkpoint.every,
        "checkpoint.keep": config.checkpoint.keep,
        "telemetry.samples_every": config.telemetry.samples_every,
        "telemetry.measured_groups": config.telemetry.measured_groups,
        "simulation.length_variation": config.simulation.length_variation,
        "simulation.anchor_share": config.simulation.anchor_share,
        "simulation.verify_seconds": config.simulation.verify_seconds,
        "simulation.publish_seconds": config.simulation.publish_seconds,
        "simulation.hours_between_failures": config.simulation.hours_between_failures,
        "simulation.restart_seconds": config.simulation.restart_seconds,
        "objective.ddof": config.objective.ddof,
    }
    for key, value in not_negative.items():
        _require(value >= 0, key, value, "0 or more")
    _require(
        config.sampling.temperature > 0, "sampling.temperature", config.sampling.temperature, "above 0 in training"
    )
    _require(0 < config.sampling.top_p <= 1, "sampling.top_p", config.sampling.top_p, "in (0, 1]")
    _require(0 <= config.sampling.min_p < 1, "sampling.min_p", config.sampling.min_p, "in [0, 1)")
    schedule = config.learner.lr_schedule
    _require(schedule in SCHEDULES, "learner.lr_schedule", schedule, f"one of {', '.join(SCHEDULES)}")
    betas = config.learner.betas
    _require(len(betas) == 2 and all(0 <= b < 1 for b in betas), "learner.betas", betas, "two numbers in [0, 1)")
    name = config.run.name
    _require(
        re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name) is not None,
        "run.name",
        name,
        "letters, digits, '.', '_', '-'",
    )
    for key, dtype in (("model.dtype", config.model.dtype), ("rollout.dtype", config.rollout.dtype)):
        _require(dtype in ("float32", "bfloat16"), key, dtype, "float32 or bfloat16")
    ks = config.evaluation.ks
    largest = config.evaluation.samples_per_prompt
    _require(bool(ks) and all(1 <= k <= largest for k in ks), "evaluation.ks", ks, f"1..samples_per_prompt ({largest})")


def _known(name: str, table: Mapping[str, Callable[..., object]], key: str) -> None:
    try:
        resolve(name, table, key)
    except UnknownName as error:
        raise ConfigError(str(error)) from error


def _objective(config: Config) -> None:
    objective = config.objective
    _point(objective, "objective")
    _schedule(objective.schedule, config.run.steps)
    _known(objective.token_clip.kind, TOKEN_CLIPS, "objective.token_clip.kind")
    tau = objective.target_temperature
    stale, cap = objective.stale, objective.importance_cap
    _require(0 <= stale.min_ess <= 1, "objective.stale.min_ess", stale.min_ess, "a share of K, in [0, 1]")
    _require(stale.max_drift > 0, "objective.stale.max_drift", stale.max_drift, "a number of nats above 0")
    _require(cap is None or cap >= 1, "objective.importance_cap", cap, "a number of 1 or more, or null")
    clip = objective.token_clip
    _require(0 < clip.low < 1, "objective.token_clip.low", clip.low, "in (0, 1)")
    _require(clip.high > 0, "objective.token_clip.high", clip.high, "above 0")
    size = config.sampling.group_size
    if isinstance(tau, str) and tau == "group_std" and size > 1:
        _require(objective.ddof < size, "objective.ddof", objective.ddof, f"below sampling.group_size ({size})")


def _point(point: ObjectiveConfig | ChangeConfig, key: str) -> None:
    if point.divergence is not None:
        _known(point.divergence, DIVERGENCES, f"{key}.divergence")
    tau = point.target_temperature
    if isinstance(tau, str):
        _known(tau, TEMPERATURES, f"{key}.target_temperature")
    elif tau is not None:
        _require(tau > 0, f"{key}.target_temperature", tau, "a number above 0, or a rule's name")
    scale = point.temperature_scale
    _require(scale is None or 0 < scale < math.inf, f"{key}.temperature_scale", scale, "a number above 0")


def _schedule(changes: Sequence[ChangeConfig], steps: int) -> None:
    before = 0
    for number, change in enumerate(changes):
        key = f"objective.schedule[{number}]"
        expected = f"above {before}, where the one before begins, and below run.steps ({steps})"
        _require(before < change.from_step < steps, f"{key}.from_step", change.from_step, expected)
        _point(change, key)
        before = change.from_step


def _autoscale(config: Config) -> None:
    rule = config.rollout.autoscale
    if not rule.max:
        return
    key = "rollout.autoscale"
    _require(rule.min <= rule.max, f"{key}.min", rule.min, f"at most {key}.max ({rule.max})")
    wait = rule.target_learner_wait
    _require(0 < wait < 1, f"{key}.target_learner_wait", wait, "a share of time, in (0, 1)")
    count = config.rollout.num_workers
    _require(
        rule.min <= count <= rule.max, "rollout.num_workers", count, f"{key}.min to max ({rule.min} to {rule.max})"
    )
    if not config.pipeline.max_staleness:
        raise ConfigError(
            "rollout.autoscale.max is set with pipeline.max_staleness=0, where learner and engines take turns, so that "
            "waiting says nothing about their number; expected pipeline.max_staleness=1 or more, or autoscale.max=0"
        )


def _combinations(config: Config) -> None:
    pipeline, sampling, learner = config.pipeline, config.sampling, config.learner
    groups, updates = pipeline.groups_per_step, pipeline.updates_per_step
    if groups % updates:
        raise ConfigError(
            f"pipeline.groups_per_step ({groups}) is not divisible by pipeline.updates_per_step ({updates}); every "
            f"update trains the same number of groups: try groups_per_step={groups + updates - groups % updates}"
        )
    if groups // updates * sampling.group_size < learner.world_size:
        raise ConfigError(
            f"an update has {groups // updates} groups of {sampling.group_size} responses for learner.world_size="
            f"{learner.world_size} ranks; expected at least one response a rank: raise pipeline.groups_per_step or "
            "lower learner.world_size"
        )
    least = learner.min_world_size
    if least is not None and not 1 <= least <= learner.world_size:
        raise ConfigError(
            f"learner.min_world_size is {least}; expected 1 to learner.world_size ({learner.world_size}), or null"
        )
    _autoscale(config)
    if pipeline.share_prompt and learner.attention is Attention.padded:
        raise ConfigError(
            "pipeline.share_prompt=true with learner.attention=padded; one copy of a prompt needs packed attention: "
            "set learner.attention=auto, or pipeline.share_prompt=false"
        )
    truncated = _truncated(config)
    if truncated and config.objective.behaviour is Behaviour.engine:
        raise ConfigError(
            f"{truncated} cuts the support of the sampling distribution, which biases the ratios to the "
            "engine's log-probs; use objective.behaviour=recomputed or sample from the whole distribution"
        )
    if config.objective.importance_cap is not None and config.objective.behaviour is Behaviour.engine:
        raise ConfigError(
            f"objective.importance_cap is {config.objective.importance_cap} with objective.behaviour=engine, whose "
            "log-ratios are to the engine already; expected null there, or objective.behaviour=recomputed"
        )
    if pipeline.reused_groups_per_step and (
        not pipeline.max_staleness or config.objective.behaviour is not Behaviour.engine
    ):
        raise ConfigError(
            f"pipeline.reused_groups_per_step is {pipeline.reused_groups_per_step} with pipeline.max_staleness="
            f"{pipeline.max_staleness} and objective.behaviour={config.objective.behaviour.value}; groups are reused "
            "while they are fresh, by the log-probs they were sampled with: set max_staleness >= 1 and behaviour=engine"
        )
    if config.objective.length_norm is LengthNorm.sum and sampling.max_tokens > 4096:
        raise ConfigError(
            f"objective.length_norm=sum with sampling.max_tokens={sampling.max_tokens}: summed log-ratios leave the "
            "range |s| <= 300 in which the simplex is exact; use length_norm=mean"
        )
    if config.run.resume.value == "auto" and config.checkpoint.every == 0:
        raise ConfigError("run.resume=auto needs checkpoints; checkpoint.every is 0, expected 1 or more")
