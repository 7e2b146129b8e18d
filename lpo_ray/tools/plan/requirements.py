"""Requirements of a run, from its settings: the lengths, the work of a step, a learner rank, an engine, the bundles."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lpo_ray.config.conversations import has_agent, is_conversation, most_sampled, most_turns
from lpo_ray.config.engine import engine_processes, pipeline_stages, shares_gpus
from lpo_ray.config.gpus import between_gpus
from lpo_ray.config.lora import adapter_settings, versions_alive
from lpo_ray.config.schema import ClipCentre, ClusterKind, Config
from lpo_ray.errors import ConfigError
from lpo_ray.learner.settings import offloads, zero_options
from lpo_ray.policy.tokenizer import Tokenizer
from lpo_ray.policy.weights import bucket_bytes
from lpo_ray.run.settings import behaviour_from_engine, engine_settings, gradient_checkpointing, world_size
from lpo_ray.run.spec import RunSpec
from lpo_ray.tasks.base_policy import character_tokenizer
from lpo_ray.tasks.sources.source import first_usable
from lpo_ray.tools.plan.architecture import Architecture
from lpo_ray.tools.plan.machines import Bundle, Machine, Placement, place, share
from lpo_ray.tools.plan.memory import (
    BYTES,
    CPU_REDUCE_BUCKET,
    LIVE_PARAMETERS,
    REDUCE_BUCKET,
    EngineShape,
    RankSettings,
)
from lpo_ray.tools.plan.throughput import Work, forward_passes

ASSUMED_PROMPT_TOKENS = 256
ASSUMED_SAID_TOKENS = 64
"""of an environment behind a turn, with what a chat template puts around it"""
ASSUMED_SECONDS = 1.0
"""of an environment behind a turn"""
SHARED = "shared GPU"
"""role of a bundle for a rank and its part of an engine"""
LONGEST_PROMPT = 8
"""times the mean prompt of a data set: the longest, where it is not read to its end; an assumption"""
PROMPTS_READ = 32
"""for the mean length, where the data and the tokenizer are at hand"""


@dataclass(frozen=True, slots=True)
class Lengths:
    """Mean lengths in tokens, and where they come from."""

    prompt: float
    response: float
    """that are sampled, in all turns of a conversation"""
    source: str
    turns: float = 1.0
    said: float = 0.0
    """by the environment, behind the turns of a response"""
    environment_seconds: float = 0.0
    """that an environment takes behind a turn"""

    @property
    def behind(self) -> float:
        """Tokens behind the prompt: what was sampled and what environments said."""
        return self.response + self.said


def mean_lengths(
    spec: RunSpec,
    prompt_tokens: float | None,
    response_tokens: float | None,
    turns: float | None = None,
    environment_seconds: float | None = None,
) -> Lengths:
    """Take given lengths, else read them from the data where it and the tokenizer are at hand, else assume them. Raises
    ConfigError.
    """
    limit, longest = most_sampled(spec.config), max(1, spec.max_prompt_tokens)
    for flag, value, most in (
        ("--prompt-tokens", prompt_tokens, longest), ("--response-tokens", response_tokens, limit),
    ):  # fmt: skip
        if value is not None and not 0 < value <= most:
            raise ConfigError(
                f"{flag} is {value:g}; expected a number above 0 and at most {most}, the longest there is"
            )
    turns, seconds, how = _turns(spec, turns, environment_seconds)
    said = (turns - 1) * ASSUMED_SAID_TOKENS
    prompt, where = prompt_tokens, "prompt given"
    if prompt is None:
        prompt, where = _read_prompts(spec), f"prompt the mean of {PROMPTS_READ} of the data"
    if prompt is None:
        prompt, where = float(min(ASSUMED_PROMPT_TOKENS, longest)), "prompt assumed (--prompt-tokens)"
    if response_tokens is not None:
        return Lengths(prompt, response_tokens, f"{where}, response given{how}", turns, said, seconds)
    half = min(limit, turns * spec.config.sampling.max_tokens) / 2
    source = f"{where}, response assumed as half of sampling.max_tokens (--response-tokens){how}"
    return Lengths(prompt, half, source, turns, said, seconds)


def _turns(spec: RunSpec, turns: float | None, seconds: float | None) -> tuple[float, float, str]:
    """Return the mean number of turns, the seconds of the environment behind each, and where they come from."""
    most = most_turns(spec.config)
    for flag, value, low, high in (
        ("--turns", turns, 1, most), ("--environment-seconds", seconds, 0, spec.config.environment.turn_seconds),
    ):  # fmt: skip
        if value is not None and not low <= value <= high:
            raise ConfigError(f"{flag} is {value:g}; expected {low} to {high:g}")
    if not spec.has_turns:
        return 1.0, 0.0, ""
    how = "turns given" if turns is not None else "turns assumed as half of sampling.max_turns (--turns)"
    source = f", {how}, {ASSUMED_SAID_TOKENS} tokens of the environment behind each"
    return turns or (1 + most) / 2, ASSUMED_SECONDS if seconds is None else seconds, source


def _read_prompts(spec: RunSpec) -> float | None:
    path = spec.model_path
    try:
        if path is not None and not Path(path).is_dir():
            return None
        source = _few(spec).source(character_tokenizer() if path is None else Tokenizer.load(path))
        prompts = first_usable(source, PROMPTS_READ)
        return sum(len(prompt.token_ids) for prompt in prompts) / len(prompts)
    except ConfigError:  # data or tokenizer are not here, which ``make_spec`` says better
        return None


def _few(spec: RunSpec) -> RunSpec:
    """Cut the run's data to the first PROMPTS_READ prompts, so that a large file is not read to its end."""
    task = spec.config.task
    few = replace(task, num_train=min(PROMPTS_READ, task.num_train or PROMPTS_READ), heldout_path=None)
    return replace(spec, config=replace(spec.config, task=few))


