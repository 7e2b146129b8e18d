"""The learner's side of a transport: one Sender in every rank."""

from __future__ import annotations

from typing import Protocol


class Sender(Protocol):
    """Made with the rank's Staging. Buckets are sent in order, while the next one is being staged."""

    def offer(self, num_peers: int) -> object:
        """What engines need to reach this rank; ``num_peers`` engine processes will. Called again to start anew."""
        ...

    def accept(self, seconds: float) -> None:
        """Return once every peer has joined. Raises TimeoutError."""
        ...

    def ticket(self, bucket: int) -> object:
        """What engines need to find this rank's share of a staged bucket."""
        ...

    def send(self, bucket: int) -> None:
        """Send this rank's share of a staged bucket; may block until the engines have it. Runs on a thread."""
        ...
