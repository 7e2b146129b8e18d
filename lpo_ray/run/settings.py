"""Settings of each role, made once at composition and handed down as values.

Composition is ``actors/cluster.py``, ``run/inprocess.py``, ``run/train.py`` and the commands. Nothing below it is given
a RunSpec or a Config.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import yaml

from lpo_ray.agents.conversations import EnvironmentSettings
from lpo_ray.agents.endpoint.settings import EndpointSettings
from lpo_ray.agents.limits import Hosted
from lpo_ray.agents.programs.program import AgentSettings
from lpo_ray.common.restart_budget import RestartRule
from lpo_ray.common.step_schedule import StepSchedule
from lpo_ray.config.conversations import agent_command, most_turns
from lpo_ray.config.engine import engine_processes, is_asynchronous, memory_utilization
from lpo_ray.config.load import dump_config
from lpo_ray.config.lora import adapter_settings, versions_alive
from lpo_ray.config.schema import Behaviour, ClipCentre, ClusterKind, Config, EqualRewards
from lpo_ray.learner.packing import Packing
from lpo_ray.learner.settings import GridPoint, LearnerSettings, Objective, OptimiserSettings, offloads
from lpo_ray.learner.targets import StaleRule, TargetRule
from lpo_ray.objective import UNANCHORED
from lpo_ray.policy.proof_limits import FILE, ProofLimits, is_mixture, open_limits
from lpo_ray.policy.weights_proof import ROWS, probe_sequences
from lpo_ray.records import Sampling
from lpo_ray.rollout.agents import AgentLimits
from lpo_ray.rollout.autoscale import AutoscaleRule
from lpo_ray.rollout.engine_settings import EngineSettings
from lpo_ray.rollout.pool import PoolSettings
from lpo_ray.run.evaluator import EvaluationSettings
from lpo_ray.run.recorder import RecorderSettings
from lpo_ray.run.spec import RunSpec
from lpo_ray.tasks.prompt_form import form_of
from lpo_ray.tasks.sources.source import first_usable
from lpo_ray.telemetry.monitor.advice import Setup
from lpo_ray.training.checkpoint import CheckpointRules
from lpo_ray.training.group_selection import SelectionSettings
from lpo_ray.training.loop import BatchSettings, LoopSettings
from lpo_ray.training.measurement import MeasureRule
from lpo_ray.training.sample_lane import SampleSettings
from lpo_ray.verifiers.calling.overlong import Overlong
from lpo_ray.verifiers.sandbox.limits import Limits

# Rollout


def sampling(spec: RunSpec) -> Sampling:
    """Say how training responses are drawn."""
    s = spec.config.sampling
    return Sampling(
        s.group_size, s.temperature, s.max_tokens, spec.config.run.seed, s.top_p, s.top_k, s.min_p, spec.stop_token_ids,
        *conversation_limits(spec),
    )  # fmt: skip


def conversation_limits(spec: RunSpec) -> tuple[int, int | None]:
    """Say how many turns and tokens a conversation may have; a single answer has its one turn."""
    limit = spec.config.sampling.max_conversation_tokens if spec.has_turns else None
    return most_turns(spec.config), limit


def environment_settings(spec: RunSpec) -> EnvironmentSettings:
    """Settings of what answers in conversations."""
    task, environment = spec.config.task, spec.config.environment
    hosted = Hosted(
        environment=task.environment,
        tools=tuple(task.tools),
        parser=task.tool_parser,
        processes=environment.processes,
        turn_seconds=environment.turn_seconds,
        conversation_seconds=environment.conversation_seconds,
        memory_mib=environment.memory_mib,
        max_message_chars=environment.max_message_chars,
        sandbox=sandbox(spec),
    )
    return EnvironmentSettings(hosted, spec.config.run.seed)


def agent_settings(spec: RunSpec) -> AgentSettings:
    """Settings of the programs that ask the policy."""
    task = spec.config.task
    command = tuple(str(Path(word).resolve()) if Path(word).is_file() else word for word in agent_command(task))
    hosted = replace(environment_settings(spec).hosted, agent=None if command else task.agent)
    return AgentSettings(hosted, command, spec.config.agent.network, spec.config.run.seed)


def agent_limits(spec: RunSpec) -> AgentLimits:
    """Limits of an agent's session."""
    environment = spec.config.environment
    return AgentLimits(spec.max_model_len, environment.turn_seconds, environment.conversation_seconds)


def endpoint_settings(spec: RunSpec, model_path: str) -> EndpointSettings:
    """Settings of the endpoint that agents ask, at the loopback interface."""
    task = spec.config.task
    return EndpointSettings(
        model_path,
        sampling(spec),
        min(spec.max_model_len, spec.longest_response),
        style=form_of(task).style,
        plain=task.template == "plain",
        tool_parser=task.tool_parser,
        reasoning_parser=spec.config.agent.reasoning_parser,
        overrides=spec.config.agent.overrides,
        trust_remote_code=spec.config.model.trust_remote_code,
    )


