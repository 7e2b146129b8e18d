"""Derived numbers of a run, for ``train --dry-run`` and ``lpo-ray plan``."""

from __future__ import annotations

from lpo_ray.config.algorithms import algorithm_name
from lpo_ray.config.conversations import agent_command, has_agent, is_conversation, most_sampled
from lpo_ray.config.schema import ClusterKind, Config
from lpo_ray.run import settings
from lpo_ray.run.resolved import render_resolved, resolved
from lpo_ray.run.spec import RunSpec


def numbers(spec: RunSpec) -> dict[str, int | float | str]:
    """Derive every number, by what it is called."""
    config = spec.config
    pipeline, group_size = config.pipeline, config.sampling.group_size
    per_update = pipeline.groups_per_step // pipeline.updates_per_step
    return {
        "run folder": str(spec.run_dir),
        "model": spec.model_path or "the tiny base policy (built on first use)",
        "context (tokens)": spec.context,
        "longest prompt (tokens)": spec.max_prompt_tokens,
        "longest sequence of an engine (tokens)": spec.max_model_len,
        "verifier": spec.verifier,
        **_conversations(spec),
        **({"a response also ends at": spec.end_of_turn} if spec.end_of_turn else {}),
        "algorithm": _algorithm(spec),
        "responses per step": pipeline.groups_per_step * group_size,
        "groups per update": per_update,
        "groups per update and rank": per_update / settings.world_size(config),
        "responses per update": per_update * group_size,
        "optimiser updates in the run": config.run.steps * pipeline.updates_per_step,
        "prompts in the run": config.run.steps * pipeline.groups_per_step,
        "groups in flight at most": spec.capacity,
        "memory for them at most (MiB)": round(spec.capacity * spec.largest_group / 2**20, 1),
        "response tokens per step at most": pipeline.groups_per_step * group_size * most_sampled(config),
        "evaluation responses": config.evaluation.num_prompts * config.evaluation.samples_per_prompt,
        "learning rate, first step": spec.learning_rate(0),
        "learning rate, last step": spec.learning_rate(config.run.steps - 1),
        "weight proof tolerance (log-prob)": _tolerance(config.transport.tolerance),
        **_processes(config),
    }


def _conversations(spec: RunSpec) -> dict[str, int | float | str]:
    task, sampling = spec.config.task, spec.config.sampling
    if not spec.has_turns:
        return {}
    return {
        **(
            {"agent": " ".join(agent_command(task)) or task.agent}
            if spec.has_agent
            else {"environment": task.environment or f"tools: {', '.join(task.tools)}"}
        ),
        "turns of a conversation at most": sampling.max_turns,
        "tokens of a conversation at most": spec.longest_response,
        "environment processes": spec.config.environment.processes,
        "environment seconds at most (turn, conversation)": (
            f"{spec.config.environment.turn_seconds:g}, {spec.config.environment.conversation_seconds:g}"
        ),
    }


def _tolerance(tolerance: float | None) -> float | str:
    return "relative to equal weights at the start" if tolerance is None else tolerance


def _algorithm(spec: RunSpec) -> str:
    """Name the algorithm, or the ones that the run goes through."""
    objective, clip = spec.config.objective, spec.config.objective.token_clip
    changes = settings.grid_points(spec).changes
    names = [
        algorithm_name(
            point.divergence,
            point.target_temperature,
            clip.kind,
            clip_low=clip.low,
            clip_high=clip.high,
            length_norm=objective.length_norm.value,
            temperature_scale=point.temperature_scale,
        )
        for _, point in changes
    ]
    later = [f"from step {step}: {name}" for (step, _), name in zip(changes[1:], names[1:], strict=True)]
    return "; ".join([names[0], *later])


def _processes(config: Config) -> dict[str, int | float | str]:
    """Count processes, and the KV caches of engines on CPUs; on a GPU each engine takes what is left of it."""
    if config.cluster.kind is ClusterKind.inprocess:
        return {"processes": 1}
    rollout = config.rollout
    count = rollout.num_workers + config.learner.world_size + config.verifier.num_processes + 2
    if is_conversation(config.task):
        count += config.environment.processes + 1 + has_agent(config.task)
    if rollout.gpus_per_worker:
        return {"processes": count}
    return {"processes": count, "engine KV cache (GiB, all workers)": rollout.num_workers * rollout.kv_cache_gib}


def render(spec: RunSpec) -> str:
    """Align the derived numbers as text, and add what may not be meant."""
    found = numbers(spec)
    width = max(len(name) for name in found)
    lines = [f"{name:<{width}}  {value}" for name, value in found.items()]
    return "\n".join([*lines, "", render_resolved(resolved(spec)), "", *(f"Warning: {text}" for text in spec.warnings)])
