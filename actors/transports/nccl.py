"""Weights between GPUs, by vLLM's native NCCL transfer: rank 0 broadcasts each bucket to all, as one packed tensor."""

from __future__ import annotations

import socket

import torch
from typing_extensions import override
from vllm.distributed.weight_transfer.nccl_common import trainer_init

from actors.runtime.time_limit import TimeLimited
from actors.transports.sender import Sender
from actors.transports.staging import Staging


class NcclSender(Sender):
    """Sender over NCCL. vLLM's protocol knows one sender, so only rank 0 takes part."""

    def __init__(self, staging: Staging, host: str) -> None:
        """``host``: address at which engines reach rank 0."""
        self._staging, self._host = staging, host
        self._address: dict[str, object] = {}

    @override
    def offer(self, num_peers: int) -> object:
        with socket.socket() as free:
            free.bind(("", 0))
            port = free.getsockname()[1]
        self._address = {"master_address": self._host, "master_port": port, "world_size": 1 + num_peers}
        return [self._host, port]  # where the group's members meet

    @override
    def accept(self, seconds: float) -> None:
        if torch.distributed.get_rank() == 0:  # NCCL has no deadline of its own
            self._group = TimeLimited(lambda: trainer_init(self._address), "join the engines").result(seconds)

    @override
    def ticket(self, bucket: int) -> object:
        return None  # a broadcast needs none

    @override
    def send(self, bucket: int) -> None:
        if torch.distributed.get_rank() == 0:
            stream = torch.cuda.Stream()
            # The slot has the layout of vLLM's packed buffer, so it is sent as it is.
            self._group.broadcast(self._staging.slots.held(bucket).view(torch.uint8), src=0, stream=stream)
            stream.synchronize()