def step_work(spec: RunSpec, model: Architecture, lengths: Lengths) -> Work:
    """Work of a step."""
    config = spec.config
    return Work(
        prompts=config.pipeline.groups_per_step,
        group_size=config.sampling.group_size,
        prompt_tokens=lengths.prompt,
        response_tokens=lengths.response,
        longest_tokens=most_sampled(config),
        share_prompt=config.pipeline.share_prompt,
        forward_passes=forward_passes(
            config.pipeline.updates_per_step,
            from_engine=behaviour_from_engine(spec),
            around_anchor=config.objective.token_clip.around is ClipCentre.anchor,
            reference=config.objective.reference_kl > 0,
        ),
        updates=config.pipeline.updates_per_step,
        tokens_per_micro_batch=config.pipeline.tokens_per_micro_batch,
        weight_bytes=(adapter_of(config, model) or model.parameters) * BYTES[config.rollout.dtype],
        adapter=adapter_of(config, model),
        said_tokens=lengths.said,
        environment_seconds=most_turns(config) * lengths.environment_seconds,
    )


def rank_of(spec: RunSpec, model: Architecture, lengths: Lengths) -> RankSettings:
    """Learner rank of the run. Its largest micro-batch is one of the budget, of what an update gives a rank,
    or of one response.
    """
    config, deepspeed = spec.config, spec.config.learner.deepspeed
    ranks = world_size(config)
    sampled = most_sampled(config)
    longest = lengths.prompt + sampled + (most_turns(config) - 1) * ASSUMED_SAID_TOKENS
    group = config.sampling.group_size * longest
    update = config.pipeline.groups_per_step / config.pipeline.updates_per_step * group
    one = min(spec.longest_response, longest)
    tokens = max(one, min(config.pipeline.tokens_per_micro_batch, update / ranks))
    return RankSettings(
        world_size=ranks,
        dtype=config.model.dtype,
        tokens=math.ceil(tokens),
        scored=math.ceil(tokens * sampled / longest),
        gradient_checkpointing=gradient_checkpointing(config),
        reference=config.objective.reference_kl > 0
        and (config.model.lora.rank is None or config.objective.reference_path is not None),
        adapter=adapter_of(config, model),
        offload_optimizer=offloads(deepspeed, "offload_optimizer"),
        offload_parameters=offloads(deepspeed, "offload_param"),
        live_parameters=_live(zero_options(deepspeed)),
        reduce_bucket=_reduce_bucket(config),
        bucket_bytes=_bucket(config, model),
        on_gpu=config.learner.gpus_per_rank > 0,
    )


