"""The nodes of a live Ray cluster, as the library's machines."""

from __future__ import annotations

import math

from actors.runtime.connection import joined
from actors.runtime.placement import nodes
from lpo_ray.tools.plan.devices import CPU, device_reported
from lpo_ray.tools.plan.machines import Machine

KIND = "accelerator_type:"
"""prefix of the resource by which Ray says what a node's GPUs are"""


def nodes_at(address: str) -> list[Machine]:
    """Join the cluster at ``address``, look at its nodes, and leave. Raises ConfigError when it cannot be joined."""
    with joined(address, "--address"):
        return machines()


def machines() -> list[Machine]:
    """List every node that is alive, with all its resources, in use or not. Needs a connection."""
    found = []
    for node in nodes():
        has = node.resources
        gpus = int(has.get("GPU", 0))
        kind = next((name.removeprefix(KIND) for name in has if name.startswith(KIND)), "")
        device = device_reported(kind) if gpus else CPU
        memory = has.get("memory", math.inf) / 2**30
        found.append(Machine(node.name, has.get("CPU", 0.0), gpus, device, memory))
    return found
