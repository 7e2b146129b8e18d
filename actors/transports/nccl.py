"""Weights between GPUs over NCCL, as vLLM's own transfer has it: rank 0 broadcasts each bucket as one packed tensor.

vLLM's transfer from many senders (``nccl_m2n``) takes tensors that are cut evenly along one dimension. A ZeRO-3 shard
is a run of the flattened parameter, which may end inside a row and is padded: no layout of that transfer says so.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Collection, Sequence

import torch
from typing_extensions import override

from actors.transports.nccl_group import NcclGroup, new_id
from actors.transports.sender import Sender, all_of
from actors.transports.staging import Staging


class NcclSender(Sender):
    """Sender over NCCL. vLLM's protocol knows one sender, so only rank 0 takes part."""

    def __init__(self, staging: Staging, host: str) -> None:
        self._staging = staging
        self._groups: dict[int, NcclGroup] = {}
        self._offered = (0, b"", 0)
        """number, id and size of the group that is being joined"""

    @override
    def offer(self, group: int, num_peers: int, keep: Collection[int]) -> object:
        if torch.distributed.get_rank() != 0:
            return None
        self._end_all_but(keep)
        self._offered = (group, new_id(), 1 + num_peers)
        return base64.b64encode(self._offered[1]).decode()

    @override
    def accept(self, seconds: float) -> None:
        if torch.distributed.get_rank() == 0:
            group, unique_id, size = self._offered
            self._groups[group] = NcclGroup(unique_id, 0, size, self._staging.slots.device, seconds)

    @override
    def send(self, bucket: int, groups: Sequence[int], seconds: float) -> Callable[[], None]:
        if torch.distributed.get_rank() != 0:
            return super().send(bucket, groups, seconds)
        # The slot has the layout of vLLM's packed buffer, so it is sent as it is.
        packed, what = self._staging.slots.held(bucket).view(torch.uint8), f"send bucket {bucket}"
        return all_of([self._groups[group].broadcast(packed, seconds, what) for group in groups])

    @override
    def close(self) -> None:
        self._end_all_but(())

    def _end_all_but(self, keep: Collection[int]) -> None:
        for number in [number for number in self._groups if number not in keep]:
            self._groups.pop(number).end()
