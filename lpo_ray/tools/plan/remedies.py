"""Settings that would make a rank or an engine fit, each alone and each tried. Values in, sentences out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from lpo_ray.tools.plan.architecture import Architecture
from lpo_ray.tools.plan.memory import GIB, EngineShape, RankSettings, kv_cache, rank_memory

FEWEST_TOKENS = 2048
"""of a micro-batch: fewer cost more than they save"""
MOST_RANKS = 64
MOST_UTILIZATION = 0.95
PARTS = (2, 4, 8)


def for_rank(model: Architecture, rank: RankSettings, room: int) -> list[str]:
    """Overrides with which a rank takes at most ``room`` bytes of its device, and what it takes then."""
    found = []
    for text, changed in _rank_changes(rank):
        if (total := rank_memory(model, changed).total) <= room:
            found.append(f"{text} ({total / GIB:.1f} GiB)")
    return found


def _rank_changes(rank: RankSettings) -> Iterator[tuple[str, RankSettings]]:
    """Of each setting the mildest step is enough to be named, so the caller sees them in order and keeps all."""
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
        yield "learner.zero={offload_optimizer: {device: cpu}}", replace(rank, offload_optimizer=True)


def for_engine(
    model: Architecture, engine: EngineShape, memory_gib: float, utilization: float, tokens: int
) -> list[str]:
    """Overrides with which keys and values of ``tokens`` positions fit an engine."""
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
