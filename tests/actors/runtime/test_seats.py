"""Seats in order of nodes and GPUs, and who gets which, with made-up placement groups; the real ones are in
``e2e/test_gpu_placement.py``.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.runtime import seats as module
from actors.runtime.placement import Request, bundle
from actors.runtime.seats import OwnGroups, Seat, SharedGpus, gpus_of, visible
from lpo_ray.errors import ComponentDied, NoRoom

Where = dict[int, tuple[str, tuple[str, ...]]]
"""bundle -> node and GPUs; an empty node: it is not placed"""


class Ray:
    """Placement groups of which ``where`` says how they are placed; ``deaf``: bundles that do not answer."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, where: Where) -> None:
        self.where, self.deaf = where, set[int]()
        self.asked: list[int] = []
        self.removed = 0
        monkeypatch.setattr(module, "reserve", self._reserve)
        monkeypatch.setattr(module, "placement_group_table", self._table)
        monkeypatch.setattr(module, "remove_placement_group", self._remove)
        monkeypatch.setattr(module, "call_each", self._answers)
        monkeypatch.setattr(module.ray, "remote", lambda **_: lambda _: self)
        monkeypatch.setattr(module, "PAUSE_SECONDS", 0.001)

    async def _reserve(self, request: Request, seconds: float, note: Callable[[str], None]) -> str:
        return "group"

    def _table(self, group: str) -> dict[str, dict[int, str]]:
        return {"bundles_to_node_id": {number: node for number, (node, _) in self.where.items()}}

    def _remove(self, group: str) -> None:
        self.removed += 1

    def options(self, scheduling_strategy: object) -> Ray:
        self.asked.append(scheduling_strategy.placement_group_bundle_index)
        return self

    def remote(self) -> int:
        return self.asked[-1]

    async def _answers(self, references: list[int], **_: object) -> list[object]:
        return [ComponentDied("x", "gone") if n in self.deaf else self.where[n][1] for n in references]


def one_gpu_each(*nodes: str) -> Where:
    counts = {node: itertools.count() for node in nodes}
    return {number: (node, (str(next(counts[node])),)) for number, node in enumerate(nodes)}


def shared(count: int, parts: int = 1, seconds: float = 0.05) -> SharedGpus:
    return SharedGpus(Request("learner and rollout", [bundle(1, 1)] * count, "PACK"), parts, seconds)


def silent(text: str) -> None:
    pass


