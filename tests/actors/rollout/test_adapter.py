"""Versions of an adapter that an engine has at once: which are needed, dropped, and read by what begins."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.rollout.adapter import ServedAdapter
from lpo_ray.policy.lora import AdapterSettings

SETTINGS = AdapterSettings(4, 8, ("q_proj",))


def publish(adapter: ServedAdapter, version: int) -> list[int]:
    number, dropped = adapter.next_place()
    adapter.put(number, dropped, str(version))
    adapter.release()
    return dropped


@asynccontextmanager
async def running(adapter: ServedAdapter, *, newest: bool = False) -> AsyncIterator[str | None]:
    async with adapter.used(bare=False, newest=newest) as (_, version):
        yield version


def test_what_is_not_proved_is_read_by_the_probe_alone() -> None:
    async def look() -> None:
        adapter = ServedAdapter(SETTINGS, 2)
        publish(adapter, 0)
        number, dropped = adapter.next_place()
        adapter.put(number, dropped, "1")
        async with running(adapter) as served, running(adapter, newest=True) as probed:
            assert (served, probed) == ("0", "1")
        adapter.release()
        async with running(adapter) as served:
            assert served == "1"

    asyncio.run(look())


def test_an_update_waits_for_the_oldest_that_runs() -> None:
    async def look() -> None:
        adapter = ServedAdapter(SETTINGS, 2)
        publish(adapter, 0)
        async with AsyncExitStack() as old:
            await old.enter_async_context(running(adapter))
            publish(adapter, 1)
            with pytest.raises(RuntimeError, match="2 versions of the adapter are in use; expected 1 at most"):
                adapter.next_place()
            waiting = asyncio.create_task(adapter.until_a_place_is_free())
            await asyncio.sleep(0)
            assert not waiting.done()
        await asyncio.wait_for(waiting, 1)
        assert publish(adapter, 2) == [1]  # the number of version 0

    asyncio.run(look())


@given(st.integers(1, 4), st.lists(st.integers(0, 3), max_size=30))
def test_a_number_is_never_used_again_and_places_suffice(places: int, moves: list[int]) -> None:
    """0: publish; else: begin a request, and end the oldest when more than that many run."""

    async def look() -> None:
        adapter, there, numbers = ServedAdapter(SETTINGS, places), set[int](), list[int]()
        stacks: list[AsyncExitStack] = []
        begun: list[str | None] = []
        for step, move in enumerate([0, *moves]):
            if move:
                stack = AsyncExitStack()
                begun.append(await stack.enter_async_context(running(adapter)))
                assert begun[-1] == str(len(numbers) - 1)
                stacks.append(stack)
                if len(stacks) > move:
                    await stacks.pop(0).aclose()
                continue
            waiting = asyncio.create_task(adapter.until_a_place_is_free())
            await asyncio.sleep(0)
            while not waiting.done():
                await stacks.pop(0).aclose()
                await asyncio.sleep(0)
            number, dropped = adapter.next_place()
            assert places == 1 or number not in numbers
            there = (there - set(dropped)) | {number}
            assert len(there) <= places, step
            adapter.put(number, dropped, str(len(numbers)))
            adapter.release()
            numbers.append(number)
        for stack in stacks:
            await stack.aclose()

    asyncio.run(look())
