"""Joining a Ray cluster that runs already, as a driver of it."""

from __future__ import annotations

import contextlib
import logging
import socket
from collections.abc import Iterator

import ray
from ray._private.services import canonicalize_bootstrap_address  # what auto stands for, told nowhere in public
from ray.exceptions import RayError

from lpo_ray.errors import ConfigError

AUTO = "auto"
ANSWER_SECONDS = 5.0
"""for a head to take a connection: Ray itself tries for minutes"""


@contextlib.contextmanager
def joined(address: str, asked_by: str, namespace: str | None = None) -> Iterator[None]:
    """Part of the cluster at ``address`` (HOST:PORT or auto) until the end of the context. ``asked_by``: the option
    that holds it. Raises ConfigError when nobody answers there or Ray lets nobody in.
    """
    join(address, asked_by, namespace)
    try:
        yield
    finally:
        ray.shutdown()


def join(address: str, asked_by: str, namespace: str | None = None) -> None:
    """As ``joined``, until ray.shutdown()."""
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
    """Somebody listens at ``found``, which is what ``address`` stands for."""
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
