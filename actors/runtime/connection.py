"""Connection to a Ray cluster that runs already, as a driver of it."""

from __future__ import annotations

import contextlib
import logging
import socket
from collections.abc import Iterator

import ray
from ray._private.services import canonicalize_bootstrap_address  # what auto stands for; Ray has no public name for it
from ray.exceptions import RayError

from lpo_ray.errors import ConfigError

AUTO = "auto"
"""address that stands for the cluster of this machine"""
ANSWER_SECONDS = 5.0
"""for a head to take a connection: Ray itself tries for minutes"""


@contextlib.contextmanager
def joined(address: str, asked_by: str, namespace: str | None = None) -> Iterator[None]:
    """Join the cluster at ``address`` (HOST:PORT or auto) until the end of the context. ``asked_by``: the option that
    holds it. Raises ConfigError when nothing answers there, or Ray refuses.
    """
    join(address, asked_by, namespace)
    try:
        yield
    finally:
        ray.shutdown()


def join(address: str, asked_by: str, namespace: str | None = None) -> None:
    """Join the cluster as ``joined`` does, until ray.shutdown()."""
    try:
        # auto is RAY_ADDRESS, or what the last `ray start` left in a file, of a cluster that may have ended since
        found = canonicalize_bootstrap_address(AUTO) or "" if address == AUTO else address
        _reach(address, found, asked_by)
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, namespace=namespace)
    except (ConnectionError, ValueError, RuntimeError, RayError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise ConfigError(
            f"{asked_by} is {address!r}, whose Ray cluster cannot be joined: {reason}; expected HOST:PORT of a head, "
            "on a machine that is a node of its cluster, or auto; with token authentication, RAY_AUTH_MODE=token and "
            "the head's token in RAY_AUTH_TOKEN_PATH"
        ) from error


def _reach(address: str, found: str, asked_by: str) -> None:
    """Check that something listens at ``found``, which is what ``address`` stands for. Raises ConfigError."""
    host, _, port = found.rpartition(":")
    if not host or not port.isdecimal():
        raise ConfigError(f"{asked_by} is {address!r}; expected HOST:PORT as `ray start --head` shows it, or auto")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER_SECONDS).close()
    except (OSError, OverflowError) as error:
        where = address if found == address else f"{address} ({found})"
        raise ConfigError(
            f"{asked_by} is {where}, where nobody answers: {error}; expected the address that `ray start --head` "
            "shows, whose port is 6379 unless it was told otherwise"
        ) from error