async def test_ranks_are_numbered_by_node_then_gpu_whatever_the_order_of_bundles(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    Ray(monkeypatch, {0: ("b", ("10",)), 1: ("a", ("1",)), 2: ("b", ("9",)), 3: ("a", ("0",))})
    found = await shared(4).ranks.take("the learner", 4, silent)
    assert [(seat.node, *seat.gpus) for seat in found] == [("b", "9"), ("b", "10"), ("a", "0"), ("a", "1")]
    assert [seat.bundle for seat in found] == [2, 0, 3, 1]


async def test_bundles_without_gpus_are_asked_for_none(monkeypatch: pytest.MonkeyPatch) -> None:
    ray = Ray(monkeypatch, {0: ("a", ()), 1: ("b", ()), 2: ("a", ())})
    places = OwnGroups(Request("learner", [bundle(1, 0)], "PACK"), 1)
    found = await places.take("the learner", 3, silent)
    assert [(seat.node, seat.bundle) for seat in found] == [("a", 0), ("a", 2), ("b", 1)]
    assert ray.asked == []
    places.give_back(found)
    assert ray.removed == 1


async def test_gpus_named_by_uuid_stay_in_the_order_of_bundles(monkeypatch: pytest.MonkeyPatch) -> None:
    Ray(monkeypatch, {0: ("a", ("GPU-f0",)), 1: ("a", ("GPU-0a",))})
    assert gpus_of(await shared(2).ranks.take("the learner", 2, silent)) == ["GPU-f0", "GPU-0a"]


async def test_a_bundle_is_asked_once_and_again_where_it_came_to_another_node(monkeypatch: pytest.MonkeyPatch) -> None:
    ray = Ray(monkeypatch, one_gpu_each("a", "b"))
    gpus = shared(2)
    first = await gpus.ranks.take("the learner", 2, silent)
    assert await gpus.ranks.take("the learner", 2, silent) == first
    ray.where[1] = ("c", ("5",))
    assert gpus_of(await gpus.ranks.take("the learner", 2, silent)) == ["0", "5"]
    assert ray.asked == [0, 1, 1]


async def test_a_node_that_goes_before_its_bundle_has_answered_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    ray = Ray(monkeypatch, one_gpu_each("a", "b"))
    ray.deaf = {1}
    taking = asyncio.ensure_future(shared(2, seconds=5).ranks.take("the learner", 2, silent))
    await asyncio.sleep(0.02)
    assert not taking.done()
    ray.deaf = set()
    assert len(await taking) == 2


async def test_own_groups_are_given_back_when_their_node_goes_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    ray = Ray(monkeypatch, {0: ("a", ("0",)), 1: ("", ())})
    with pytest.raises(NoRoom, match=r"learner asks for 2 x .* a node of its placement group is gone"):
        await OwnGroups(Request("learner", [bundle(1, 1)], "PACK"), 0.05).take("the learner", 2, silent)
    assert ray.removed == 1


async def test_an_engine_that_is_started_again_comes_back_to_its_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    Ray(monkeypatch, one_gpu_each("a", "a", "a"))
    gpus = shared(3)
    first, second = [await gpus.engines.take(f"engine {n}", 1, silent) for n in (0, 1)]
    gpus.engines.give_back(second)
    assert gpus_of(await gpus.engines.take("engine 2", 1, silent)) == ["2"]  # not where another may come back to
    assert await gpus.engines.take("engine 1", 1, silent) == second
    with pytest.raises(NoRoom, match="engine 3 needs the GPU of 1 rank on one node, without an engine"):
        await gpus.engines.take("engine 3", 1, silent)
    gpus.engines.give_back(first)
    assert await gpus.engines.take("engine 3", 1, silent) == first
    gpus.remove()


async def test_an_engine_has_no_place_where_no_rank_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """As after the learner went on with fewer ranks, and the lost node came back."""
    ray = Ray(monkeypatch, one_gpu_each("a", "b"))
    gpus = shared(2)
    ray.where[1] = ("", ())
    assert len(await gpus.ranks.take("the learner", 1, silent)) == 1
    ray.where[1] = ("c", ("0",))
    assert (await gpus.engines.take("engine 0", 1, silent))[0].node == "a"
    with pytest.raises(NoRoom):
        await gpus.engines.take("engine 1", 1, silent)
    assert gpus.engines.most() == 1


@given(
    nodes=st.lists(st.integers(1, 9), min_size=1, max_size=4), parts=st.integers(1, 4),
    comings=st.lists(st.integers(0, 5), max_size=20),
)  # fmt: skip
async def test_no_two_engines_have_a_gpu_in_common_and_none_is_on_two_nodes(
    nodes: list[int], parts: int, comings: list[int]
) -> None:
    with pytest.MonkeyPatch.context() as monkeypatch:
        names = [str(number) for number, size in enumerate(nodes) for _ in range(size)]
        Ray(monkeypatch, one_gpu_each(*names))
        gpus = shared(len(names), parts, seconds=0.0)
        most = sum(size // parts for size in nodes)
        held: dict[str, list[Seat]] = {}
        for number in comings:  # a name that is there leaves, another comes
            who = f"engine {number}"
            if who in held:
                gpus.engines.give_back(held.pop(who))
            elif len(held) < most:
                held[who] = await gpus.engines.take(who, parts, silent)
                assert len({seat.node for seat in held[who]}) == 1
                assert len(gpus_of(held[who])) == parts
            else:
                with pytest.raises(NoRoom):
                    await gpus.engines.take(who, parts, silent)
            taken = [seat.bundle for found in held.values() for seat in found]
            assert len(taken) == len(set(taken))


def test_a_process_sees_what_it_is_told_even_where_ray_would_tell_it_otherwise() -> None:
    assert visible(()) == {"CUDA_VISIBLE_DEVICES": ""}
    assert visible(("3", "1")) == {
        "CUDA_VISIBLE_DEVICES": "3,1", "RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES": "1",
    }  # fmt: skip
