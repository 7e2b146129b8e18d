"""Names that calls in progress hold. Several calls may hold one name: the responses of a group, the turns of each."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Hashable, Iterator
from typing import TypeVar

K = TypeVar("K", bound=Hashable)


class Held(dict[K, float]):
    """Names that are held -> since when, in unix seconds: from the first of the calls that overlap to the last."""

    def __init__(self) -> None:
        super().__init__()
        self._calls = Counter[K]()

    @contextlib.contextmanager
    def during(self, name: K) -> Iterator[None]:
        """Hold ``name`` during one call."""
        self.setdefault(name, time.time())
        self._calls[name] += 1
        try:
            yield
        finally:
            self._calls[name] -= 1
            if not self._calls[name]:
                del self._calls[name], self[name]
