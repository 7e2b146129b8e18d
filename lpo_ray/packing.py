"""Whole groups into token-budgeted micro-batches, balanced over ranks, with global denominators.

A group is never split: its K coefficients need all K log-ratios of one forward (DESIGN: exactness rule 1). The loss
denominators are counted here, over all ranks and micro-batches, before any backward pass; so the gradient does not
depend on how the groups were laid out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from lpo_ray.records import MicroBatch, TargetGroup, TrainBatch, Update

T = TypeVar("T")


def pack_step(
    targets: Sequence[TargetGroup],
    *,
    step: int,
    updates: int,
    world_size: int,
    tokens_per_micro_batch: int,
    learning_rate: float,
) -> TrainBatch:
    """Split a step's groups into ``updates`` consecutive equal parts, each packed over ``world_size`` ranks.

    Raises ValueError when the groups do not divide; the configuration is checked for it before.
    """
    if not targets or len(targets) % updates:
        raise ValueError(f"{len(targets)} groups cannot be split into {updates} equal updates")
    size = len(targets) // updates
    parts = [targets[start : start + size] for start in range(0, len(targets), size)]
    packed = tuple(pack_update(part, world_size, tokens_per_micro_batch) for part in parts)
    return TrainBatch(step=step, updates=packed, learning_rate=learning_rate)


def pack_update(targets: Sequence[TargetGroup], world_size: int, tokens_per_micro_batch: int) -> Update:
    """One update's groups over the ranks, with the denominators of the whole update."""
    shares = balance(targets, world_size, tokens_per_micro_batch, cost=lambda target: target.group.forward_tokens)
    return Update(
        tuple(tuple(MicroBatch(tuple(groups)) for groups in share) for share in shares),
        num_prompts=len(targets),
        num_tokens=sum(target.group.num_tokens for target in targets),
    )


def balance(items: Sequence[T], world_size: int, budget: int, *, cost: Callable[[T], int]) -> list[list[list[T]]]:
    """[rank][micro-batch] lists: longest item first onto the rank with the fewest tokens (LPT), then up to ``budget``
    tokens a micro-batch; an item above the budget stands alone.

    Every rank gets the same number of micro-batches, the last ones empty where needed: ZeRO-3 gathers parameters in
    each forward, so a rank that runs fewer of them leaves the others waiting for ever.
    """
    shares: list[list[list[T]]] = [[] for _ in range(world_size)]
    load = [0] * world_size
    room = [0] * world_size
    for item in sorted(items, key=cost, reverse=True):
        size = cost(item)
        rank = load.index(min(load))
        if not shares[rank] or size > room[rank]:
            shares[rank].append([])
            room[rank] = budget
        shares[rank][-1].append(item)
        load[rank] += size
        room[rank] -= size
    longest = max(len(share) for share in shares)
    return [share + [[] for _ in range(longest - len(share))] for share in shares]
