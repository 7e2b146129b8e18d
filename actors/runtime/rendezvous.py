"""Stores where processes meet. A TCPStore of torch asks for no password, and listens at every address by default.

A stranger who reaches a store can send the ranks elsewhere. So it listens at the one address that its members use, and
in a cluster of one node at loopback.
"""

from __future__ import annotations

import os
import socket
from datetime import timedelta

import ray
from ray.util import get_node_ip_address
from torch.distributed import TCPStore

LOOPBACK = "127.0.0.1"


def meeting_address() -> str:
    """Address of this host for processes of the nodes that the cluster has now."""
    alone = sum(bool(node["Alive"]) for node in ray.nodes()) == 1
    return LOOPBACK if alone else get_node_ip_address()


def listen(host: str) -> socket.socket:
    """Open a socket that listens at a free port of ``host`` and nowhere else. Raises OSError."""
    family = socket.getaddrinfo(host, None)[0][0]
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.bind((host, 0))
        listener.listen()
    except OSError:
        listener.close()
        raise
    return listener


def open_store(host: str, listener: socket.socket, world_size: int | None, *, seconds: float) -> TCPStore:
    """Open the store behind ``listener``, which it takes over. Returns at once, before the members join."""
    port, descriptor = listener.getsockname()[1], listener.detach()
    try:
        return TCPStore(
            host, port, world_size, is_master=True, timeout=timedelta(seconds=seconds), wait_for_workers=False,
            master_listen_fd=descriptor,
        )  # fmt: skip
    except RuntimeError:
        os.close(descriptor)
        raise


def join_store(host: str, port: int, world_size: int | None, *, seconds: float) -> TCPStore:
    """Join the store that another process opens. Raises RuntimeError when none has within ``seconds``."""
    return TCPStore(host, port, world_size, is_master=False, timeout=timedelta(seconds=seconds), wait_for_workers=False)
