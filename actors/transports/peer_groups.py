"""Which engines have joined the senders, in which groups: the books that the publisher keeps of them."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Hashable, Iterable, Sequence
from typing import Generic, TypeVar

M = TypeVar("M", bound=Hashable)
MOST_GROUPS = 3
"""groups beside each other; with more, the next publish forms one of all. Each is another sending of the weights"""


class PeerGroups(Generic[M]):
    """Groups of members that joined together. Those that come later form one of their own, beside the others.

    Where a group is a ``collective`` it works with all of its members or not at all.
    """

    def __init__(self, *, collective: bool) -> None:
        self._collective = collective
        self._numbers = itertools.count()
        self._groups: dict[int, frozenset[M]] = {}

    @property
    def numbers(self) -> list[int]:
        """Numbers of all groups, oldest first."""
        return list(self._groups)

    def new_number(self) -> int:
        """Choose the number of a group that is to be formed. None is used twice."""
        return next(self._numbers)

    def add(self, number: int, members: Iterable[M]) -> None:
        """Record that ``members`` have joined as group ``number``."""
        self._groups[number] = frozenset(members)

    def within(self, members: Collection[M]) -> list[int]:
        """List the groups that reach ``members`` and nobody else."""
        return [number for number, group in self._groups.items() if group <= set(members)]

    def outside(self, members: Sequence[M]) -> list[M]:
        """List those of ``members`` that are in no group, in their order."""
        joined = frozenset[M]().union(*self._groups.values())
        return [member for member in members if member not in joined]

    def forget(self, gone: Iterable[M]) -> None:
        """Forget members, with all of their group where that is a collective."""
        lost = set(gone)
        kept = {number: group - lost for number, group in self._groups.items()}
        if self._collective:
            kept = {number: group for number, group in kept.items() if group == self._groups[number]}
        self._groups = {number: group for number, group in kept.items() if group}

    def split(self, members: Collection[M]) -> None:
        """Forget the collectives of which some are in ``members`` and some are not: they cannot reach these alone."""
        if self._collective:
            inside = set(members)
            self._groups = {n: g for n, g in self._groups.items() if g <= inside or not g & inside}

    def only_of(self, everyone: Collection[M]) -> None:
        """Forget those who are not in ``everyone``, and all groups when there are too many."""
        self.forget(frozenset[M]().union(*self._groups.values()) - set(everyone))
        if self._collective and len(self._groups) > MOST_GROUPS:
            self.clear()

    def clear(self) -> None:
        """Forget all."""
        self._groups = {}