def pool_settings(spec: RunSpec) -> PoolSettings:
    """Settings of the rollout pool. A worker is given twice what it decodes at once, so that it never runs dry."""
    rollout = spec.config.rollout
    return PoolSettings(
        silence_seconds=rollout.silence_seconds,
        start_seconds=spec.config.supervision.start_seconds,
        place_seconds=spec.config.cluster.placement_seconds,
        drain_seconds=rollout.drain_seconds,
        slots=2 * rollout.max_num_seqs,
        restarts=restart_rule(spec),
    )


def proof_limits(spec: RunSpec, model_path: str, tensors: Iterable[str] = ()) -> ProofLimits:
    """Limits of the proof of weights whose ``tensors`` have these names, with the run's baseline if it has one."""
    config, prompts = spec.config, first_usable(spec.source(spec.tokenizer(model_path)), ROWS)
    learner, rollout = config.learner, config.rollout
    limits = ProofLimits(
        probe_sequences([prompt.token_ids for prompt in prompts], spec.max_model_len),
        config.transport.tolerance,
        arithmetic={
            "model.dtype": config.model.dtype,
            "rollout.dtype": rollout.dtype,
            "rollout.tensor_parallel_size": rollout.tensor_parallel_size,
            "rollout.engine_args": json.dumps(rollout.engine_args, sort_keys=True, default=str),
            "learner.attention": learner.attention.value,
            "learner on": "gpu" if learner.gpus_per_rank else "cpu",
            "rollout on": "gpu" if rollout.gpus_per_worker else "cpu",
        },
        full=config.model.dtype == rollout.dtype == "float32",
        mixture=is_mixture(tensors),
    )
    return open_limits(spec.run_dir / FILE, limits)


def engine_settings(spec: RunSpec, model_path: str) -> EngineSettings:
    """Settings of each engine. On GPUs it runs with CUDA graphs, unless told otherwise."""
    config, rollout = spec.config, spec.config.rollout
    on_cpu = not rollout.gpus_per_worker
    return EngineSettings(
        model_path=model_path,
        dtype=rollout.dtype,
        max_model_len=spec.max_model_len,
        max_num_seqs=rollout.max_num_seqs,
        tensor_parallel_size=rollout.tensor_parallel_size,
        num_processes=engine_processes(rollout),
        gpu_memory_utilization=memory_utilization(rollout),
        enforce_eager=on_cpu if rollout.enforce_eager is None else rollout.enforce_eager,
        asynchronous=is_asynchronous(rollout),
        on_cpu=on_cpu,
        kv_cache_bytes=int(rollout.kv_cache_gib * 2**30),
        inflight=config.pipeline.inflight,
        trust_remote_code=config.model.trust_remote_code,
        adapter=adapter_settings(config),
        versions_alive=versions_alive(config),
        extra=dict(rollout.engine_args),
    )


def restart_rule(spec: RunSpec) -> RestartRule:
    """Restart budget of each component."""
    rule = spec.config.supervision
    return RestartRule(rule.max_restarts, rule.window_seconds, rule.backoff_seconds)


def autoscale_rule(spec: RunSpec) -> AutoscaleRule:
    """Bounds and aim of the number of rollout workers."""
    rule = spec.config.rollout.autoscale
    return AutoscaleRule(rule.min, rule.max, rule.target_learner_wait)


# Verifier


def overlong(spec: RunSpec) -> Overlong:
    """Penalty of responses for their length."""
    shaping = spec.config.verifier.overlong
    return Overlong(spec.config.sampling.max_tokens, shaping.buffer_tokens, shaping.penalty)


def sandbox(spec: RunSpec) -> Limits:
    """Limits of a program that a verifier runs."""
    verifier = spec.config.verifier
    limits = verifier.sandbox
    seconds = verifier.deadline_seconds / 2 if limits.seconds is None else limits.seconds
    start_seconds = (verifier.deadline_seconds - seconds) / 2
    return Limits(
        limits.kind.value, seconds, limits.memory_mib, limits.processes, limits.files_mib,
        limits.output_kib, start_seconds, limits.total_memory_mib or 2 * limits.memory_mib,
    )  # fmt: skip


# Learner and targets


def packing(spec: RunSpec) -> Packing:
    """Say how groups become micro-batches."""
    pipeline = spec.config.pipeline
    return Packing(world_size(spec.config), pipeline.tokens_per_micro_batch, pipeline.share_prompt)


