"""Rules that types cannot state: combinations of values. Every rule names the key, its value and what to do."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from lpo_ray.common.plugins import UnknownName, resolve
from lpo_ray.config.cautions import truncated_support
from lpo_ray.config.conversations import check_conversations, most_sampled
from lpo_ray.config.engine import check_engine_section
from lpo_ray.config.gpus import check_gpus
from lpo_ray.config.lora import check_lora
from lpo_ray.config.ranges import LARGEST, check_ranges, require
from lpo_ray.config.schema import Attention, Behaviour, ChangeConfig, Config, EqualRewards, LengthNorm, ObjectiveConfig
from lpo_ray.config.verifier import check_verifier_section
from lpo_ray.errors import ConfigError
from lpo_ray.objective import DIVERGENCES, TEMPERATURES, TOKEN_CLIPS


def validate(config: Config) -> None:
    """Check the whole configuration without touching disk, network or hardware. Raises ConfigError."""
    check_ranges(config)
    check_verifier_section(config)
    check_engine_section(config)
    check_conversations(config)
    check_lora(config)
    _objective(config)
    _combinations(config)


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
    size = config.sampling.group_size
    if isinstance(tau, str) and tau == "group_std" and size > 1:
        require(objective.ddof < size, "objective.ddof", objective.ddof, f"below sampling.group_size ({size})")


def _point(point: ObjectiveConfig | ChangeConfig, key: str) -> None:
    if point.divergence is not None:
        _known(point.divergence, DIVERGENCES, f"{key}.divergence")
    tau = point.target_temperature
    if isinstance(tau, str):
        _known(tau, TEMPERATURES, f"{key}.target_temperature")
    elif tau is not None:
        require(0 < tau <= LARGEST, f"{key}.target_temperature", tau, "a number above 0, or a rule's name")
    scale = point.temperature_scale
    require(scale is None or 0 < scale <= LARGEST, f"{key}.temperature_scale", scale, "a number above 0")


def _schedule(changes: Sequence[ChangeConfig], steps: int) -> None:
    before = 0
    for number, change in enumerate(changes):
        key = f"objective.schedule[{number}]"
        expected = f"above {before}, where the one before begins, and below run.steps ({steps})"
        require(before < change.from_step < steps, f"{key}.from_step", change.from_step, expected)
        _point(change, key)
        before = change.from_step


def _autoscale(config: Config) -> None:
    rule = config.rollout.autoscale
    if not rule.max:
        return
    key = "rollout.autoscale"
    require(rule.min <= rule.max, f"{key}.min", rule.min, f"at most {key}.max ({rule.max})")
    count = config.rollout.num_workers
    require(rule.min <= count <= rule.max, "rollout.num_workers", count, f"{key}.min to max ({rule.min} to {rule.max})")
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
    if sampling.group_size == 1 and pipeline.equal_rewards is EqualRewards.drop:
        raise ConfigError(
            "sampling.group_size=1 with pipeline.equal_rewards=drop: the rewards of one response are always equal, so "
            "every group would be left out; expected two responses or more, or equal_rewards=keep"
        )
    least = learner.min_world_size
    if least is not None and not 1 <= least <= learner.world_size:
        raise ConfigError(
            f"learner.min_world_size is {least}; expected 1 to learner.world_size ({learner.world_size}), or null"
        )
    _autoscale(config)
    check_gpus(config)
    if pipeline.share_prompt and learner.attention is Attention.padded:
        raise ConfigError(
            "pipeline.share_prompt=true with learner.attention=padded; one copy of a prompt needs packed attention: "
            "set learner.attention=auto, or pipeline.share_prompt=false"
        )
    truncated = truncated_support(config)
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
    if config.objective.length_norm is LengthNorm.sum and (most := most_sampled(config)) > 4096:
        turns = f", {most} in all turns" if most != sampling.max_tokens else ""
        raise ConfigError(
            f"objective.length_norm=sum with sampling.max_tokens={sampling.max_tokens}{turns}: summed log-ratios leave "
            "the range |s| <= 300 in which the simplex is exact; use length_norm=mean"
        )
    best, evaluation = config.checkpoint.best, config.evaluation
    if best is not None and best.startswith("pass@"):
        known = ", ".join(f"pass@{k}" for k in evaluation.ks)
        require(best in known.split(", "), "checkpoint.best", best, f"one of {known} (evaluation.ks), or a metric")
        if not evaluation.num_prompts:
            raise ConfigError(
                f"checkpoint.best={best} with evaluation.num_prompts=0: nothing is evaluated, so no checkpoint would "
                "be the best; set evaluation.num_prompts, or take a metric such as reward"
            )
    if config.run.resume.value == "auto" and config.checkpoint.every == 0:
        raise ConfigError("run.resume=auto needs checkpoints; checkpoint.every is 0, expected 1 or more")
