"""Weights to engines on the learner's host, which read buckets where the ranks gathered them: nothing is sent."""

from __future__ import annotations

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
    def offer(self, num_peers: int) -> object:
        return self._path

    @override
    def accept(self, seconds: float) -> None:
        pass  # an engine opens the memory by itself

    @override
    def ticket(self, bucket: int) -> object:
        return None  # where a bucket lies follows from its number

    @override
    def send(self, bucket: int) -> None:
        pass  # it is there already
