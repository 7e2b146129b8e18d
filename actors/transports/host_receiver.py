"""The engines' side of the transports through host memory: shared memory, gloo and Ray's object store."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor, nn
from torch.distributed import TCPStore
from typing_extensions import override
from vllm.model_executor.model_loader.reload.layerwise import get_layerwise_info

from actors.runtime.time_limit import TimeLimited
from actors.transports.gloo import SECONDS, broadcast, form_group
from actors.transports.receiver import Arrival, Receiver, Senders
from actors.transports.staging import SharedMemory
from lpo_ray.policy.tensor_digest import digests_of
from lpo_ray.policy.weights import Bucket, Manifest, Plain

if TYPE_CHECKING:
    from torch.distributed import ProcessGroupGloo


class BucketSource(Protocol):
    """Source of the buckets of one transport through host memory."""

    def elements(self, number: int, arrival: Arrival) -> list[Tensor]:
        """Return each sender's share of a bucket."""
        ...


class SharedSource(BucketSource):
    """Source in memory that the ranks share with engines on their host."""

    def __init__(self, senders: Senders, manifest: Manifest, rank: int, device: torch.device) -> None:
        self._num_senders = manifest.num_senders
        self._slots = SharedMemory(manifest, device, str(senders.offers[0]))

    @override
    def elements(self, number: int, arrival: Arrival) -> list[Tensor]:
        return [self._slots.share(number, sender) for sender in range(self._num_senders)]


class GlooSource(BucketSource):
    """Source over TCP, with one process group for each sender."""

    def __init__(self, senders: Senders, manifest: Manifest, rank: int, device: torch.device) -> None:
        self._manifest = manifest
        self._buffer = torch.empty(manifest.slot_numel, dtype=manifest.torch_dtype)
        self._groups: list[ProcessGroupGloo] = []
        for offer in senders.offers:
            assert isinstance(offer, list)
            store = TCPStore(offer[0], offer[1], is_master=False, timeout=timedelta(seconds=SECONDS))
            size, seconds = senders.group_size, senders.seconds
            self._groups.append(form_group(store, senders.host, senders.rank_offset + rank, size, seconds))

    @override
    def elements(self, number: int, arrival: Arrival) -> list[Tensor]:
        # All senders at once. A broadcast that is late is left behind, with its buffer.
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


class ObjectStoreSource(BucketSource):
    """Source in arrays that the rollout worker took from Ray's object store."""

    def __init__(self, senders: Senders, manifest: Manifest, rank: int, device: torch.device) -> None:
        self._dtype = manifest.torch_dtype

    @override
    def elements(self, number: int, arrival: Arrival) -> list[Tensor]:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The given buffer is not writable")  # it is only read
            return [
                torch.frombuffer(ticket, dtype=self._dtype) if len(ticket) else torch.empty(0, dtype=self._dtype)  # type: ignore[arg-type]
                for ticket in arrival.tickets
            ]


SOURCES: dict[str, Callable[[Senders, Manifest, int, torch.device], BucketSource]] = {
    "shared_memory": SharedSource,
    "gloo": GlooSource,
    "object_store": ObjectStoreSource,
}
"""Transport.receiver -> source of its buckets, for a process of the engine by rank and device"""


class HostReceiver(Receiver):
    """Receiver of buckets that arrive in host memory, for CPU and GPU engines alike."""

    _other_core = ThreadPoolExecutor(1, "digests")
    _source: BucketSource | None = None

    @override
    def init_transfer_engine(self, init_info: Senders) -> None:
        self.manifest = Manifest.from_plain(init_info.manifest)
        make, rank, device = SOURCES[init_info.receiver], self.parallel_config.rank, self.device
        joining = TimeLimited(lambda: make(init_info, self.manifest, rank, device), "join the learner", device)
        self._source = joining.result(init_info.seconds)

    @override
    def shutdown(self) -> None:
        self._source = None

    @override
    def update_weights(self, update_info: Plain) -> None:
        self.receive_weights(self.parse_update_info(update_info))
        # vLLM's own synchronises an accelerator, which a CPU engine does not have.
        if self.device.type != "cpu":
            torch.accelerator.synchronize()

    @override
    def receive(self, bucket: Bucket, arrival: Arrival) -> None:
        if self._source is None:
            raise RuntimeError("cannot receive: no sender was joined")
        shares = self._source.elements(arrival.bucket, arrival)
        # Digests are taken on another core while vLLM's loader maps the tensors to its fused parameters and packs them.
        for sender, share in enumerate(shares):
            pairs = dict(bucket.share_views(sender, share))
            digesting = self._other_core.submit(digests_of, list(pairs.values()))
            self.load(self.model, pairs.items())
            self.digests |= dict(zip(pairs, digesting.result(), strict=True))
        _keep_unfinished(self.model, shares)


def _keep_unfinished(model: nn.Module, buffers: list[Tensor]) -> None:
    """Copy what vLLM still holds of ``buffers``. A layer is loaded when its last tensor is there, which may be in the
    next bucket; by then these buffers have other content.
    """
    owned = {buffer.untyped_storage().data_ptr() for buffer in buffers}
    for layer in model.modules():
        for _, bound in get_layerwise_info(layer).loaded_weights:
            for name, value in bound.arguments.items():
                if isinstance(value, Tensor) and value.untyped_storage().data_ptr() in owned:
                    bound.arguments[name] = value.clone()
