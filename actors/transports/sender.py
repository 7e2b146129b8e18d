"""The learner's side of a transport: one Sender in every rank."""

from __future__ import annotations

from typing import Protocol


class Sender(Protocol):
    """A rank's sender, made with its Staging. Buckets are sent in order, while the next one is being staged."""

    def offer(self, num_peers: int) -> object:
        """Return what engines need to reach this rank; ``num_peers`` engine processes will. May be called again."""
        ...

    def accept(self, seconds: float) -> None:
        """Wait until every peer has joined. Raises TimeoutError."""
        ...

    def ticket(self, bucket: int) -> object:
        """Return what engines need to find this rank's share of a staged bucket."""
        ...

    def send(self, bucket: int) -> None:
        """Send this rank's share of a staged bucket. Runs on a thread, and may block until the engines have it."""
        ...
