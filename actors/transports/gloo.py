"""Weights over TCP between hosts without GPUs: every rank broadcasts its share of a bucket to all engines.

One process group for each sending rank: the rank is 0, the engines' processes follow. It stands beside the learner's
own group and can be formed anew at any time.
"""

from __future__ import annotations

from datetime import timedelta

import torch
from torch.distributed import BroadcastOptions, PrefixStore, ProcessGroupGloo, TCPStore

from actors.runtime.rendezvous import listen, open_store
from actors.transports.staging import Staging

SECONDS = 1800.0
"""of a group's own limit: far beyond any deadline here, so that it ends the threads that were left behind"""


class GlooSender:
    """See Sender."""

    def __init__(self, staging: Staging, host: str) -> None:
        """``host``: address at which engines reach this rank."""
        self._staging, self._host = staging, host
        self._store: TCPStore | None = None
        self._group: ProcessGroupGloo | None = None
        self._size = 0

    def offer(self, num_peers: int) -> object:
        """See Sender: where the group's members meet."""
        self._group, self._size = None, 1 + num_peers
        self._store = open_store(self._host, listen(self._host), None, seconds=SECONDS)
        return [self._host, self._store.port]

    def accept(self, seconds: float) -> None:
        """See Sender."""
        assert self._store is not None
        self._group = form_group(self._store, self._host, 0, self._size, seconds)

    def ticket(self, bucket: int) -> object:
        """See Sender. The broadcast needs none."""
        return None

    def send(self, bucket: int) -> None:
        """See Sender."""
        assert self._group is not None
        if (share := self._staging.share(bucket)).numel():
            broadcast(self._group, share.cpu())


def form_group(store: TCPStore, host: str, rank: int, size: int, seconds: float) -> ProcessGroupGloo:
    """A process group outside torch's global state, over the network interface of ``host``. Blocks until all are in;
    raises RuntimeError when they are not in time.
    """
    options = ProcessGroupGloo._Options()  # pyright: ignore[reportAttributeAccessIssue]
    options._devices = [ProcessGroupGloo.create_device(hostname=host)]
    options._timeout = timedelta(seconds=seconds)
    group = ProcessGroupGloo(PrefixStore("weights", store), rank, size, options)
    group.set_timeout(timedelta(seconds=SECONDS))
    return group


def broadcast(group: ProcessGroupGloo, elements: torch.Tensor) -> None:
    """From rank 0, as bytes. ``torch.distributed.broadcast`` knows only groups of the global state."""
    options = BroadcastOptions()
    options.rootRank, options.rootTensor = 0, 0
    group.broadcast([elements.view(torch.uint8)], options).wait()  # pyright: ignore[reportAttributeAccessIssue]
