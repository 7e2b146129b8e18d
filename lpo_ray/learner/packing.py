"""Packing: groups into micro-batches within a token budget, balanced over ranks, with global denominators.

A group stays whole wherever it can: its K coefficients need all K log-ratios, and one forward over the whole group has
them. A group that exceeds the budget is split into pieces by responses, never by their segments; so is one that more
ranks than groups have to share. The learner then collects its log-ratios in a pass of its own, unless it knows them
already. The denominators of the loss are counted here, over all ranks and micro-batches, before any backward pass. So
the gradient does not depend on how the groups were laid out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lpo_ray.common.seeds import derive_seed
from lpo_ray.records import G, MicroBatch, Piece, TargetGroup, TrainBatch, Update


@dataclass(frozen=True, slots=True)
class Packing:
    """Settings of packing."""

    world_size: int
    tokens_per_micro_batch: int
    share_prompt: bool

    def tokens(self, piece: Piece[G]) -> int:
        """Count the positions of a packed forward over the piece."""
        group = piece.item.group
        prompt = group.prompt.token_ids
        found = [group.responses[k].positions(prompt) for k in piece.responses]
        behind = sum(behind for behind, _ in found)
        return (min(behind, 1) if self.share_prompt else behind) * len(prompt) + sum(beside for _, beside in found)


def pack_step(
    targets: Sequence[TargetGroup], packing: Packing, *, step: int, seed: int, updates: int, learning_rate: float
) -> TrainBatch:
    """Split a step's groups, in the order of (seed, step), into ``updates`` parts, each packed over the ranks.

    The parts differ by one group at most, where groups were dropped from the step; each has denominators of its own.
    Fewer groups than updates make fewer updates: one without groups would step on weight decay alone. Raises ValueError
    when there are no groups: whether a step may be empty is the caller's decision.
    """
    if not targets or updates < 1:
        raise ValueError(f"{len(targets)} groups for {updates} updates; expected at least one of each")
    order = np.random.default_rng(derive_seed(seed, "updates", step)).permutation(len(targets))
    numbers = np.array_split(order, min(updates, len(targets)))
    parts = [[targets[number] for number in part] for part in numbers]
    return TrainBatch(
        step=step, updates=tuple(pack_update(part, packing) for part in parts), learning_rate=learning_rate
    )


def pack_update(targets: Sequence[TargetGroup], packing: Packing) -> Update:
    """Distribute one update's groups over the ranks, with the denominators of the whole update."""
    shares = balance(targets, packing)
    pieces = (piece for share in shares for micro_batch in share for piece in micro_batch.pieces)
    split = {piece.item.group.key: piece.item.anchor.log_ratio for piece in pieces if not piece.is_whole}
    return Update(
        shares,
        split=split,
        split_passes=max(sum(micro_batch.is_split for micro_batch in share) for share in shares),
        num_prompts=len(targets),
        num_tokens=sum(target.group.num_tokens for target in targets),
        tokens_by_rank=tuple(sum(packing.tokens(piece) for mb in share for piece in mb.pieces) for share in shares),
    )


def balance(items: Sequence[G], packing: Packing) -> tuple[tuple[MicroBatch[G], ...], ...]:
    """Make the micro-batches [rank][i]: longest piece first (LPT), onto the rank with the fewest tokens.

    There it goes into the first micro-batch with room (first fit); a response above the budget stands alone. Every rank
    gets the same number of micro-batches, the last ones empty where needed. ZeRO-3 gathers parameters in each forward,
    so a rank that runs fewer of them would leave the others waiting for ever.
    """
    pieces = [piece for item in items for piece in _pieces(item, packing, len(items))]
    load = [0] * packing.world_size
    shares: list[list[list[Piece[G]]]] = [[] for _ in range(packing.world_size)]
    room: list[list[int]] = [[] for _ in range(packing.world_size)]
    for piece in sorted(pieces, key=packing.tokens, reverse=True):
        size, rank = packing.tokens(piece), load.index(min(load))
        load[rank] += size
        at = next((at for at, left in enumerate(room[rank]) if size <= left), len(room[rank]))
        if at == len(room[rank]):
            shares[rank].append([])
            room[rank].append(packing.tokens_per_micro_batch)
        shares[rank][at].append(piece)
        room[rank][at] -= size
    longest = max(len(share) for share in shares)
    padded = (share + [[]] * (longest - len(share)) for share in shares)
    return tuple(tuple(MicroBatch(tuple(pieces)) for pieces in share) for share in padded)


def _pieces(item: G, packing: Packing, num_items: int) -> list[Piece[G]]:
    """Keep the group whole, or cut its responses into consecutive runs that keep to the budget."""
    every = tuple(range(len(item.group.responses)))
    whole = Piece(item, every)
    budget = packing.tokens_per_micro_batch
    if num_items < packing.world_size:
        budget = min(budget, -(-num_items * packing.tokens(whole) // packing.world_size))
    if packing.tokens(whole) <= budget:
        return [whole]
    runs: list[tuple[int, ...]] = [()]
    for k in every:
        if runs[-1] and packing.tokens(Piece(item, (*runs[-1], k))) > budget:
            runs.append(())
        runs[-1] = (*runs[-1], k)
    return [Piece(item, run) for run in runs]
