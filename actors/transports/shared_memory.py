"""Weights to engines on the learner's host, which read buckets where the ranks gathered them: nothing is sent."""

from __future__ import annotations

from collections.abc import Collection

from typing_extensions import override

from actors.transports.sender import Sender
from actors.transports.staging import SharedMemory, Staging


class SharedMemorySender(Sender):
    """Sender that tells engines which memory to open."""

    def __init__(self, staging: Staging, host: str) -> None:
        slots = staging.slots
        if not isinstance(slots, SharedMemory):
            raise TypeError(f"transport.kind=shared_memory with {type(slots).__name__}; its ranks share one host")
        self._path = slots.path

    @override
    def offer(self, group: int, num_peers: int, keep: Collection[int]) -> object:
        return self._path  # an engine opens the memory by itself; where a bucket lies follows from its number
