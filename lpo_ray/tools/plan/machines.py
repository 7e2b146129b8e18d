"""The machines of a cluster, described or alive, and which bundle goes on which of them. Values in, values out."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby

import psutil
import torch

from lpo_ray.errors import ConfigError
from lpo_ray.tools.plan.devices import CPU, Device, device_named, device_reported

PATTERN = re.compile(r"(?:(?P<nodes>\d+)x)?(?P<count>\d+)x(?P<device>[A-Za-z][\w-]*)(?:@(?P<memory>\d+))?")
SLACK = 1e-6
"""of a share of a GPU, for sums like 3 x 0.33"""


@dataclass(frozen=True, slots=True)
class Machine:
    """Node of a cluster. Made by described, this_machine and actors.runtime.machines."""

    name: str
    cpus: float
    """infinite where nobody said"""
    gpus: int
    device: Device | None
    """what its GPUs are; for a machine without, a core. None: a GPU that is not in lpo_ray/tools/plan/devices.py"""
    memory_gib: float
    """of the host; infinite where nobody said"""


@dataclass(frozen=True, slots=True)
class Bundle:
    """Resources that one actor asks for, all of them on one machine."""

    role: str
    cpus: float
    gpus: float


@dataclass(frozen=True, slots=True)
class Placement:
    """Machine and devices of a bundle."""

    role: str
    machine: int
    """index"""
    devices: tuple[int, ...]
    """GPUs of that machine"""


@dataclass(slots=True)
class _Room:
    cpus: float
    gpus: list[float]
    """share of each that is free"""
    placed: dict[str, int] = field(default_factory=dict)


def described(text: str) -> list[Machine]:
    """Parse a text such as "8xH100" or "2x8xH200@2048", with the GiB of a node's memory, or several with "+" between.
    Raises ConfigError.
    """
    machines: list[Machine] = []
    for part in text.split("+"):
        match = PATTERN.fullmatch(part.strip())
        nodes, count = (int(match["nodes"] or 1), int(match["count"])) if match else (0, 0)
        if match is None or not nodes or not count:
            raise ConfigError(
                f"--cluster is {text!r}; expected nodes x devices x kind, such as 8xH100, 2x8xH200 or 4xcpu, with the "
                "GiB of a node's memory behind an @ if need be (8xH100@2048), or several with + between"
            )
        device = device_named(match["device"])
        memory = float(match["memory"]) if match["memory"] else count * device.host_gib
        for _ in range(nodes):
            name = f"node {len(machines) + 1}"
            on_cpu = device is CPU
            machines.append(Machine(name, count if on_cpu else math.inf, 0 if on_cpu else count, device, memory))
    return machines


def this_machine(logical_cpus: float) -> Machine:
    """Describe this machine. ``logical_cpus``: what a cluster started here would announce at least."""
    gpus = torch.cuda.device_count()
    memory = psutil.virtual_memory().total / 2**30
    cpus = max(logical_cpus, os.cpu_count() or 1)
    if not gpus:
        return Machine("this machine", cpus, 0, CPU, memory)
    properties = torch.cuda.get_device_properties(0)
    return Machine(
        "this machine", cpus, gpus, device_reported(properties.name, properties.total_memory / 2**30), memory
    )


def place(bundles: Sequence[Bundle], machines: Sequence[Machine], *, spread: frozenset[str]) -> list[Placement] | str:
    """Place every bundle, in order, or say what is missing. Roles in ``spread`` go where the fewest of
    them are, others where most is taken already. First fit: there may be an arrangement that it does not find.
    """
    rooms = [_Room(machine.cpus, [1.0] * machine.gpus) for machine in machines]
    places = []
    for number, bundle in enumerate(bundles):
        fitting = [(index, found) for index, room in enumerate(rooms) if (found := _devices(room, bundle)) is not None]
        if not fitting:
            return _missing(bundles, number, rooms, machines)
        if bundle.role in spread:
            index, found = min(fitting, key=lambda fit: rooms[fit[0]].placed.get(bundle.role, 0))
        else:
            index, found = min(fitting, key=lambda fit: sum(rooms[fit[0]].gpus) or rooms[fit[0]].cpus)
        room = rooms[index]
        room.cpus -= bundle.cpus
        for device in found:
            room.gpus[device] -= min(1.0, bundle.gpus)
        room.placed[bundle.role] = room.placed.get(bundle.role, 0) + 1
        places.append(Placement(bundle.role, index, found))
    return places


def _devices(room: _Room, bundle: Bundle) -> tuple[int, ...] | None:
    """GPUs of the room for the bundle; None when it has no room. A share goes to the fullest GPU, as Ray has it."""
    if room.cpus < bundle.cpus:
        return None
    share = min(1.0, bundle.gpus) - SLACK
    free = sorted((left, device) for device, left in enumerate(room.gpus) if left >= share)
    wanted = math.ceil(bundle.gpus)
    return tuple(device for _, device in free[:wanted]) if len(free) >= wanted else None


def share(seats: Sequence[Placement], engines: int, parts: int) -> list[Placement] | str:
    """Put a rank on each of ``seats``, which have one GPU each, and beside them engines of ``parts`` GPUs, each on one
    machine; or say what is missing.
    """
    ordered = sorted(seats, key=lambda seat: (seat.machine, seat.devices))
    ranks = [Placement("learner", seat.machine, seat.devices) for seat in ordered]
    places = []
    for machine, found in groupby(ordered, key=lambda seat: seat.machine):
        devices = [device for seat in found for device in seat.devices]
        for start in range(0, len(devices) - parts + 1, parts):
            places.append(Placement("rollout", machine, tuple(devices[start : start + parts])))
    if len(places) < engines:
        missing = f"{engines - len(places)} of {engines} engines have no place"
        return f"{missing}: each needs the GPUs of {parts} ranks on one node"
    return [*ranks, *places[:engines]]


def _missing(bundles: Sequence[Bundle], number: int, rooms: Sequence[_Room], machines: Sequence[Machine]) -> str:
    bundle = bundles[number]
    left = sum(other.role == bundle.role for other in bundles[number:])
    every = sum(other.role == bundle.role for other in bundles)
    free = ", ".join(
        f"{machine.name} has {sum(room.gpus):g} of {machine.gpus} GPUs and "
        f"{'enough' if math.isinf(room.cpus) else f'{room.cpus:g} of {machine.cpus:g}'} CPUs free"
        for room, machine in zip(rooms, machines, strict=True)
    )
    asked = " and ".join(
        f"{amount:g} {what}" for amount, what in ((bundle.gpus, "GPUs"), (bundle.cpus, "CPUs")) if amount
    )
    return f"{left} of {every} {bundle.role} bundles ({asked} each, on one node) have no place: {free}"
