"""Seats: where an actor is put, and which GPUs it sees.

A seat is a bundle of a placement group. Seats are in the order of nodes and GPUs, and so are the ranks in them. Ray
gives a share of a GPU to the fullest one that still has it, so two ranks would come on one GPU. Where ranks and engines
share GPUs they therefore have one placement group, each of whose bundles is one whole GPU.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Protocol

import ray
from ray.util.placement_group import PlacementGroup, placement_group_table, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy
from typing_extensions import override

from actors.runtime.placement import NOTE_SECONDS, Request, reserve
from actors.runtime.remote_calls import call_each
from lpo_ray.errors import LpoRayError, NoRoom

Note = Callable[[str], None]
LOOK_SECONDS = 60.0
"""limit for a bundle to say which GPUs it has"""
LOOK_SHARE = 0.0001
"""of a GPU, the smallest that Ray knows: what it takes to be told which one a bundle has"""
PAUSE_SECONDS = 1.0
"""between two looks at a placement group that is not complete"""


@dataclass(frozen=True, slots=True)
class Seat:
    """A bundle that has its place."""

    group: PlacementGroup
    bundle: int
    node: str
    """id of the node"""
    gpus: tuple[str, ...] = ()
    """its GPUs, as CUDA_VISIBLE_DEVICES names them"""

    @property
    def strategy(self) -> PlacementGroupSchedulingStrategy:
        """Strategy that puts an actor there."""
        return PlacementGroupSchedulingStrategy(self.group, placement_group_bundle_index=self.bundle)


def visible(gpus: Sequence[str]) -> dict[str, str]:
    """Environment of a process that sees these GPUs only. Ray itself hides none from an actor that asks for none, and
    gives one that sits in several bundles the GPUs of the first.
    """
    hands_off = {"RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES": "1"} if gpus else {}
    return {"CUDA_VISIBLE_DEVICES": ",".join(gpus), **hands_off}


def gpus_of(seats: Sequence[Seat]) -> list[str]:
    """List the GPUs of ``seats``, in their order."""
    return [gpu for seat in seats for gpu in seat.gpus]


class Places(Protocol):
    """Places of a role's actors."""

    async def take(self, who: str, count: int, note: Note) -> list[Seat]:
        """Wait for ``count`` seats, in order, and give them to ``who``. ``note`` is told what is missing. Raises
        NoRoom.
        """
        ...

    def give_back(self, seats: Sequence[Seat]) -> None:
        """Take back what ``take`` gave."""
        ...


class OwnGroups(Places):
    """Places in placement groups of their own, one for each that asks."""

    def __init__(self, request: Request, seconds: float) -> None:
        """``request``: of one seat. It is waited for ``seconds``."""
        self._request, self._seconds = request, seconds

    @override
    async def take(self, who: str, count: int, note: Note) -> list[Seat]:
        wanted = replace(self._request, bundles=list(self._request.bundles[:1]) * count)
        group = await reserve(wanted, self._seconds, note)
        known: dict[tuple[int, str], tuple[str, ...]] = {}
        gpus = wanted.bundles[0].get("GPU", 0.0)

        async def look() -> list[Seat] | None:
            seats = await _located(group, gpus, known)
            return seats if len(seats) == count else None

        try:
            return await _wait(look, self._seconds, note, f"{wanted}; a node of its placement group is gone")
        except BaseException:
            remove_placement_group(group)
            raise

    @override
    def give_back(self, seats: Sequence[Seat]) -> None:
        remove_placement_group(seats[0].group)


class SharedGpus:
    """One placement group for ranks and engines, which stays when they are started again: each finds its GPU again."""

    def __init__(self, request: Request, parts: int, seconds: float) -> None:
        """``request``: one bundle for each GPU. ``parts``: GPUs of an engine."""
        self._request, self._seconds = request, seconds
        self._lock = asyncio.Lock()
        self._group: PlacementGroup | None = None
        self._known: dict[tuple[int, str], tuple[str, ...]] = {}
        self.seats: list[Seat] = []
        """those that are placed, as they were seen last"""
        self.ranks = RankPlaces(self)
        self.engines = EnginePlaces(self, parts)

    async def look(self, note: Note) -> list[Seat]:
        """List the seats that are placed now; the first call waits for all. Raises NoRoom."""
        async with self._lock:
            if self._group is None:
                self._group = await reserve(self._request, self._seconds, note)
            self.seats = await _located(self._group, LOOK_SHARE, self._known)
            return self.seats

    async def wait(self, find: Callable[[list[Seat]], list[Seat] | None], note: Note, lacking: str) -> list[Seat]:
        """Wait until ``find`` has chosen from what is placed. Raises NoRoom, with what is ``lacking``."""

        async def look() -> list[Seat] | None:
            return find(await self.look(note))

        return await _wait(look, self._seconds, note, lacking)

    def remove(self) -> None:
        """Give all GPUs back, once ranks and engines have ended."""
        if self._group is not None:
            remove_placement_group(self._group)
            self._group, self._known = None, {}


