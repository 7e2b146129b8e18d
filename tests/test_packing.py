from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lpo_ray.packing import balance, pack_step
from tests.builders import make_target

SIZES = st.lists(st.integers(1, 60), min_size=1, max_size=24)


@given(SIZES, st.integers(1, 4), st.integers(1, 100))
def test_every_item_is_packed_once_and_ranks_run_the_same_number_of_micro_batches(
    sizes: list[int], world_size: int, budget: int
) -> None:
    items = list(enumerate(sizes))
    shares = balance(items, world_size, budget, cost=lambda item: item[1])
    assert sorted(item for share in shares for batch in share for item in batch) == items
    assert len({len(share) for share in shares}) == 1
    for batch in (batch for share in shares for batch in share):
        assert sum(size for _, size in batch) <= budget or len(batch) == 1


@given(SIZES, st.integers(1, 4))
def test_no_rank_is_ahead_by_more_than_one_item(sizes: list[int], world_size: int) -> None:
    shares = balance(sizes, world_size, 10**9, cost=lambda size: size)
    loads = [sum(size for batch in share for size in batch) for share in shares]
    assert max(loads) - min(loads) <= max(sizes)


def test_a_step_is_split_in_order_with_the_denominators_of_the_whole_update() -> None:
    targets = [make_target(number, (3, 5)) for number in range(6)]
    batch = pack_step(targets, step=0, updates=2, world_size=2, tokens_per_micro_batch=100, learning_rate=0.1)
    assert [update.num_prompts for update in batch.updates] == [3, 3]
    assert [update.num_tokens for update in batch.updates] == [24, 24]
    first = {target.group.prompt.prompt_id for share in batch.updates[0].shares for mb in share for target in mb.groups}
    assert first == {f"train-{number:08d}" for number in range(3)}


def test_groups_that_do_not_divide_are_refused() -> None:
    with pytest.raises(ValueError, match="3 groups cannot be split into 2 equal updates"):
        pack_step(
            [make_target(n) for n in range(3)], step=0, updates=2, world_size=1, tokens_per_micro_batch=10,
            learning_rate=0.1,
        )  # fmt: skip
