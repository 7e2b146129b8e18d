"""The nodes of a live Ray cluster, as the library's machines."""

from __future__ import annotations

import logging
import math
import socket

import ray

from actors.placement import nodes
from lpo_ray.devices import CPU, device_reported
from lpo_ray.errors import ConfigError
from lpo_ray.machines import Machine

KIND = "accelerator_type:"
"""prefix of the resource by which Ray says what a node's GPUs are"""
ANSWER_SECONDS = 5.0
"""for a head to take a connection: Ray itself tries for minutes"""


def nodes_at(address: str) -> list[Machine]:
    """Join the cluster at ``address``, look at its nodes, and leave. Raises ConfigError when it cannot be joined."""
    _check_answers(address)
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(
            f"no Ray cluster can be joined at {address!r}: {reason}; expected the address of a running head, such as "
            "10.0.0.1:6379, or auto; or describe a cluster with --cluster"
        ) from error
    try:
        return machines()
    finally:
        ray.shutdown()


def machines() -> list[Machine]:
    """Every node that is alive, with all that it has, whoever uses it now. Needs a connection."""
    found = []
    for node in nodes():
        has = node.resources
        gpus = int(has.get("GPU", 0))
        kind = next((name.removeprefix(KIND) for name in has if name.startswith(KIND)), "")
        device = device_reported(kind) if gpus else CPU
        memory = has.get("memory", math.inf) / 2**30
        found.append(Machine(node.name, has.get("CPU", 0.0), gpus, device, memory))
    return found


def _check_answers(address: str) -> None:
    """Something listens at host:port; other forms, such as auto, are Ray's to judge."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or "/" in host:
        return
    try:
        socket.create_connection((host, int(port)), timeout=ANSWER_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise ConfigError(
            f"nothing answers at {address!r}: {error}; expected the address of a running Ray head, such as "
            "10.0.0.1:6379, or describe a cluster with --cluster"
        ) from error
