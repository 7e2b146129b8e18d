"""Placement of actors: learner ranks together, rollout workers spread. What cannot fit is said at once, and why."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group

from lpo_ray.errors import NoRoom

Resources = Mapping[str, float]
"""resource -> amount"""
EPSILON = 1e-6
"""amount by which a resource may be short, for rounding"""
NOTE_SECONDS = 15.0
"""seconds between two notes about a placement that is waited for"""
MOST = 8
"""nodes that a message names"""


@dataclass(frozen=True, slots=True)
class Request:
    """Bundles of one role, one for each of its actors."""

    role: str
    bundles: Sequence[Resources]
    strategy: str
    """strategy of Ray's placement group"""
    labels: Mapping[str, str] = field(default_factory=dict)
    """labels that a node must have"""

    def __str__(self) -> str:
        asked = ", ".join(f"{amount:g} {resource}" for resource, amount in self.bundles[0].items())
        labels = f" on nodes with {_pairs(self.labels)}" if self.labels else ""
        return f"{self.role} asks for {len(self.bundles)} x ({asked}){labels}"


@dataclass(frozen=True, slots=True)
class Node:
    """A node of the cluster."""

    name: str
    """its address"""
    resources: Resources
    """in use or not"""
    labels: Mapping[str, str]


def bundle(cpus: float, gpus: float) -> dict[str, float]:
    """Resources of one actor."""
    return {"CPU": cpus, **({"GPU": gpus} if gpus else {})}


def nodes() -> list[Node]:
    """List the nodes that are alive, of the cluster that this process is connected to."""
    return [
        Node(node["NodeManagerAddress"], node["Resources"], node.get("Labels") or {})
        for node in ray.nodes()
        if node["Alive"]
    ]


def explain(requests: Sequence[Request], machines: Sequence[Node]) -> str | None:
    """Say why ``requests`` would not fit on ``machines`` even if all were free: which bundle lacks what, and where.
    None when they fit one after the other, each bundle on the machine that has least left.
    """
    left = [dict(machine.resources) for machine in machines]
    for request in requests:
        for number, wanted in enumerate(request.bundles):
            allowed = [n for n, machine in enumerate(machines) if _has_labels(machine, request.labels)]
            fitting = [n for n in allowed if not _lacking(left[n], wanted)]
            if not fitting:
                return f"{request}; bundle {number} fits on no node: {_why(wanted, request, machines, left, allowed)}"
            chosen = min(fitting, key=lambda n: sorted(left[n].get(r, 0.0) for r in wanted))
            for resource, amount in wanted.items():
                left[chosen][resource] -= amount
    return None


def check_room(requests: Sequence[Request]) -> None:
    """Raise NoRoom when the cluster cannot hold the roles, even if nothing else ran on it."""
    why = explain(requests, nodes())
    if why is not None:
        raise NoRoom(
            f"the cluster has no room: {why}. Expected all roles to fit: add nodes, lower rollout.num_workers, "
            "learner.world_size or their cpus_per_/gpus_per_ settings, or set cluster.autoscaling=true if nodes join "
            "on demand"
        )


async def reserve(request: Request, seconds: float, note: Callable[[str], None]) -> PlacementGroup:
    """Wait until the role's placement group holds its resources. Meanwhile ``note`` is told what is missing. Raises
    NoRoom after ``seconds``.
    """
    bundles = [dict(wanted) for wanted in request.bundles]
    if request.labels:
        selectors = [dict(request.labels) for _ in bundles]
        group = placement_group(bundles, strategy=request.strategy, bundle_label_selector=selectors)
    else:
        group = placement_group(bundles, strategy=request.strategy)
    waiting = asyncio.ensure_future(_ready(group))
    started = time.monotonic()
    try:
        while (left := started + seconds - time.monotonic()) > 0:
            if (await asyncio.wait({waiting}, timeout=min(left, NOTE_SECONDS)))[0]:
                waiting.result()
                return group
            note(f"waiting for room since {time.monotonic() - started:.0f} s: {_occupied(request)}")
        raise NoRoom(f"no room within {seconds:g} s (cluster.placement_seconds): {_occupied(request)}")
    except BaseException:
        waiting.cancel()
        remove_placement_group(group)
        raise


async def _ready(group: PlacementGroup) -> None:
    await group.ready()


def _occupied(request: Request) -> str:
    why = explain([request], nodes())
    if why is not None:
        return why
    free = ray.available_resources()
    have = ", ".join(f"{free.get(resource, 0.0):g} {resource}" for resource in request.bundles[0])
    return f"{request}; it would fit, but others hold it: {have} free in the whole cluster"


def _has_labels(machine: Node, labels: Mapping[str, str]) -> bool:
    return all(machine.labels.get(key) == value for key, value in labels.items())


def _lacking(have: Resources, wanted: Resources) -> list[str]:
    return [
        f"{have.get(resource, 0.0):g} of {amount:g} {resource}"
        for resource, amount in wanted.items()
        if have.get(resource, 0.0) + EPSILON < amount
    ]


def _why(
    wanted: Resources, request: Request, machines: Sequence[Node], left: Sequence[Resources], allowed: Sequence[int]
) -> str:
    if not machines:
        return "the cluster has no nodes"
    if not allowed:
        return f"none of {len(machines)} nodes has {_pairs(request.labels)}"
    found = [f"{machines[n].name} has {' and '.join(_lacking(left[n], wanted))} left" for n in allowed[:MOST]]
    return "; ".join(found) + (f"; and {len(allowed) - MOST} more" if len(allowed) > MOST else "")


def _pairs(labels: Mapping[str, str]) -> str:
    return ", ".join(f"{key}={value}" for key, value in labels.items())
