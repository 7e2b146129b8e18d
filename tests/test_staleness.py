from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lpo_ray.records import ScoredGroup
from lpo_ray.staleness import StalenessGate, take_fresh
from tests.builders import make_scored


async def test_the_gate_admits_its_capacity_and_then_waits() -> None:
    gate = StalenessGate(groups_per_step=2, max_staleness=1)
    for _ in range(4):
        await asyncio.wait_for(gate.acquire(), 1)
    waiting = asyncio.ensure_future(gate.acquire())
    await asyncio.sleep(0)
    assert not waiting.done()
    gate.release(1)
    await asyncio.wait_for(waiting, 1)
    assert gate.in_flight == 4


async def test_the_gate_refuses_to_free_more_than_is_taken() -> None:
    gate = StalenessGate(2, 0)
    await gate.acquire()
    with pytest.raises(ValueError, match="released 2 places of 1"):
        gate.release(2)


@given(st.permutations(range(6)), st.integers(0, 3))
def test_take_fresh_never_returns_a_group_beyond_the_bound(order: list[int], bound: int) -> None:
    async def run() -> tuple[list[ScoredGroup], list[ScoredGroup]]:
        queue: asyncio.Queue[ScoredGroup] = asyncio.Queue()
        for number in order:
            queue.put_nowait(make_scored(number, version=number))
        stale: list[ScoredGroup] = []
        fresh = await take_fresh(queue, min(bound + 1, 6), step=5, max_staleness=bound, on_stale=stale.append)
        return fresh, stale

    fresh, stale = asyncio.run(run())
    assert all(5 - scored.group.oldest_version <= bound for scored in fresh)
    assert all(5 - scored.group.oldest_version > bound for scored in stale)
    names = [scored.group.prompt.prompt_id for scored in fresh]
    assert names == sorted(names)
