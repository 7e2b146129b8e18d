"""Waiting for each other without a collective: ranks meet at the store that they joined by.

A collective of a device has one limit for every wait, and nobody can say in it that work goes on. Writing or reading a
checkpoint takes as long as the disk wants. So ranks that wait here give up on those that get on with nothing.
"""

from __future__ import annotations

import time

from torch.distributed import DistStoreError, Store

SHORTEST, LONGEST = 0.005, 0.5
"""seconds between two looks"""


class StoreBarrier:
    """Barrier of all ranks, made once by each; its waits are numbered, so that all must come to the same ones."""

    def __init__(self, store: Store, rank: int, world_size: int, silence_seconds: float) -> None:
        """``silence_seconds``: how long a rank that is waited for may get on with nothing."""
        self._store, self._rank, self._world_size = store, rank, world_size
        self._silence_seconds = silence_seconds
        self._waits = 0

    def beat(self, done: object) -> None:
        """Say how far this rank is: a text that differs once it has got something done. From any thread."""
        self._store.set(f"beats/{self._rank}", str(done))

    def wait(self, what: str) -> None:
        """Wait until every rank is here, at the end of ``what``. Raises DistStoreError naming those that are silent."""
        key, self._waits = f"barrier/{self._waits}", self._waits + 1
        self._store.set(f"{key}/{self._rank}", what)
        absent, pause = [rank for rank in range(self._world_size) if rank != self._rank], SHORTEST
        heard = {rank: (self._said(rank), time.monotonic()) for rank in absent}
        while absent := [rank for rank in absent if not self._store.check([f"{key}/{rank}"])]:
            for rank in absent:
                if (said := self._said(rank)) != heard[rank][0]:
                    heard[rank] = (said, time.monotonic())
            silent = [rank for rank in absent if time.monotonic() - heard[rank][1] > self._silence_seconds]
            if silent:
                raise DistStoreError(
                    f"rank {self._rank} waited at the end of {what} for {', '.join(f'rank {rank}' for rank in silent)},"
                    f" which got on with nothing for {self._silence_seconds:g} s (learner.silence_seconds)"
                )
            time.sleep(pause)
            pause = min(LONGEST, 2 * pause)

    def _said(self, rank: int) -> bytes:
        key = f"beats/{rank}"
        return self._store.get(key) if self._store.check([key]) else b""
