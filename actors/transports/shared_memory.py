"""Engines on the learner's host read the buckets where the ranks gathered them: nothing is sent at all."""

from __future__ import annotations

from actors.transports.staging import SharedMemory, Staging


class SharedMemorySender:
    """See Sender."""

    def __init__(self, staging: Staging, host: str) -> None:
        slots = staging.slots
        if not isinstance(slots, SharedMemory):
            raise TypeError(f"transport.kind=shared_memory with {type(slots).__name__}; its ranks share one host")
        self._path = slots.path

    def offer(self, num_peers: int) -> object:
        """See Sender."""
        return self._path

    def accept(self, seconds: float) -> None:
        """See Sender. An engine opens the memory by itself."""

    def ticket(self, bucket: int) -> object:
        """See Sender. Where a bucket lies follows from its number."""
        return None

    def send(self, bucket: int) -> None:
        """See Sender. It is there already."""
