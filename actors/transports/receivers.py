"""The engines' side of the transports, as vLLM's weight-transfer engines. Imported by vLLM's worker, which is where the
classes are registered. Every transport goes through the same calls of vLLM's API:

``init_weight_transfer_engine`` (manifest, where the senders are), ``start_weight_update``, ``update_weights`` (once a
bucket), ``finish_weight_update``. All of them record the digest of each tensor as it arrived.
"""

from __future__ import annotations

import contextlib
import warnings
from abc import abstractmethod
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor, nn
from torch.distributed import TCPStore
from vllm.distributed.weight_transfer import WeightTransferEngineFactory
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.distributed.weight_transfer.ipc_engine import (
    IPCWeightTransferEngine,
    IPCWeightTransferInitInfo,
    IPCWeightTransferUpdateInfo,
)
from vllm.distributed.weight_transfer.nccl_common import NCCLWeightTransferInitInfo
from vllm.distributed.weight_transfer.nccl_engine import NCCLWeightTransferEngine, NCCLWeightTransferUpdateInfo
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload
from vllm.model_executor.model_loader.reload.layerwise import get_layerwise_info

from actors.runtime.time_limit import TimeLimited
from actors.transports.cuda_ipc import from_plain
from actors.transports.gloo import SECONDS, broadcast, form_group
from actors.transports.staging import SharedMemory
from lpo_ray.policy.weights import Bucket, Manifest, Pairs, Plain, tensor_digest

if TYPE_CHECKING:
    from torch.distributed import ProcessGroupGloo


@dataclass
class Senders(WeightTransferInitInfo):
    """Whom this engine receives from, and what."""

    manifest: Plain
    receiver: str
    """the name this engine is registered under, which is a row of SOURCES for the transports through host memory"""
    offers: list[object]
    """of each sender"""
    host: str
    """address of this engine"""
    rank_offset: int
    """rank of the engine's first process in a sender's group"""
    group_size: int
    seconds: float


@dataclass
class Arrival(WeightTransferUpdateInfo):
    """A bucket that is on its way."""

    bucket: int
    tickets: list[object]
    """of each sender"""
    seconds: float


class Receiver(WeightTransferEngine[Senders, Arrival]):
    """What all transports share: layerwise reload, digests, and a session that can be given up and begun again."""

    init_info_cls = Senders
    update_info_cls = Arrival
    manifest: Manifest
    active = False
    """between start and finish: the model is partly on torch's meta device"""

    def start_weight_update(self) -> None:
        """See vLLM."""
        self.digests: dict[str, str] = {}
        initialize_layerwise_reload(self.model)
        self.active = True

    def finish_weight_update(self) -> None:
        """See vLLM. On CPU a tied output head keeps a packed copy of its own that the reload does not see and that
        would serve the old weights without a word: it is packed again here.
        """
        finalize_layerwise_reload(self.model, self.model_config)
        for module in self.model.modules():
            if isinstance(module, ParallelLMHead) and hasattr(module, "cpu_linear"):
                module.quant_method.process_weights_after_loading(module)
        self.active = False

    def receive_weights(self, update_info: Arrival) -> None:
        """See vLLM. An error closes the session as vLLM's worker does, so that another can be started."""
        try:
            self.receive(self.manifest.buckets[update_info.bucket], update_info)
        except BaseException:
            self.finish_weight_update()
            raise

    @abstractmethod
    def receive(self, bucket: Bucket, arrival: Arrival) -> None:
        """Get the bucket's tensors and load them."""

    def recorded(self, pairs: Pairs) -> Pairs:
        """The same tensors, for vLLM's loader; their digests are kept on the way."""
        for name, tensor in pairs:
            self.digests[name] = tensor_digest(tensor)
            yield name, tensor

    def shutdown(self) -> None:
        """See vLLM."""


class BucketSource(Protocol):
    """Where a host-memory transport's buckets come from."""

    def elements(self, number: int, arrival: Arrival) -> list[Tensor]:
        """Each sender's share of a bucket."""
        ...


class SharedSource:
    """The ranks' shared memory."""

    def __init__(self, senders: Senders, manifest: Manifest, rank: int) -> None:
        self._slots, self._num_senders = SharedMemory(manifest, str(senders.offers[0])), manifest.num_senders

    def elements(self, number: int, arrival: Arrival) -> list[Tensor]:
        """See Source."""
        return [self._slots.share(number, sender) for sender in range(self._num_senders)]


class GlooSource:
    """One process group for each sender."""

    def __init__(self, senders: Senders, manifest: Manifest, rank: int) -> None:
        self._manifest = manifest
        self._buffer = torch.empty(manifest.slot_numel, dtype=manifest.torch_dtype)
        self._groups: list[ProcessGroupGloo] = []
        for offer in senders.offers:
            assert isinstance(offer, list)
            store = TCPStore(offer[0], offer[1], is_master=False, timeout=timedelta(seconds=SECONDS))
            size, seconds = senders.group_size, senders.seconds
            self._groups.append(form_group(store, senders.host, senders.rank_offset + rank, size, seconds))

    def elements(self, number: int, arrival: Arrival) -> list[Tensor]:
        """See Source. All senders at once; a broadcast that is late is left behind, with its buffer."""
        bucket = self._manifest.buckets[number]
        shares = [self._buffer[slice(*bucket.span(sender))] for sender in range(len(self._groups))]
        receiving = [
            TimeLimited(partial(broadcast, group, share), f"receive bucket {number} from learner rank {rank}")
            for rank, (group, share) in enumerate(zip(self._groups, shares, strict=True))
            if share.numel()
        ]
        for work in receiving:
            work.result(arrival.seconds)
        return shares


