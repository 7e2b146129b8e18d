from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lpo_ray.learner.packing import Packing, balance, pack_step
from lpo_ray.records import TargetGroup
from tests.support.builders import make_target

GROUPS = st.lists(st.lists(st.integers(1, 30), min_size=1, max_size=5), min_size=1, max_size=10)


def groups_of(lengths: list[list[int]]) -> list[TargetGroup]:
    return [make_target(number, tuple(sizes), prompt_length=1 + number % 4) for number, sizes in enumerate(lengths)]


@given(GROUPS, st.integers(1, 4), st.integers(1, 100), st.booleans())
def test_every_response_is_packed_once_and_ranks_run_the_same_number_of_micro_batches(
    lengths: list[list[int]], world_size: int, budget: int, share: bool
) -> None:
    items, packing = groups_of(lengths), Packing(world_size, budget, share)
    shares = balance(items, packing)
    found = sorted(
        (piece.item.group.prompt.prompt_id, k)
        for rank in shares for micro_batch in rank for piece in micro_batch.pieces for k in piece.responses
    )  # fmt: skip
    assert found == [(item.group.prompt.prompt_id, k) for item in items for k in range(len(item.log_target))]
    assert len({len(rank) for rank in shares}) == 1
    for micro_batch in (micro_batch for rank in shares for micro_batch in rank):
        pieces = micro_batch.pieces
        alone = len(pieces) == 1 and len(pieces[0].responses) == 1
        assert sum(packing.tokens(piece) for piece in pieces) <= budget or alone


@given(GROUPS, st.integers(1, 4), st.integers(1, 300))
def test_a_group_is_split_only_when_it_exceeds_the_budget_or_ranks_outnumber_the_groups(
    lengths: list[list[int]], world_size: int, budget: int
) -> None:
    items, packing = groups_of(lengths), Packing(world_size, budget, share_prompt=False)
    for rank in balance(items, packing):
        for piece in (piece for micro_batch in rank for piece in micro_batch.pieces):
            tokens = piece.item.group.num_tokens + len(piece.item.log_target) * len(piece.item.group.prompt.token_ids)
            assert piece.is_whole or tokens > budget or len(items) < world_size


@given(GROUPS, st.integers(1, 4))
def test_no_rank_is_ahead_by_more_than_one_piece(lengths: list[list[int]], world_size: int) -> None:
    packing = Packing(world_size, 10**9, share_prompt=False)
    shares = balance(groups_of(lengths), packing)
    sizes = [[packing.tokens(piece) for micro_batch in rank for piece in micro_batch.pieces] for rank in shares]
    loads = [sum(rank) for rank in sizes]
    assert max(loads) - min(loads) <= max(max(rank, default=0) for rank in sizes)


def test_micro_batches_are_filled_first_fit() -> None:
    """40 + 10 and 35 + 15 fit two of 50; next-fit in this order would need three."""
    packing = Packing(1, 50, share_prompt=False)
    shares = balance([make_target(n, (size,), prompt_length=1) for n, size in enumerate((39, 34, 14, 9))], packing)
    assert [sorted(packing.tokens(piece) for piece in mb.pieces) for mb in shares[0]] == [[10, 40], [15, 35]]


def test_one_copy_of_a_shared_prompt_counts() -> None:
    target = make_target(0, (3, 5), prompt_length=7)
    piece = balance([target], Packing(1, 100, share_prompt=True))[0][0].pieces[0]
    assert Packing(1, 100, share_prompt=True).tokens(piece) == 7 + 8
    assert Packing(1, 100, share_prompt=False).tokens(piece) == 14 + 8


def test_a_step_is_split_by_seed_with_the_denominators_of_the_whole_update() -> None:
    targets = [make_target(number, (3, 5)) for number in range(6)]

    def names(step: int, seed: int) -> list[list[str]]:
        batch = pack_step(targets, Packing(2, 100, False), step=step, seed=seed, updates=2, learning_rate=0.1)
        assert [update.num_prompts for update in batch.updates] == [3, 3]
        assert [update.num_tokens for update in batch.updates] == [24, 24]
        assert [sum(update.tokens_by_rank) for update in batch.updates] == [48, 48]
        return [
            sorted(piece.item.group.prompt.prompt_id for share in update.shares for mb in share for piece in mb.pieces)
            for update in batch.updates
        ]

    assert names(0, 0) == names(0, 0)
    assert sorted(itertools.chain(*names(0, 0))) == [f"train-{number:08d}" for number in range(6)]
    assert len({str(names(step, seed)) for step in range(4) for seed in range(4)}) > 4


def test_imbalance_is_the_share_of_time_spent_waiting() -> None:
    batch = pack_step(
        [make_target(0, (36,)), make_target(1, (14,))], Packing(2, 100, False), step=0, seed=0, updates=1,
        learning_rate=0.1,
    )  # fmt: skip
    assert batch.updates[0].tokens_by_rank == (40, 18)
    assert batch.updates[0].imbalance == pytest.approx(1 - 58 / 80)
    assert replace(batch.updates[0], tokens_by_rank=(7, 7)).imbalance == 0.0


@given(GROUPS, st.integers(1, 6), st.integers(1, 3), st.sampled_from([1, 40, 10**6]), st.integers(0, 99))
def test_groups_that_do_not_divide_make_updates_that_differ_by_one(
    lengths: list[list[int]], updates: int, world_size: int, budget: int, step: int
) -> None:
    targets = groups_of(lengths)
    by_name = {target.group.prompt.prompt_id: target for target in targets}
    packing = Packing(world_size, budget, share_prompt=False)
    batch = pack_step(targets, packing, step=step, seed=0, updates=updates, learning_rate=0.1)
    trained: list[str] = []
    for update in batch.updates:
        pieces = [piece for share in update.shares for mb in share for piece in mb.pieces]
        names = sorted({piece.item.group.prompt.prompt_id for piece in pieces})
        assert update.num_prompts == len(names)
        assert update.num_tokens == sum(by_name[name].group.num_tokens for name in names)
        assert sum(len(piece.responses) for piece in pieces) == sum(len(by_name[name].log_target) for name in names)
        assert len({len(share) for share in update.shares}) == 1
        trained += names
    assert sorted(trained) == sorted(by_name)
    sizes = [update.num_prompts for update in batch.updates]
    assert len(sizes) == min(updates, len(targets))
    assert max(sizes) - min(sizes) <= 1


def test_a_step_without_groups_is_refused() -> None:
    with pytest.raises(ValueError, match="0 groups for 2 updates; expected at least one of each"):
        pack_step([], Packing(1, 10, False), step=0, seed=0, updates=2, learning_rate=0.1)
