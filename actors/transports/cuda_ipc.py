"""Weights to engines on the same GPUs (colocated): vLLM's native CUDA IPC transfer, nothing leaves the device.

Every rank gathers whole buckets, since the engine process on its GPU can only read memory of that GPU.
"""

from __future__ import annotations

import torch
from torch.multiprocessing.reductions import reduce_tensor

from actors.staging import Staging


class CudaIpcSender:
    """See Sender."""

    def __init__(self, staging: Staging, host: str) -> None:
        self._staging = staging
        self._gpu = str(torch.cuda.get_device_properties(torch.cuda.current_device()).uuid)

    def offer(self, num_peers: int) -> object:
        """See Sender. There is nothing to join."""
        return None

    def accept(self, seconds: float) -> None:
        """See Sender. There is nobody to wait for."""

    def ticket(self, bucket: int) -> object:
        """See Sender: this GPU's name and a handle of the slot. Each export is opened and released once."""
        torch.cuda.current_stream().synchronize()
        _, handle = reduce_tensor(self._staging.slots.held(bucket).view(torch.uint8))
        return {self._gpu: handle}

    def send(self, bucket: int) -> None:
        """See Sender. The engines read it."""
