"""The learner's side of a transport: one Sender in every rank."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Protocol


class Sender(Protocol):
    """A rank's sender, made with its Staging. Buckets are sent in order, while the next one is being staged.

    Engines join in groups, which have numbers: those that come later join in one of their own. By default there is
    nothing to join, and engines fetch what is staged.
    """

    def offer(self, group: int, num_peers: int, keep: Collection[int]) -> object:
        """Return what engines need to reach this rank as a new ``group``; ``num_peers`` engine processes will. Groups
        that are not to ``keep`` are ended.
        """
        return None

    def accept(self, seconds: float) -> None:
        """Wait until every peer has joined. Raises TimeoutError."""

    def ticket(self, bucket: int) -> object:
        """Return what engines need to find this rank's share of a staged bucket."""
        return None

    def send(self, bucket: int, groups: Sequence[int], seconds: float) -> Callable[[], None]:
        """Begin to send this rank's share of a staged bucket to ``groups``. Returns what waits until the engines have
        it, which raises TimeoutError when they do not take it within ``seconds``.
        """
        return lambda: None

    def close(self) -> None:
        """End all groups."""


def all_of(waits: Sequence[Callable[[], None]]) -> Callable[[], None]:
    """Make one wait of several. It waits to the end of all, and raises the first error."""

    def wait() -> None:
        errors: list[BaseException] = []
        for one in waits:
            try:
                one()
            except BaseException as error:  # noqa: BLE001 - raised below
                errors.append(error)
        if errors:
            raise errors[0]

    return wait