class ObjectStoreSource:
    """Arrays that the rollout worker took from Ray's object store."""

    def __init__(self, senders: Senders, manifest: Manifest, rank: int) -> None:
        self._dtype = manifest.torch_dtype

    def elements(self, number: int, arrival: Arrival) -> list[Tensor]:
        """See Source."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The given buffer is not writable")  # it is only read
            return [
                torch.frombuffer(ticket, dtype=self._dtype) if len(ticket) else torch.empty(0, dtype=self._dtype)  # type: ignore[arg-type]
                for ticket in arrival.tickets
            ]


SOURCES: dict[str, Callable[[Senders, Manifest, int], BucketSource]] = {
    "shared_memory": SharedSource,
    "gloo": GlooSource,
    "object_store": ObjectStoreSource,
}
"""Transport.receiver -> source, of the transports through host memory"""


class HostReceiver(Receiver):
    """Loads buckets that arrive in host memory, on CPU and GPU engines alike."""

    _other_core = ThreadPoolExecutor(1, "digests")

    def init_transfer_engine(self, init_info: Senders) -> None:
        """See vLLM."""
        self.manifest = Manifest.from_plain(init_info.manifest)
        rank = self.parallel_config.rank
        joining = TimeLimited(lambda: SOURCES[init_info.receiver](init_info, self.manifest, rank), "join the learner")
        self._source = joining.result(init_info.seconds)

    def update_weights(self, update_info: Plain) -> None:
        """See vLLM, whose own also synchronises an accelerator, which a CPU has not."""
        self.receive_weights(self.parse_update_info(update_info))
        if self.device.type != "cpu":
            torch.accelerator.synchronize()

    def receive(self, bucket: Bucket, arrival: Arrival) -> None:
        """See Receiver. Digests are taken on another core while vLLM's own loader maps the tensors to its fused
        parameters and packs them.
        """
        shares = self._source.elements(arrival.bucket, arrival)
        for sender, share in enumerate(shares):
            pairs = dict(bucket.share_views(sender, share))
            digesting = self._other_core.map(tensor_digest, pairs.values())
            self.load(pairs.items())
            self.digests |= dict(zip(pairs, digesting, strict=True))
        _keep_unfinished(self.model, shares)

    def load(self, pairs: Pairs) -> None:
        """Hand tensors to vLLM's loader."""
        self.model.load_weights(pairs)  # pyright: ignore[reportCallIssue]


def _keep_unfinished(model: nn.Module, buffers: list[Tensor]) -> None:
    """Copy what vLLM still holds of ``buffers``: a layer is loaded when its last tensor is there, which may be in the
    next bucket, and by then these buffers have other content.
    """
    owned = {buffer.untyped_storage().data_ptr() for buffer in buffers}
    for layer in model.modules():
        for _, bound in get_layerwise_info(layer).loaded_weights:
            for name, value in bound.arguments.items():
                if isinstance(value, Tensor) and value.untyped_storage().data_ptr() in owned:
                    bound.arguments[name] = value.clone()


class NcclReceiver(Receiver, NCCLWeightTransferEngine):  # pyright: ignore[reportGeneralTypeIssues] - other type arguments
    """vLLM's NCCL engine: one packed broadcast a bucket."""

    def init_transfer_engine(self, init_info: Senders) -> None:
        """See vLLM."""
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

    def receive(self, bucket: Bucket, arrival: Arrival) -> None:
        """See Receiver."""
        native = NCCLWeightTransferUpdateInfo(**_described(bucket, self.manifest.dtype))
        with _recording(self):
            work = TimeLimited(lambda: NCCLWeightTransferEngine.receive_weights(self, native), "receive a bucket")
            work.result(arrival.seconds)


class CudaIpcReceiver(Receiver, IPCWeightTransferEngine):  # pyright: ignore[reportGeneralTypeIssues] - as above
    """vLLM's CUDA IPC engine: one packed buffer a bucket."""

    def init_transfer_engine(self, init_info: Senders) -> None:
        """See vLLM."""
        self.manifest = Manifest.from_plain(init_info.manifest)
        IPCWeightTransferEngine.init_transfer_engine(self, IPCWeightTransferInitInfo(packed=True))

    def finish_weight_update(self) -> None:
        """See vLLM. The learner's buffer is released."""
        Receiver.finish_weight_update(self)
        self._packed_importer.close()

    def receive(self, bucket: Bucket, arrival: Arrival) -> None:
        """See Receiver."""
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
    """Stands in for the model while a native engine receives: the same loader, with digests."""

    receiver: Receiver
    model: nn.Module

    def load_weights(self, pairs: Pairs) -> object:
        """See vLLM's models."""
        return self.model.load_weights(self.receiver.recorded(pairs))  # pyright: ignore[reportCallIssue]


@contextlib.contextmanager
def _recording(receiver: Receiver) -> Iterator[None]:
    model = receiver.model
    receiver.model = _Recording(receiver, model)  # pyright: ignore[reportAttributeAccessIssue]
    try:
        yield
    finally:
        receiver.model = model


for name in SOURCES:
    WeightTransferEngineFactory.register_engine(name, HostReceiver)
WeightTransferEngineFactory.register_engine("lpo_ray_nccl", NcclReceiver)
WeightTransferEngineFactory.register_engine("lpo_ray_cuda_ipc", CudaIpcReceiver)
