"""Weights over TCP between hosts without GPUs: every rank broadcasts its share of a bucket to all engines.

Each sending rank has a process group: it is rank 0, the engines' processes follow. The group stands beside the
learner's own and can be formed again at any time.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from datetime import timedelta
from functools import partial

import torch
from torch.distributed import BroadcastOptions, PrefixStore, ProcessGroupGloo, TCPStore
from typing_extensions import override

from actors.runtime.rendezvous import listen, open_store
from actors.runtime.time_limit import TimeLimited
from actors.transports.sender import Sender, all_of
from actors.transports.staging import Staging

SECONDS = 1800.0
"""limit of a group itself: far beyond any deadline here, so it only ends threads that were left behind"""


class GlooSender(Sender):
    """Sender that broadcasts its shares in a process group with the engines of each group."""

    def __init__(self, staging: Staging, host: str) -> None:
        """``host``: address at which engines reach this rank."""
        self._staging, self._host = staging, host
        self._groups: dict[int, ProcessGroupGloo] = {}
        self._offered: tuple[int, TCPStore, int] | None = None
        """number, meeting place and size of the group that is being joined"""

    @override
    def offer(self, group: int, num_peers: int, keep: Collection[int]) -> object:
        self._groups = {number: joined for number, joined in self._groups.items() if number in keep}
        store = open_store(self._host, listen(self._host), None, seconds=SECONDS)
        self._offered = (group, store, 1 + num_peers)
        return [self._host, store.port]

    @override
    def accept(self, seconds: float) -> None:
        assert self._offered is not None
        group, store, size = self._offered
        self._groups[group] = form_group(store, self._host, 0, size, seconds)

    @override
    def send(self, bucket: int, groups: Sequence[int], seconds: float) -> Callable[[], None]:
        share = self._staging.share(bucket)
        if not share.numel():
            return super().send(bucket, groups, seconds)
        on_host, what = share.cpu(), f"send bucket {bucket}"
        sending = [TimeLimited(partial(broadcast, self._groups[group], on_host), what) for group in groups]
        return all_of([partial(work.result, seconds) for work in sending])


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
