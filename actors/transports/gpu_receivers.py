"""The engines' side of the transports between GPUs: vLLM's own NCCL and CUDA IPC engines, with our books."""

from __future__ import annotations

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
from vllm.distributed.weight_transfer.nccl_common import NCCLWeightTransferInitInfo
from vllm.distributed.weight_transfer.nccl_engine import NCCLWeightTransferEngine, NCCLWeightTransferUpdateInfo

from actors.runtime.time_limit import TimeLimited
from actors.transports.cuda_ipc import from_plain
from actors.transports.receiver import Arrival, Receiver, Senders
from lpo_ray.policy.weights import Bucket, Manifest, Pairs


class NcclReceiver(Receiver, NCCLWeightTransferEngine):  # pyright: ignore[reportGeneralTypeIssues] - other type arguments
    """Receiver by vLLM's NCCL engine, with one packed broadcast for each bucket."""

    @override
    def init_transfer_engine(self, init_info: Senders) -> None:
        self.manifest = Manifest.from_plain(init_info.manifest)
        offer = init_info.offers[0]
        assert isinstance(offer, list)
        native = NCCLWeightTransferInitInfo(
            master_address=offer[0],
            master_port=offer[1],
            rank_offset=init_info.rank_offset,
            world_size=init_info.group_size,
            packed=True,
            packed_buffer_size_bytes=self.manifest.slot_numel * self.manifest.torch_dtype.itemsize,
        )
        joining = TimeLimited(lambda: NCCLWeightTransferEngine.init_transfer_engine(self, native), "join the learner")
        joining.result(init_info.seconds)

    @override
    def receive(self, bucket: Bucket, arrival: Arrival) -> None:
        native = NCCLWeightTransferUpdateInfo(**_described(bucket, self.manifest.dtype))
        with _recording(self):
            work = TimeLimited(lambda: NCCLWeightTransferEngine.receive_weights(self, native), "receive a bucket")
            work.result(arrival.seconds)


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

    def load_weights(self, pairs: Pairs) -> object:
        """Load tensors as the model does, and record their digests."""
        return self.model.load_weights(self.receiver.recorded(pairs))  # pyright: ignore[reportCallIssue]


@contextlib.contextmanager
def _recording(receiver: Receiver) -> Iterator[None]:
    model = receiver.model
    receiver.model = _Recording(receiver, model)  # pyright: ignore[reportAttributeAccessIssue]
    try:
        yield
    finally:
        receiver.model = model
