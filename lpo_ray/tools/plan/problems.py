"""What does not fit, one sentence each: what, where, how much is missing, and what to change."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence

from lpo_ray.errors import ConfigError
from lpo_ray.run import preflight as checks
from lpo_ray.run.spec import RunSpec
from lpo_ray.tasks.table import check_task
from lpo_ray.tools.plan.architecture import Architecture
from lpo_ray.tools.plan.devices import Device
from lpo_ray.tools.plan.machines import Machine, Placement
from lpo_ray.tools.plan.memory import GIB, EngineShape, KvCache, Memory, RankSettings, engine_memory, rank_memory
from lpo_ray.tools.plan.remedies import for_engine, for_rank
from lpo_ray.tools.plan.requirements import ASSUMED_PROMPT_TOKENS, Lengths


def unmet_here(spec: RunSpec) -> list[str]:
    """What ``train`` would refuse on this machine: data and verifiers that are not here. No reason against a plan."""
    config, found = spec.config, []
    for check in (
        lambda: check_task(config.task, config.evaluation.num_prompts),
        lambda: checks.check_verifier(spec.verifier, spec.config.cluster.kind),
    ):
        try:
            check()
        except ConfigError as error:
            found.append(f"train would refuse this here: {error}")
    return found


def context_problems(spec: RunSpec, lengths: Lengths) -> list[str]:
    """A response of the most tokens must leave room for a prompt."""
    limit = spec.config.sampling.max_tokens
    if limit < spec.context:
        return []
    fitting = max(1, spec.context - math.ceil(max(lengths.prompt, ASSUMED_PROMPT_TOKENS)))
    return [
        f"sampling.max_tokens is {limit}, but {spec.model_path} has {spec.context} positions for prompt and response "
        f"together: no prompt has room; set sampling.max_tokens={fitting} or less, or take a model with more positions"
    ]


def parallel_problems(spec: RunSpec, model: Architecture) -> list[str]:
    """An engine in parts needs a GPU for each, and heads that divide."""
    rollout, found = spec.config.rollout, []
    parts, gpus = rollout.tensor_parallel_size, rollout.gpus_per_worker
    if gpus and math.ceil(gpus) != parts:
        found.append(
            f"rollout.tensor_parallel_size is {parts} with rollout.gpus_per_worker={gpus:g}; an engine needs one GPU "
            f"for each part: set rollout.gpus_per_worker={parts}"
        )
    if model.num_heads % parts:
        found.append(
            f"rollout.tensor_parallel_size is {parts}, which does not divide the model's {model.num_heads} attention "
            "heads; vLLM refuses that"
        )
    return found


def device_problems(
    spec: RunSpec,
    model: Architecture,
    rank: RankSettings,
    engine: EngineShape,
    machines: Sequence[Machine],
    places: Sequence[Placement],
    device: Device,
) -> list[str]:
    """Roles that need more than their GPU has, each once. Without places: each role on a GPU of its own."""
    utilization = spec.config.rollout.gpu_memory_utilization
    reserved = utilization * device.memory_gib * GIB + engine_memory(model, engine).device["new weights"]
    needs = {
        "learner": rank_memory(model, rank).total if rank.on_gpu else 0,
        "rollout": int(reserved) if engine.on_gpu else 0,
    }
    if math.isinf(device.memory_gib):
        return []
    on_device: dict[tuple[int, int], dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for where in places:
        for number in where.devices:
            on_device[where.machine, number][where.role] += 1
    loads = {tuple(sorted(load.items())) for load in on_device.values()} or {(("learner", 1),), (("rollout", 1),)}
    found = []
    for load in sorted(loads):
        needed = sum(needs.get(role, 0) * count for role, count in load)
        missing = needed / GIB - device.memory_gib
        if missing <= 0:
            continue
        parts = " and ".join(
            f"{_count(role, count)} {needs[role] * count / GIB:.1f}" for role, count in load if needs[role]
        )
        beside = sum(needs[role] * count for role, count in load if role != "learner")
        room = int(device.memory_gib * GIB) - beside
        remedies = for_rank(model, rank, room) if dict(load).get("learner") == 1 else []
        found.append(
            f"{parts} GiB do not fit {device.name} with {device.memory_gib:g} GiB: {missing:.1f} GiB are missing; "
            + _advice(remedies, "a lower rollout.gpu_memory_utilization" if dict(load).get("rollout") else "")
        )
    return found


def kv_problems(spec: RunSpec, model: Architecture, engine: EngineShape, kv: KvCache, device: Device) -> list[str]:
    """VLLM does not start when the keys and values of one sequence of the model's whole context do not fit."""
    if kv.tokens >= spec.context:
        return []
    missing = (spec.context * kv.bytes_per_token - kv.num_bytes) / GIB
    rollout = spec.config.rollout
    if not engine.on_gpu:
        needed = math.ceil(spec.context * kv.bytes_per_token / GIB * 100) / 100
        remedies = [f"rollout.kv_cache_gib={needed:g}"]
    else:
        remedies = for_engine(model, engine, device.memory_gib, rollout.gpu_memory_utilization, spec.context)
    return [
        f"an engine has {max(0, kv.num_bytes) / GIB:.2f} GiB for keys and values, and one sequence of the model's "
        f"{spec.context} positions needs {spec.context * kv.bytes_per_token / GIB:.2f}: {missing:.2f} GiB are missing; "
        + _advice(remedies, "")
    ]


def host_problems(
    spec: RunSpec, rank: Memory, engine: Memory, machines: Sequence[Machine], places: Sequence[Placement]
) -> list[str]:
    """Machines whose memory is less than what is on them: processes without GPU, and what is offloaded."""
    config, found = spec.config, []
    cache = int(config.rollout.kv_cache_gib * GIB)
    each = {
        "learner": sum(rank.host.values()) if config.learner.gpus_per_rank else rank.total,
        "rollout": 0 if config.rollout.gpus_per_worker else engine.total + cache,
        "process": rank.total,
    }
    for index, machine in enumerate(machines):
        here = [where.role for where in places if where.machine == index]
        needs = {role: each[role] * here.count(role) for role in each if role in here and each[role]}
        missing = sum(needs.values()) / GIB - machine.memory_gib
        if missing > 0:
            parts = " and ".join(f"{_count(role, here.count(role))} {size / GIB:.1f}" for role, size in needs.items())
            found.append(
                f"{parts} GiB do not fit the memory of {machine.name}, {machine.memory_gib:.1f} GiB: {missing:.1f} GiB "
                "are missing; lower rollout.kv_cache_gib, pipeline.tokens_per_micro_batch or the number of engines, or "
                "add machines"
            )
    return found


def placement_remedy(spec: RunSpec) -> str:
    """What to do when bundles have no place."""
    config = spec.config
    return (
        f"add nodes, or lower rollout.num_workers ({config.rollout.num_workers}), learner.world_size "
        f"({config.learner.world_size}) or their cpus_per_/gpus_per_ settings"
    )


def _advice(remedies: Sequence[str], otherwise: str) -> str:
    found = [*remedies, *([otherwise] if otherwise else [])]
    return (
        f"try {', or '.join(found)}" if found else "no single setting mends it: take a larger device or a smaller model"
    )


def _count(role: str, count: int) -> str:
    names = {"learner": "learner rank", "rollout": "engine", "process": "process"}
    return f"{count} {names.get(role, role)}{'s' if count > 1 else ''} with"
