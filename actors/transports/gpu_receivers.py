"""The engines' side of the transports between GPUs: vLLM's own NCCL and CUDA IPC engines, with our books."""

from __future__ import annotations

import base64
import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn
from typing_extensions import override
from vllm.distributed.weight_transfer.ipc_engine import (
    IPCWeightTransferEngine,
    IPCWeightTransferInitInfo,
    IPCWeightTransferUpdateInfo,
)
from vllm.distributed.weight_transfer.nccl_engine import NCCLWeightTransferEngine, NCCLWeightTransferUpdateInfo

from actors.transports.cuda_ipc import from_plain
from actors.transports.nccl_group import NcclGroup
from actors.transports.receiver import Arrival, Receiver, Senders
from lpo_ray.policy.weights import Bucket, Manifest, Pairs


class NcclReceiver(Receiver, NCCLWeightTransferEngine):  # pyright: ignore[reportGeneralTypeIssues] - other type arguments
    """Receiver by vLLM's NCCL engine, with one packed broadcast for each bucket."""

    _group: NcclGroup | None = None

    @override
    def init_transfer_engine(self, init_info: Senders) -> None:
        self.shutdown()  # a second group beside the first would hold its memory for ever
        self.manifest = Manifest.from_plain(init_info.manifest)
        self.packed, self.packed_buffer_size_bytes = True, self.manifest.slot_numel * self.manifest.torch_dtype.itemsize
        unique_id = base64.b64decode(str(init_info.offers[0]))
        rank = init_info.rank_offset + self.parallel_config.rank
        self._group = NcclGroup(unique_id, rank, init_info.group_size, self.device, init_info.seconds)
        self.model_update_group = self._group.communicator

    @override
    def receive(self, bucket: Bucket, arrival: Arrival) -> None:
        if self._group is None:
            raise RuntimeError("cannot receive: no group was joined")
        native = NCCLWeightTransferUpdateInfo(**_described(bucket, self.manifest.dtype))
        with _recording(self), self._group.deadline(arrival.seconds, f"receive bucket {arrival.bucket}"):
            NCCLWeightTransferEngine.receive_weights(self, native)

    @override
    def shutdown(self) -> None:
        if self._group is not None:
            self._group.end()
        self._group = self.model_update_group = None


class CudaIpcReceiver(Receiver, IPCWeightTransferEngine):  # pyright: ignore[reportGeneralTypeIssues] - as above
    """Receiver by vLLM's CUDA IPC engine, with one packed buffer for each bucket."""

    @override
    def init_transfer_engine(self, init_info: Senders) -> None:
        self.manifest = Manifest.from_plain(init_info.manifest)
        IPCWeightTransferEngine.init_transfer_engine(self, IPCWeightTransferInitInfo(packed=True))

    @override
    def finish_weight_update(self) -> None:
        Receiver.finish_weight_update(self)
        self._packed_importer.close()  # releases the learner's buffer

    @override
    def receive(self, bucket: Bucket, arrival: Arrival) -> None:
        handles: dict[str, tuple[object, ...]] = {}
        for ticket in arrival.tickets:
            assert isinstance(ticket, dict)
            handles |= {gpu: from_plain(handle) for gpu, handle in ticket.items()}
        itemsize = self.manifest.torch_dtype.itemsize
        native = IPCWeightTransferUpdateInfo(
            **_described(bucket, self.manifest.dtype),  # pyright: ignore[reportArgumentType]
            ipc_handles=handles,
            tensor_sizes=[tensor.numel * itemsize for tensor in bucket.tensors],
        )
        with _recording(self):
            IPCWeightTransferEngine.receive_weights(self, native)


def _described(bucket: Bucket, dtype: str) -> dict[str, list]:
    tensors = bucket.tensors
    return {
        "names": [tensor.name for tensor in tensors],
        "dtype_names": [dtype] * len(tensors),
        "shapes": [list(tensor.shape) for tensor in tensors],
    }


@dataclass(frozen=True, slots=True)
class _Recording:
    """Stand-in for the model while a native engine receives: the same loader, which also records digests."""

    receiver: Receiver
    model: nn.Module

    def load_weights(self, pairs: Pairs) -> None:
        """Load tensors as the receiver does, and record their digests."""
        self.receiver.load(self.model, self.receiver.recorded(pairs))


@contextlib.contextmanager
def _recording(receiver: Receiver) -> Iterator[None]:
    model = receiver.model
    receiver.model = _Recording(receiver, model)  # pyright: ignore[reportAttributeAccessIssue]
    try:
        yield
    finally:
        receiver.model = model
