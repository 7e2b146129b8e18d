"""Problems of a plan that does not fit, one sentence each: what, where, how much is missing, and the
settings that would make it fit, each tried alone.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace

from lpo_ray.config.engine import indivisible, memory_utilization
from lpo_ray.config.schema import Config
from lpo_ray.errors import ConfigError
from lpo_ray.run.preflight import check_sandbox, check_verifier
from lpo_ray.run.spec import ROUND
from lpo_ray.tasks.table import check_task
from lpo_ray.tools.plan.architecture import Architecture
from lpo_ray.tools.plan.devices import Device
from lpo_ray.tools.plan.machines import Machine, Placement
from lpo_ray.tools.plan.memory import (
    GIB,
    EngineShape,
    KvCache,
    Memory,
    RankSettings,
    engine_memory,
    kv_cache,
    rank_memory,
)
from lpo_ray.tools.plan.requirements import ASSUMED_PROMPT_TOKENS, Lengths

FEWEST_TOKENS = 2048
"""of a micro-batch: fewer cost more than they save"""
MOST_RANKS = 64
MOST_UTILIZATION = 0.95
PARTS = (2, 4, 8)
OFFLOADED = "learner.deepspeed={zero_optimization: {offload_optimizer: {device: cpu}}}"


def unmet_here(config: Config, verifier: str) -> list[str]:
    """Say what ``train`` would refuse on this machine: data and verifiers that are not here. A run may fit all the
    same.
    """
    found = []
    for check in (
        lambda: check_task(config.task, config.evaluation.num_prompts),
        lambda: check_verifier(verifier, config.cluster.kind),
        lambda: check_sandbox(verifier, config),
    ):
        try:
            check()
        except ConfigError as error:
            found.append(f"train would refuse this here: {error}")
    return found


def context_problems(config: Config, context: int, lengths: Lengths) -> list[str]:
    """Check that a response of the most tokens leaves room for a prompt."""
    limit = config.sampling.max_tokens
    if limit < context:
        return []
    fitting = max(1, context - math.ceil(max(lengths.prompt, ASSUMED_PROMPT_TOKENS)))
    return [
        f"sampling.max_tokens is {limit}, but {config.model.path} has {context} positions for prompt and response "
        f"together: no prompt has room; set sampling.max_tokens={fitting} or less, or take a model with more positions"
    ]


def parallel_problems(config: Config, model: Architecture, machines: Sequence[Machine]) -> list[str]:
    """Check that vLLM can cut the model into the parts of an engine, and that a machine has a GPU for each."""
    rollout = config.rollout
    why = indivisible(rollout, model.num_heads, model.num_kv_heads, model.num_layers)
    found = [] if why is None else [why]
    most = max((machine.gpus for machine in machines), default=0)
    if rollout.gpus_per_worker > most > 0:
        found.append(
            f"rollout.gpus_per_worker is {rollout.gpus_per_worker:g}, and no machine has more than {most:g} GPUs: the "
            "processes of an engine are on one node; take more engines of fewer GPUs, rollout.dtype=bfloat16, or "
            "rollout.engine_args={quantization: fp8}"
        )
    return found


def device_problems(
    config: Config,
    model: Architecture,
    rank: RankSettings,
    engine: EngineShape,
    machines: Sequence[Machine],
    places: Sequence[Placement],
    device: Device,
) -> list[str]:
    """Check that roles fit their GPUs, each set of them once. Without places each role has a GPU of its own."""
    utilization = memory_utilization(config.rollout)
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


def kv_problems(
    config: Config, longest: int, model: Architecture, engine: EngineShape, kv: KvCache, device: Device
) -> list[str]:
    """Check that the KV cache holds one sequence of the ``longest`` there may be: without that vLLM does not start."""
    if kv.tokens >= longest:
        return []
    missing = (longest * kv.bytes_per_token - kv.num_bytes) / GIB
    rollout = config.rollout
    if not engine.on_gpu:
        needed = math.ceil(longest * kv.bytes_per_token / GIB * 100) / 100
        remedies = [f"rollout.kv_cache_gib={needed:g}"]
    else:
        remedies = for_engine(model, engine, device.memory_gib, memory_utilization(rollout), longest)
    if kv.tokens > config.sampling.max_tokens + ASSUMED_PROMPT_TOKENS:
        remedies = [f"rollout.max_model_len={kv.tokens // ROUND * ROUND}", *remedies]
    return [
        f"an engine has {max(0, kv.num_bytes) / GIB:.2f} GiB for its KV cache, and one sequence of {longest} positions "
        f"needs {longest * kv.bytes_per_token / GIB:.2f}: {missing:.2f} GiB are missing; " + _advice(remedies, "")
    ]


def host_problems(
    config: Config, rank: Memory, engine: Memory, machines: Sequence[Machine], places: Sequence[Placement]
) -> list[str]:
    """Check that machines have memory for what is on them: processes without GPU, and what is offloaded."""
    found = []
    cache = int(config.rollout.kv_cache_gib * GIB)
    first = next((where.machine for where in places if where.role in ("learner", "process")), None)
    each = {
        "learner": sum(rank.host.values()) if config.learner.gpus_per_rank else rank.total,
        "rollout": 0 if config.rollout.gpus_per_worker else engine.total + cache,
        "process": rank.total,
    }
    for index, machine in enumerate(machines):
        here = [where.role for where in places if where.machine == index]
        needs = {role: each[role] * here.count(role) for role in each if role in here and each[role]}
        save = rank.save if index == first else 0  # rank 0 writes the policy
        missing = (sum(needs.values()) + save) / GIB - machine.memory_gib
        if missing > 0:
            parts = " and ".join(f"{_count(role, here.count(role))} {size / GIB:.1f}" for role, size in needs.items())
            if save:
                parts += f" and a checkpoint of the policy {save / GIB:.1f}"
            found.append(
                f"{parts} GiB do not fit the memory of {machine.name}, {machine.memory_gib:.1f} GiB: {missing:.1f} GiB "
                "are missing; lower rollout.kv_cache_gib, pipeline.tokens_per_micro_batch or the number of engines, or "
                "add machines"
            )
    return found


def placement_remedy(config: Config) -> str:
    """Say what to do when bundles have no place."""
    return (
        f"add nodes, or lower rollout.num_workers ({config.rollout.num_workers}), learner.world_size "
        f"({config.learner.world_size}) or their cpus_per_/gpus_per_ settings"
    )


def for_rank(model: Architecture, rank: RankSettings, room: int) -> list[str]:
    """Find overrides with which a rank takes at most ``room`` bytes of its device, and what it takes then."""
    found = []
    for text, changed in _rank_changes(rank):
        if (total := rank_memory(model, changed).total) <= room:
            found.append(f"{text} ({total / GIB:.1f} GiB)")
    return found


def _rank_changes(rank: RankSettings) -> Iterator[tuple[str, RankSettings]]:
    """Change one setting at a time, each by its mildest step."""
    if not rank.gradient_checkpointing:
        yield "learner.gradient_checkpointing=true", replace(rank, gradient_checkpointing=True)
    if rank.tokens > FEWEST_TOKENS:
        tokens = max(FEWEST_TOKENS, rank.tokens // 2)
        yield (
            f"pipeline.tokens_per_micro_batch={tokens}",
            replace(rank, tokens=tokens, scored=rank.scored * tokens // rank.tokens),
        )
    if rank.world_size < MOST_RANKS:
        size = 2 * rank.world_size
        yield f"learner.world_size={size}", replace(rank, world_size=size)
    if not rank.offload_optimizer:
        yield OFFLOADED, replace(rank, offload_optimizer=True)


def for_engine(
    model: Architecture, engine: EngineShape, memory_gib: float, utilization: float, tokens: int
) -> list[str]:
    """Find overrides with which an engine's KV cache holds ``tokens`` positions."""
    found = []
    if utilization < MOST_UTILIZATION and kv_cache(model, engine, memory_gib, MOST_UTILIZATION).tokens >= tokens:
        found.append(f"rollout.gpu_memory_utilization={MOST_UTILIZATION}")
    for parts in PARTS:
        split = replace(engine, tensor_parallel_size=parts)
        fits = model.num_heads % parts == 0 and kv_cache(model, split, memory_gib, utilization).tokens >= tokens
        if parts > engine.tensor_parallel_size and fits:
            found.append(f"rollout.tensor_parallel_size={parts} rollout.gpus_per_worker={parts}")
            break
    return found


def _advice(remedies: Sequence[str], otherwise: str) -> str:
    found = [*remedies, *([otherwise] if otherwise else [])]
    return (
        f"try {', or '.join(found)}" if found else "no single setting fixes it: take a larger device or a smaller model"
    )


def _count(role: str, count: int) -> str:
    names = {"learner": "learner rank", "rollout": "engine", "process": "process"}
    return f"{count} {names.get(role, role)}{'s' if count > 1 else ''} with"
