from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lpo_ray.records import ScoredGroup
from lpo_ray.training.staleness import GateSlot, ReadyGroups, StalenessGate
from tests.support.builders import make_scored


async def test_the_gate_admits_its_capacity_and_then_waits() -> None:
    gate = StalenessGate(4, max_bytes=100, largest_group=10)
    slots = [await asyncio.wait_for(gate.acquire(), 1) for _ in range(4)]
    waiting = asyncio.ensure_future(gate.acquire())
    await asyncio.sleep(0)
    assert not waiting.done()
    gate.release(slots[0])
    await asyncio.wait_for(waiting, 1)
    assert gate.in_flight == 4


async def test_the_gate_counts_bytes_at_most_and_then_as_they_are() -> None:
    gate = StalenessGate(10, max_bytes=25, largest_group=10)
    first, _ = await gate.acquire(), await gate.acquire()
    waiting = asyncio.ensure_future(gate.acquire())
    await asyncio.sleep(0)
    assert not waiting.done()
    gate.resize(first, 5)
    await asyncio.wait_for(waiting, 1)
    assert gate.num_bytes == 25


async def test_the_gate_refuses_to_free_what_is_not_taken() -> None:
    gate = StalenessGate(2, 100, 10)
    slot = await gate.acquire()
    gate.release(slot)
    with pytest.raises(ValueError, match="released a slot of 10 bytes that is not taken"):
        gate.release(slot)


@pytest.mark.parametrize(("capacity", "max_bytes"), [(0, 10), (1, 9)])
def test_a_gate_that_admits_nothing_is_refused(capacity: int, max_bytes: int) -> None:
    with pytest.raises(ValueError, match="room for at least one group"):
        StalenessGate(capacity, max_bytes, 10)


@given(st.lists(st.sampled_from(["acquire", "arrive", "release"]), max_size=60), st.integers(1, 5), st.integers(10, 60))
def test_the_gate_never_holds_more_than_it_may(moves: list[str], capacity: int, max_bytes: int) -> None:
    async def run() -> None:
        gate = StalenessGate(capacity, max_bytes, 10)
        held: list[GateSlot] = []
        waiting: list[asyncio.Task[GateSlot]] = []
        for move in moves:
            if move == "acquire":
                waiting.append(asyncio.ensure_future(gate.acquire()))
            elif move == "arrive" and held:
                gate.resize(held[-1], 3)
            elif move == "release" and held:
                gate.release(held.pop(0))
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            held += [task.result() for task in waiting if task.done()]
            waiting = [task for task in waiting if not task.done()]
            assert gate.in_flight == len(held) <= capacity
            assert gate.num_bytes == sum(slot.num_bytes for slot in held) <= max_bytes
            assert not waiting or gate.in_flight == capacity or gate.num_bytes > max_bytes - 10
        for task in waiting:
            task.cancel()

    asyncio.run(run())


@given(st.permutations(range(6)), st.integers(0, 3))
def test_groups_are_taken_oldest_first_and_never_beyond_the_bound(order: list[int], bound: int) -> None:
    async def run() -> tuple[list[ScoredGroup], list[ScoredGroup]]:
        ready, stale = ReadyGroups(), list[ScoredGroup]()
        for number in order:
            ready.put(make_scored(number, version=number))
        fresh = [await ready.take_fresh(5, bound, stale.append) for _ in range(bound + 1)]
        assert len(ready) == 0
        return fresh, stale

    fresh, stale = asyncio.run(run())
    assert [scored.group.oldest_version for scored in fresh] == list(range(5 - bound, 6))
    assert [scored.group.oldest_version for scored in stale] == list(range(5 - bound))