def _live(zero: Mapping[str, object]) -> int:
    """Parameters are kept up to the larger of the two: in use, or soon to be used again."""
    values = [zero.get(f"stage3_{name}", LIVE_PARAMETERS) for name in ("max_live_parameters", "max_reuse_distance")]
    return max(int(value) for value in values if isinstance(value, int | float))


def _reduce_bucket(config: Config) -> int:
    default = REDUCE_BUCKET if config.learner.gpus_per_rank else CPU_REDUCE_BUCKET
    wanted = zero_options(config.learner.deepspeed).get("reduce_bucket_size", default)
    return int(wanted) if isinstance(wanted, int | float) else default


def _bucket(config: Config, model: Architecture) -> int:
    size = bucket_bytes(config.transport.bucket_mib, on_device=between_gpus(config))
    adapter = BYTES[config.rollout.dtype] * adapter_of(config, model)
    return min(size, adapter) if adapter else max(size, BYTES[config.rollout.dtype] * model.largest_parameter)


def adapter_of(config: Config, model: Architecture) -> int:
    """Count the parameters of the adapter that is trained; 0: there is none. Raises ConfigError."""
    adapter = adapter_settings(config)
    return 0 if adapter is None else model.adapter_parameters(adapter)


def with_longest_prompt(spec: RunSpec, lengths: Lengths) -> RunSpec:
    """Assume for a data set, which is not read to its end here, how long its longest prompt is."""
    if spec.config.task.path is None or spec.longest_prompt is not None:
        return spec
    return replace(spec, longest_prompt=min(spec.max_prompt_tokens, math.ceil(LONGEST_PROMPT * lengths.prompt)))


def engine_of(spec: RunSpec, model: Architecture) -> EngineShape:
    """Engine of the run."""
    engine = engine_settings(spec, model.name)
    return EngineShape(
        dtype=engine.dtype,
        tensor_parallel_size=engine.tensor_parallel_size,
        pipeline_parallel_size=pipeline_stages(spec.config.rollout),
        max_num_seqs=engine.max_num_seqs,
        batched_tokens=engine.max_num_batched_tokens,
        bucket_bytes=_bucket(spec.config, model),
        on_gpu=not engine.on_cpu,
        adapter=adapter_of(spec.config, model),
        versions=versions_alive(spec.config),
    )


def bundles(config: Config) -> list[Bundle]:
    """Bundles that the actors of the run ask for. Without Ray there is one process."""
    learner, rollout = config.learner, config.rollout
    if config.cluster.kind is ClusterKind.inprocess:
        return [Bundle("process", 1, 0)]
    services = [Bundle("verifier", 1, 0), *([Bundle("environments", 1, 0)] if is_conversation(config.task) else []),
                *([Bundle("endpoint", 1, 0)] if has_agent(config.task) else [])]  # fmt: skip
    if shares_gpus(config):
        cpus = learner.cpus_per_rank + rollout.cpus_per_worker / engine_processes(config.rollout)
        return [*[Bundle(SHARED, cpus, 1)] * learner.world_size, *services]
    ranks = [Bundle("learner", learner.cpus_per_rank, learner.gpus_per_rank)] * learner.world_size
    engines = [Bundle("rollout", rollout.cpus_per_worker, rollout.gpus_per_worker)] * rollout.num_workers
    return [*ranks, *engines, *services]


def places_on(config: Config, machines: Sequence[Machine]) -> list[Placement] | str:
    """Place the actors of the run as ``actors/roles.py`` does, or say what is missing."""
    found = place(bundles(config), machines, spread=frozenset({"rollout"}))
    if isinstance(found, str) or not shares_gpus(config):
        return found
    seats = [where for where in found if where.role == SHARED]
    shared = share(seats, config.rollout.num_workers, engine_processes(config.rollout))
    return shared if isinstance(shared, str) else [*shared, *(where for where in found if where.role != SHARED)]
