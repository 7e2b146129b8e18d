"""`lpo-ray doctor --address`: the checks of one machine on every node of a live cluster, and those between nodes.

Each node has one actor, pinned to it and without resources, so a busy cluster can be examined too.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import ray
from ray.actor import ActorProxy
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from actors.runtime.connection import joined
from actors.runtime.remote_calls import call_each
from lpo_ray.errors import LpoRayError
from lpo_ray.tools.doctor import CHECKS, Check, Finding, State, Surroundings, examine
from lpo_ray.tools.doctor.collective import free_port, start_rank, summary
from lpo_ray.tools.doctor.deadlines import COLLECTIVE_SECONDS, GRACE
from lpo_ray.tools.doctor.findings import broken, judge
from lpo_ray.tools.doctor.probe import ProbeResult
from lpo_ray.tools.doctor.versions import all_versions, same_everywhere

T = TypeVar("T")
START_SECONDS = 60.0
"""for the actor of a node to start; it imports torch"""
CALL_SECONDS = 30.0
"""for a call of that actor"""
ROUNDS = 5
"""readings of a clock; the one that came back fastest counts"""
SKEW_WANTED, SKEW_NEEDED = 1.0, 60.0
"""seconds between two clocks: more is a warning, more is a failure"""
BETWEEN = "between nodes"
"""heading of the checks between nodes"""


@dataclass(frozen=True, slots=True)
class Skew:
    """Seconds by which a node's clock is ahead of this process's; half of the round trip is not known."""

    ahead: float
    uncertainty: float


class NodeDoctor:
    """Examiner of a node: a plain class that is made an actor on each."""

    def clock(self) -> float:
        """Read the node's clock, in unix seconds."""
        return time.time()

    def versions(self) -> dict[str, str]:
        """List versions that must be the same on all nodes; see versions.same_everywhere."""
        return all_versions()

    def examine(self, checks: Sequence[Check], surroundings: Surroundings, quick: bool) -> list[Finding]:
        """Run the checks of one machine."""
        return examine(checks, surroundings, quick=quick)

    def free_port(self, host: str) -> int:
        """Find a free port at the node's own address."""
        return free_port(host)

    def rank(self, rank: int, host: str, port: int, seconds: float) -> ProbeResult:
        """Run one rank of a gloo collective, whose rank 0 is at ``host:port``."""
        return start_rank(rank, host, port, "gloo", seconds).outcome(seconds + GRACE)


@dataclass(frozen=True, slots=True)
class NodeChecks:
    """A live node and its examiner."""

    name: str
    address: str
    handle: ActorProxy[NodeDoctor]


def examine_cluster(
    address: str, surroundings: Surroundings, *, quick: bool, checks: Sequence[Check] = CHECKS
) -> dict[str, list[Finding]]:
    """Collect the findings by node, then those between nodes. Raises ConfigError when no cluster can be joined."""
    with joined(address, "--address"):
        nodes = [_node(found) for found in ray.nodes() if found["Alive"]]
        try:
            return asyncio.run(_examine(nodes, checks, surroundings, quick=quick))
        finally:
            for node in nodes:
                ray.kill(node.handle)  # pyright: ignore[reportArgumentType] - an ActorProxy is an ActorHandle


async def _examine(
    nodes: Sequence[NodeChecks], checks: Sequence[Check], surroundings: Surroundings, *, quick: bool
) -> dict[str, list[Finding]]:
    names = [node.name for node in nodes]
    seconds = sum(check.seconds for check in checks if not (quick and check.slow)) + CALL_SECONDS
    versions = await call_each(
        [node.handle.versions.remote() for node in nodes], who=names, what="start", seconds=START_SECONDS
    )
    late = {name: error for name, error in zip(names, versions, strict=True) if isinstance(error, LpoRayError)}
    present = [node for node in nodes if node.name not in late]
    between = [authentication(os.environ.get("RAY_AUTH_MODE", ""))]
    between += [same_everywhere({n: v for n, v in zip(names, versions, strict=True) if not isinstance(v, LpoRayError)})]
    between += [_skew(node.name, await _measure(node)) for node in present]
    results = await call_each(
        [node.handle.examine.remote(checks, surroundings, quick) for node in present],
        who=[node.name for node in present], what="examine", seconds=seconds,
    )  # fmt: skip
    groups = {
        node.name: [_unreachable(result)] if isinstance(result, LpoRayError) else result
        for node, result in zip(present, results, strict=True)
    } | {name: [_unreachable(error)] for name, error in late.items()}
    if not quick:
        between += await _collectives(present)
    return {**groups, BETWEEN: between}


