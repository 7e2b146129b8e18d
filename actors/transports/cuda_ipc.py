"""Weights to engines on the same GPUs (colocated), by vLLM's native CUDA IPC transfer: nothing leaves the device.

Every rank gathers whole buckets, since the engine process on its GPU can only read memory of that GPU.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.multiprocessing.reductions import reduce_tensor
from typing_extensions import override

from actors.transports.sender import Sender
from actors.transports.staging import Staging


def to_plain(handle: tuple[object, ...]) -> list[object]:
    """Reduce what ``reduce_tensor`` says of a buffer [n] of bytes to numbers and bytes. Those travel to the engine core
    as they are; classes would make vLLM unpickle what arrives there.
    """
    kind, size, stride, offset, storage, dtype, *rest = handle
    if (kind, stride, storage, dtype) != (torch.Tensor, (1,), torch.storage.TypedStorage, torch.uint8):
        raise TypeError(f"a handle of {kind}, strides {stride}, {dtype}; expected a flat buffer of bytes")
    assert isinstance(size, torch.Size)
    return [size.numel(), offset, *rest]


def from_plain(plain: Sequence[object]) -> tuple[object, ...]:
    """Rebuild the handle that ``to_plain`` was given, as ``rebuild_cuda_tensor`` takes it."""
    numel, offset, *rest = plain
    assert isinstance(numel, int)
    return (torch.Tensor, torch.Size([numel]), (1,), offset, torch.storage.TypedStorage, torch.uint8, *rest)


class CudaIpcSender(Sender):
    """Sender that hands out CUDA IPC handles of its buffers."""

    def __init__(self, staging: Staging, host: str) -> None:
        self._staging = staging
        self._gpu = str(torch.cuda.get_device_properties(torch.cuda.current_device()).uuid)

    @override
    def ticket(self, bucket: int) -> object:
        # This GPU's name and a handle of the slot. Each export is opened and released once.
        torch.cuda.current_stream().synchronize()
        _, handle = reduce_tensor(self._staging.slots.held(bucket).view(torch.uint8))
        return {self._gpu: to_plain(handle)}
