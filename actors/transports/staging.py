"""Full weights gathered from their ZeRO-3 shards, one bucket at a time, in two slots.

While bucket k is being sent from one slot, bucket k+1 is gathered into the other. So the memory is that of two buckets,
or of two shares where a rank needs no more.
Ranks on one host gather by writing their shards into shared memory, which needs no collective but a barrier; elsewhere
there is one collective for a bucket.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from lpo_ray.policy.tensor_digest import digests_of
from lpo_ray.policy.weights import Bucket, Manifest


class ShardedPolicy(Protocol):
    """One rank's shard of the policy whose weights are sent."""

    def gather_into(self, names: Sequence[str], views: Mapping[str, Tensor], dtype: torch.dtype) -> None:
        """Gather the named parameters on all ranks as ``dtype``, and copy those that this rank wants into its
        ``views``.
        """
        ...

    def write_shards(self, views: Mapping[str, Tensor]) -> None:
        """Write this rank's shard of each named parameter where it belongs in the full tensor. Not a collective."""
        ...


class Slots:
    """Two buffers, each for what this rank holds of one bucket."""

    def __init__(self, manifest: Manifest, sender: int | None, elements: Tensor) -> None:
        """``sender``: whose shares are held; None: those of all. ``elements`` [2, n]: in the manifest's dtype."""
        self._manifest, self._sender, self._elements = manifest, sender, elements

    @property
    def device(self) -> torch.device:
        """Device that has the buffers in its memory."""
        return self._elements.device

    def held(self, bucket: int) -> Tensor:
        """Return what is held of a bucket, [numel] elements."""
        content = self._manifest.buckets[bucket]
        return self._elements[bucket % 2, : held_numel(content, self._sender)]

    def views(self, bucket: int) -> dict[str, Tensor]:
        """Return the tensors in what is held, by name."""
        content, held = self._manifest.buckets[bucket], self.held(bucket)
        return dict(content.views(held) if self._sender is None else content.share_views(self._sender, held))

    def share(self, bucket: int, sender: int) -> Tensor:
        """Return the elements of a sender's share; none when it sends nothing."""
        if self._sender is None:
            return self.held(bucket)[slice(*self._manifest.buckets[bucket].span(sender))]
        return self.held(bucket)


class SharedMemory(Slots):
    """Slots in memory that other processes of the host open by ``path``.

    It has no name in any file system: nothing is left behind however the processes end, and the size limit of /dev/shm
    (64 MB in a container unless raised) does not apply.
    """

    def __init__(self, manifest: Manifest, device: torch.device, path: str | None = None) -> None:
        """Make the memory, or map that at ``path``, for copies from or to ``device``. Raises OSError."""
        length = 2 * manifest.slot_numel * manifest.torch_dtype.itemsize
        if path is None:
            self._file = os.fdopen(os.memfd_create("lpo-ray-weights"), "r+b")  # open for as long as others may come
            self._file.truncate(length)
            path = f"/proc/{os.getpid()}/fd/{self._file.fileno()}"
        self.path = path
        with Path(path).open("r+b") as file:
            elements = torch.frombuffer(mmap.mmap(file.fileno(), length), dtype=manifest.torch_dtype).view(2, -1)
        if device.type == "cuda":  # its copies run at full speed, and beside its computation
            with torch.cuda.device(device):  # else this makes a context on the thread's current one, half a GB there
                torch.cuda.cudart().cudaHostRegister(elements.data_ptr(), length, 0)  # pyright: ignore[reportOptionalMemberAccess]
        super().__init__(manifest, None, elements)


def held_numel(bucket: Bucket, sender: int | None) -> int:
    """Count the elements of a bucket that a rank holds: its share, or all."""
    if sender is None:
        return bucket.numel
    start, end = bucket.span(sender)
    return end - start


def make_slots(manifest: Manifest, device: torch.device, *, share_memory: bool, whole: bool, on_device: bool) -> Slots:
    """Make slots shared with the other ranks of this host, or this rank's own (in the memory of its ``device``, or of
    the host), for its share or the ``whole``. A collective: rank 0 makes the shared memory, the others open it.
    """
    rank = torch.distributed.get_rank()
    if not share_memory:
        sender = None if whole else rank
        size = max(held_numel(bucket, sender) for bucket in manifest.buckets)
        where, pinned = (device, False) if on_device else (torch.device("cpu"), device.type == "cuda")
        elements = torch.empty(2, size, dtype=manifest.torch_dtype, device=where, pin_memory=pinned)
        return Slots(manifest, sender, elements)
    mine = SharedMemory(manifest, device) if rank == 0 else None
    path: list[str | None] = [None if mine is None else mine.path]
    torch.distributed.broadcast_object_list(path)
    return mine or SharedMemory(manifest, device, path[0])


class Staging:
    """One rank's part in gathering. ``stage`` is a collective: all ranks call it at the same time, in order."""

    def __init__(self, policy: ShardedPolicy, manifest: Manifest, slots: Slots) -> None:
        self.manifest, self.slots, self._policy = manifest, slots, policy
        self._rank = torch.distributed.get_rank()

    def share(self, bucket: int) -> Tensor:
        """Return the elements of this rank's share of a staged bucket; none when it sends nothing."""
        return self.slots.share(bucket, self._rank)

    def stage(self, bucket: int) -> dict[str, str]:
        """Fill the bucket's slot; returns the digests of this rank's share. A slot is used again two buckets later."""
        content, views = self.manifest.buckets[bucket], self.slots.views(bucket)
        if isinstance(self.slots, SharedMemory):
            self._policy.write_shards(views)
            torch.distributed.barrier()  # every shard is written
        else:
            self._policy.gather_into([tensor.name for tensor in content.tensors], views, self.manifest.torch_dtype)
        mine = [tensor.name for tensor in content.share(self._rank)]
        return dict(zip(mine, digests_of([views[name] for name in mine]), strict=True))

    def digests(self) -> dict[str, str]:
        """Compute the digests of this rank's shares of all buckets. Nothing is sent."""
        found: dict[str, str] = {}
        for bucket in range(len(self.manifest.buckets)):
            found |= self.stage(bucket)
        return found