class RankPlaces(Places):
    """Places of the ranks: the first of what is placed."""

    def __init__(self, gpus: SharedGpus) -> None:
        self._gpus = gpus
        self.bundles: frozenset[int] | None = None
        """those with a rank; None: no rank was started"""

    @override
    async def take(self, who: str, count: int, note: Note) -> list[Seat]:
        def find(seats: list[Seat]) -> list[Seat] | None:
            return seats[:count] if len(seats) >= count else None

        lacking = f"{who} needs {count} GPUs of those that it shares with engines"
        found = await self._gpus.wait(find, note, lacking)
        self.bundles = frozenset(seat.bundle for seat in found)
        return found

    @override
    def give_back(self, seats: Sequence[Seat]) -> None:
        pass  # the group stays


class EnginePlaces(Places):
    """Places of engines: each beside as many ranks as it has parts, all on one node."""

    def __init__(self, gpus: SharedGpus, parts: int) -> None:
        self._gpus, self._parts = gpus, parts
        self._held: set[int] = set()
        """bundles with an engine"""
        self._last: dict[int, str] = {}
        """first bundle -> the engine that had it last"""

    @override
    async def take(self, who: str, count: int, note: Note) -> list[Seat]:
        def find(seats: list[Seat]) -> list[Seat] | None:
            free = [places for places in self._of(seats) if not self._held & {seat.bundle for seat in places}]
            if not free:
                return None
            # Its own, else one that nobody had: an engine that is started again comes back to its GPU.
            found = min(free, key=lambda places: self._preference(who, places[0].bundle))
            self._held |= {seat.bundle for seat in found}
            self._last[found[0].bundle] = who
            return found

        lacking = (
            f"{who} needs the GPU of {count} rank{'s' * (count > 1)} on one node, without an engine; set fewer "
            "rollout workers, or raise learner.world_size"
        )
        return await self._gpus.wait(find, note, lacking)

    @override
    def give_back(self, seats: Sequence[Seat]) -> None:
        self._held -= {seat.bundle for seat in seats}

    def most(self) -> int:
        """Count the engines that have a place on what is placed."""
        return len(self._of(self._gpus.seats))

    def _of(self, seats: list[Seat]) -> list[list[Seat]]:
        """Divide the seats beside ranks among engines, node by node. What a node has left over goes without."""
        ranked = self._gpus.ranks.bundles
        beside = [seat for seat in seats if ranked is None or seat.bundle in ranked]
        by_node = [list(found) for _, found in groupby(beside, key=lambda seat: seat.node)]
        return [
            found[start : start + self._parts]
            for found in by_node
            for start in range(0, len(found) - self._parts + 1, self._parts)
        ]

    def _preference(self, who: str, bundle: int) -> tuple[bool, bool]:
        last = self._last.get(bundle)
        return last != who, last is not None


async def _wait(
    look: Callable[[], Awaitable[list[Seat] | None]], seconds: float, note: Note, lacking: str
) -> list[Seat]:
    started = noted = time.monotonic()
    while (found := await look()) is None:
        if (waited := time.monotonic() - started) > seconds:
            raise NoRoom(f"no room within {seconds:g} s (cluster.placement_seconds): {lacking}")
        if time.monotonic() - noted > NOTE_SECONDS:
            noted = time.monotonic()
            note(f"waiting for room since {waited:.0f} s: {lacking}")
        await asyncio.sleep(PAUSE_SECONDS)
    return found


async def _located(group: PlacementGroup, gpus: float, known: dict[tuple[int, str], tuple[str, ...]]) -> list[Seat]:
    """List the bundles of ``group`` that are placed, by node and GPU. ``gpus``: what is taken to ask a bundle for its
    GPUs; 0: it has none. ``known``: what was found before, by bundle and node; added to.
    """
    placed: Mapping[int, str] = placement_group_table(group)["bundles_to_node_id"]
    seats = [Seat(group, bundle, node) for bundle, node in sorted(placed.items()) if node]
    unknown = [seat for seat in seats if gpus and (seat.bundle, seat.node) not in known]
    asked = ray.remote(num_cpus=0, num_gpus=gpus, max_retries=0)(_gpus_here)
    found = await call_each(
        [asked.options(scheduling_strategy=seat.strategy).remote() for seat in unknown],
        who=[f"bundle {seat.bundle}" for seat in unknown], what="say which GPUs it has", seconds=LOOK_SECONDS,
    )  # fmt: skip
    for seat, answer in zip(unknown, found, strict=True):
        if not isinstance(answer, LpoRayError):  # its node has gone meanwhile
            known[seat.bundle, seat.node] = answer
    if gpus:
        seats = [replace(seat, gpus=known[at]) for seat in seats if (at := (seat.bundle, seat.node)) in known]
    order = {node: number for number, node in enumerate(dict.fromkeys(seat.node for seat in seats))}
    return sorted(seats, key=lambda seat: (order[seat.node], [_number(gpu) for gpu in seat.gpus], seat.bundle))


def _gpus_here() -> tuple[str, ...]:
    return tuple(ray.get_runtime_context().get_accelerator_ids()["GPU"])


def _number(gpu: str) -> int:
    return int(gpu) if gpu.isdecimal() else -1  # named by UUID: in the order of the bundles