def world_size(config: Config) -> int:
    """Number of learner ranks; 1 without Ray."""
    return 1 if config.cluster.kind is ClusterKind.inprocess else config.learner.world_size


def learner_settings(spec: RunSpec, model_path: str) -> LearnerSettings:
    """Settings of a learner around the model in ``model_path``."""
    learner, model = spec.config.learner, spec.config.model
    return LearnerSettings(
        model_path=model_path,
        dtype=model.dtype,
        objective=objectives(spec),
        optimiser=OptimiserSettings((learner.betas[0], learner.betas[1]), learner.weight_decay, learner.gradient_clip),
        packing=packing(spec),
        attention=learner.attention.value,
        gradient_checkpointing=gradient_checkpointing(spec.config),
        reference_path=spec.config.objective.reference_path or model_path,
        threads=rank_threads(spec.config),
        deepspeed=dict(learner.deepspeed),
        silence_seconds=learner.silence_seconds,
        trust_remote_code=model.trust_remote_code,
        on_gpu=learner.gpus_per_rank > 0,
        adapter=adapter_settings(spec.config),
    )


def gradient_checkpointing(config: Config) -> bool:
    """Whether activations are computed twice: as configured, else on GPUs."""
    wanted = config.learner.gradient_checkpointing
    return config.learner.gpus_per_rank > 0 if wanted is None else wanted


def rank_threads(config: Config) -> int | None:
    """Threads of a rank: as configured, else 1. None: its share of the cores, for an optimizer that a GPU leaves to
    the host.
    """
    learner = config.learner
    if learner.threads is None and learner.gpus_per_rank and offloads(learner.deepspeed, "offload_optimizer"):
        return None
    return learner.threads or 1


def grid_points(spec: RunSpec) -> StepSchedule[GridPoint]:
    """Points of the grid that the run goes through, by step."""
    objective = spec.config.objective
    point = GridPoint(objective.divergence, objective.target_temperature, objective.temperature_scale)
    changes = [(0, point)]
    for change in objective.schedule:
        named = {name: getattr(change, name) for name in GridPoint._fields}
        point = point._replace(**{name: value for name, value in named.items() if value is not None})
        changes.append((change.from_step, point))
    return StepSchedule(tuple(changes))


def objectives(spec: RunSpec) -> StepSchedule[Objective]:
    """Objective of the learner, by step."""
    objective, clip = spec.config.objective, spec.config.objective.token_clip

    def objective_at(point: GridPoint) -> Objective:
        return Objective(
            divergence=point.divergence,
            token_clip=clip.kind,
            clip_low=clip.low,
            clip_high=clip.high,
            length_norm=objective.length_norm.value,
            sampling_temperature=spec.config.sampling.temperature,
            behaviour_from_engine=behaviour_from_engine(spec),
            reference_kl=objective.reference_kl,
            clip_around_anchor=clip.around is ClipCentre.anchor,
            importance_cap=objective.importance_cap,
        )

    return StepSchedule(tuple((step, objective_at(point)) for step, point in grid_points(spec).changes))


def behaviour_from_engine(spec: RunSpec) -> bool:
    """Whether the log-probs that the engine sampled with stand for the behaviour."""
    return spec.config.objective.behaviour is Behaviour.engine


def target_rules(spec: RunSpec) -> StepSchedule[TargetRule]:
    """Rule by which targets are built, by step."""
    objective = spec.config.objective

    def rule_at(point: GridPoint) -> TargetRule:
        return TargetRule(
            point.target_temperature,
            objective.ddof,
            objective.temperature_floor,
            anchored=point.divergence not in UNANCHORED,
            stale=stale_rule(spec),
            scale=point.temperature_scale,
        )

    return StepSchedule(tuple((step, rule_at(point)) for step, point in grid_points(spec).changes))


def stale_rule(spec: RunSpec) -> StaleRule:
    """Rule for groups that have drifted."""
    stale = spec.config.objective.stale
    return StaleRule(stale.policy.value, stale.min_ess, stale.max_drift)


# The loop


def loop_settings(spec: RunSpec) -> LoopSettings:
    """Settings of the training loop and of its parts."""
    config = spec.config
    return LoopSettings(
        steps=config.run.steps,
        sample=sample_settings(spec),
        selection=selection_settings(spec),
        batch=batch_settings(spec),
        checkpoints=checkpoint_rules(spec),
        max_skipped_updates=config.learner.max_skipped_updates,
        evaluate_every=config.evaluation.every,
        measure=measure_rule(spec),
    )