async def _measure(node: NodeChecks) -> Skew | LpoRayError:
    best: Skew | LpoRayError | None = None
    for _ in range(ROUNDS):
        asked = time.time()
        [answer] = await call_each(
            [node.handle.clock.remote()], who=[node.name], what="tell the time", seconds=CALL_SECONDS
        )
        answered = time.time()
        if isinstance(answer, LpoRayError):
            return answer
        found = Skew(answer - (asked + answered) / 2, (answered - asked) / 2)
        if not isinstance(best, Skew) or found.uncertainty < best.uncertainty:
            best = found
    assert best is not None
    return best


def _skew(node: str, found: Skew | LpoRayError) -> Finding:
    name = f"clock of {node}"
    if isinstance(found, LpoRayError):
        return broken(name, str(found), "is the node still there? see ray status")
    return skew(name, found)


def skew(name: str, found: Skew) -> Finding:
    """Judge whether two clocks agree as far as can be told: logs are merged, and tokens expire, by them."""
    apart = abs(found.ahead) - found.uncertainty
    problem = State.warn if apart > SKEW_WANTED else None
    if apart > SKEW_NEEDED:
        problem = State.fail
    text = f"{found.ahead:+.3f} s from this one, +-{found.uncertainty:.3f} s"
    return judge(name, problem, text, f"within {SKEW_WANTED:g} s", "let chrony or systemd-timesyncd set the clock")


def authentication(mode: str) -> Finding:
    """Judge whether the cluster asks for a token. ``mode``: RAY_AUTH_MODE of this process, which has joined it."""
    problem = State.warn if mode.lower() == "disabled" else None
    advice = "anybody who reaches its ports runs code on every node: start it with RAY_AUTH_MODE=token"
    return judge("authentication", problem, mode or "token (Ray's default)", "token", advice)


async def _collectives(nodes: Sequence[NodeChecks]) -> list[Finding]:
    """Try the first node with each other one: a firewall between any of them and the head shows."""
    if len(nodes) < 2:
        return [Finding("gloo between nodes", State.ok, "left out: one node", "2 nodes to try it on")]
    first, *others = nodes
    return [await _collective(first, other) for other in others]


async def _collective(first: NodeChecks, second: NodeChecks) -> Finding:
    name, pair = f"gloo, {first.name} with {second.name}", [first.name, second.name]
    [port] = await call_each(
        [first.handle.free_port.remote(first.address)], who=[first.name], what="find a port", seconds=CALL_SECONDS
    )
    if isinstance(port, LpoRayError):
        return broken(name, str(port), f"does {first.name} still have the address {first.address}?")
    limit = COLLECTIVE_SECONDS
    outcomes = await call_each(
        [node.handle.rank.remote(rank, first.address, port, limit) for rank, node in enumerate((first, second))],
        who=pair, what="gloo collective", seconds=limit + GRACE + CALL_SECONDS,
    )  # fmt: skip
    ended = [outcome for outcome in outcomes if not isinstance(outcome, LpoRayError)]
    errors = [outcome for outcome in outcomes if isinstance(outcome, LpoRayError)]
    if errors:
        return broken(name, str(errors[0]), "is the node still there? see ray status")
    return summary(name, "gloo", ended, limit)


def _unreachable(error: LpoRayError) -> Finding:
    advice = "is lpo-ray installed there, in the same version? see ray status, and the node's logs in /tmp/ray"
    return broken("node", str(error), advice)


def _node(found: Mapping[str, object]) -> NodeChecks:
    node_id, address = str(found["NodeID"]), str(found["NodeManagerAddress"])
    where = NodeAffinitySchedulingStrategy(node_id, soft=False)
    handle = ray.remote(NodeDoctor).options(num_cpus=0, scheduling_strategy=where).remote()
    return NodeChecks(f"{found['NodeManagerHostname']} ({address}, {node_id[:6]})", address, handle)
