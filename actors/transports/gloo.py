"""Weights over TCP between hosts without GPUs: every rank broadcasts its share of a bucket to all engines.

Each sending rank has a process group: it is rank 0, the engines' processes follow. The group stands beside the
learner's own and can be formed again at any time.
"""

from __future__ import annotations

from datetime import timedelta

import torch
from torch.distributed import BroadcastOptions, PrefixStore, ProcessGroupGloo, TCPStore
from typing_extensions import override

from actors.runtime.rendezvous import listen, open_store
from actors.transports.sender import Sender
from actors.transports.staging import Staging

SECONDS = 1800.0
"""limit of a group itself: far beyond any deadline here, so it only ends threads that were left behind"""


class GlooSender(Sender):
    """Sender that broadcasts its shares in a process group with all engines."""

    def __init__(self, staging: Staging, host: str) -> None:
        """``host``: address at which engines reach this rank."""
        self._staging, self._host = staging, host
        self._store: TCPStore | None = None
        self._group: ProcessGroupGloo | None = None
        self._size = 0

    @override
    def offer(self, num_peers: int) -> object:
        self._group, self._size = None, 1 + num_peers
        self._store = open_store(self._host, listen(self._host), None, seconds=SECONDS)
        return [self._host, self._store.port]  # where the group's members meet

    @override
    def accept(self, seconds: float) -> None:
        assert self._store is not None
        self._group = form_group(self._store, self._host, 0, self._size, seconds)

    @override
    def ticket(self, bucket: int) -> object:
        return None  # a broadcast needs none

    @override
    def send(self, bucket: int) -> None:
        assert self._group is not None
        if (share := self._staging.share(bucket)).numel():
            broadcast(self._group, share.cpu())


def form_group(store: TCPStore, host: str, rank: int, size: int, seconds: float) -> ProcessGroupGloo:
    """Form a process group outside torch's global state, over the network interface of ``host``. Blocks until all are
    in; raises RuntimeError when they are not in time.
    """
    options = ProcessGroupGloo._Options()  # pyright: ignore[reportAttributeAccessIssue]
    options._devices = [ProcessGroupGloo.create_device(hostname=host)]
    options._timeout = timedelta(seconds=seconds)
    group = ProcessGroupGloo(PrefixStore("weights", store), rank, size, options)
    group.set_timeout(timedelta(seconds=SECONDS))
    return group


def broadcast(group: ProcessGroupGloo, elements: torch.Tensor) -> None:
    """Broadcast from rank 0, as bytes. ``torch.distributed.broadcast`` knows only groups of the global state."""
    options = BroadcastOptions()
    options.rootRank, options.rootTensor = 0, 0
    group.broadcast([elements.view(torch.uint8)], options).wait()  # pyright: ignore[reportAttributeAccessIssue]