def sample_settings(spec: RunSpec) -> SampleSettings:
    """Settings of the sample lane. A lease is twice the silence after which an engine is replaced, with its groups."""
    pipeline = spec.config.pipeline
    return SampleSettings(
        sampling=sampling(spec),
        max_attempts=pipeline.max_attempts,
        max_unscored_share=pipeline.max_unscored_share,
        lease_seconds=2 * spec.config.rollout.silence_seconds,
        capacity=spec.capacity,
        max_bytes=int(pipeline.max_gib * 2**30),
        largest_group=spec.largest_group,
    )


def selection_settings(spec: RunSpec) -> SelectionSettings:
    """Say which groups a step trains on."""
    pipeline = spec.config.pipeline
    refill = pipeline.groups_per_step if pipeline.refill_groups is None else pipeline.refill_groups
    return SelectionSettings(
        groups_per_step=pipeline.groups_per_step,
        max_staleness=pipeline.max_staleness,
        drop_equal_rewards=pipeline.equal_rewards is EqualRewards.drop,
        stale=stale_rule(spec),
        refill_groups=refill,
        oversample_groups=pipeline.oversample_groups,
        reused_groups_per_step=pipeline.reused_groups_per_step,
        behaviour_from_engine=behaviour_from_engine(spec),
        seed=spec.config.run.seed,
    )


def batch_settings(spec: RunSpec) -> BatchSettings:
    """Say how a step's groups become a batch."""
    config = spec.config
    return BatchSettings(packing(spec), config.pipeline.updates_per_step, spec.learning_rate, config.run.seed)


def checkpoint_rules(spec: RunSpec) -> CheckpointRules:
    """Say where checkpoints are written, when, and which are kept."""
    checkpoint = spec.config.checkpoint
    return CheckpointRules(spec.run_dir / "checkpoints", checkpoint.every, checkpoint.keep, checkpoint.best)


def measure_rule(spec: RunSpec) -> MeasureRule:
    """Say which groups are scored again after a step."""
    config = spec.config
    return MeasureRule(
        config.telemetry.measured_groups,
        config.pipeline.tokens_per_micro_batch,
        config.sampling.temperature,
        config.objective.length_norm.value,
        behaviour_from_engine(spec),
    )


# What is seen of a run


def evaluation_settings(spec: RunSpec) -> EvaluationSettings:
    """Settings of evaluations, during a run and offline: responses are drawn from the whole distribution.

    ``in_flight`` keeps an engine full twice over. No engine is lent where a checkpoint's score may be the evaluation's,
    which is made before the checkpoint then.
    """
    config = spec.config
    evaluation = config.evaluation
    return EvaluationSettings(
        sampling=Sampling(
            evaluation.samples_per_prompt,
            evaluation.temperature,
            config.sampling.max_tokens,
            config.run.seed,
            stop_token_ids=spec.stop_token_ids,
            max_turns=conversation_limits(spec)[0],
            max_conversation_tokens=conversation_limits(spec)[1],
        ),
        ks=tuple(evaluation.ks),
        pass_reward=evaluation.pass_reward,
        every=evaluation.every,
        in_flight=max(1, 2 * config.rollout.max_num_seqs // evaluation.samples_per_prompt),
        num_engines=config.rollout.num_workers,
        lend_engine=evaluation.lend_worker and config.checkpoint.best is None,
    )


def setup_of(config: Config) -> Setup:
    """Numbers of workers that decide which lane waits for the other. In one process there is one of each."""
    if config.cluster.kind is ClusterKind.inprocess:
        return Setup(config.pipeline.max_staleness, 1, 1, 1, in_process=True)
    return Setup(
        max_staleness=config.pipeline.max_staleness,
        num_workers=config.rollout.num_workers,
        world_size=config.learner.world_size,
        num_processes=config.verifier.num_processes,
    )


def recorder_settings(spec: RunSpec, model_path: str) -> RecorderSettings:
    """Settings of the recorder."""
    config = spec.config
    objective = config.objective
    clip = objective.token_clip
    return RecorderSettings(
        folder=spec.run_dir,
        run=config.run.name,
        seed=config.run.seed,
        steps=config.run.steps,
        model=config.model.path or Path(model_path).name,
        task=config.task.name,
        objective={
            "divergence": objective.divergence,
            "target_temperature": objective.target_temperature,
            "token_clip": f"{clip.kind} {clip.low:g}/{clip.high:g}",
            "length_norm": objective.length_norm.value,
        },
        points=grid_points(spec),
        pass_reward=config.evaluation.pass_reward,
        samples_every=config.telemetry.samples_every,
        tensorboard=config.telemetry.tensorboard,
        trackers=tuple(config.telemetry.trackers),
        config=yaml.safe_load(dump_config(config)),
        entropy_alarm=config.telemetry.entropy_alarm,
        progress=config.telemetry.progress,
        setup=setup_of(config),
        stall_seconds=config.telemetry.stall_seconds,
    )
