"""Base of the engines' side of every transport: a vLLM weight-transfer engine that records what arrived.

vLLM calls ``init_weight_transfer_engine`` (manifest, where the senders are), ``start_weight_update``,
``update_weights`` (once a bucket) and ``finish_weight_update``. The digest of each tensor is taken as it arrives.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from torch import Tensor, nn
from typing_extensions import override
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

from lpo_ray.policy.tensor_digest import as_digests, weighted_sum
from lpo_ray.policy.weights import Bucket, Manifest, Pairs, Plain


@dataclass
class Senders(WeightTransferInitInfo):
    """The senders this engine receives from, and the manifest they send."""

    manifest: Plain
    receiver: str
    """name under which this engine is registered; a key of host_receiver.SOURCES for transports through host memory"""
    offers: list[object]
    """what each sender said of how to reach it; see Sender.offer"""
    host: str
    """address of this engine"""
    rank_offset: int
    """rank of the engine's first process in a sender's group"""
    group_size: int
    seconds: float


@dataclass
class Arrival(WeightTransferUpdateInfo):
    """A bucket on its way to the engine."""

    bucket: int
    tickets: list[object]
    """what each sender said of how to find its share; see Sender.ticket"""
    seconds: float


class Receiver(WeightTransferEngine[Senders, Arrival]):
    """Base of all receivers: layerwise reload, digests, and an update that can be given up and started again."""

    init_info_cls = Senders
    update_info_cls = Arrival
    manifest: Manifest
    active = False
    """between start and finish: the model is partly on torch's meta device"""
    adapter: Mapping[str, Tensor] = MappingProxyType({})
    """tensors of the adapter that arrived last, which the worker extension serves. As of full weights, one that does
    not arrive in an update stays as it was: the proof names it"""

    @override
    def start_weight_update(self) -> None:
        self.digests: dict[str, str] = {}
        self._sums: dict[str, Tensor] = {}
        if not self.takes_adapter:
            initialize_layerwise_reload(self.model)
        self.active = True

    @override
    def finish_weight_update(self) -> None:
        self.digests |= dict(zip(self._sums, as_digests(list(self._sums.values())), strict=True))
        if not self.takes_adapter:
            finalize_layerwise_reload(self.model, self.model_config)
            if self.device.type == "cpu":
                self._pack_again()
        self.active = False

    def load(self, model: nn.Module, pairs: Pairs) -> None:
        """Hand tensors to vLLM's loader of ``model``; keep those of an adapter, which its loader does not know."""
        if self.takes_adapter:
            self.adapter = {**self.adapter, **{name: tensor.clone() for name, tensor in pairs}}
        else:
            model.load_weights(pairs)  # pyright: ignore[reportCallIssue]

    @property
    def takes_adapter(self) -> bool:
        """Whether an engine serves an adapter: then that alone is sent."""
        return self.vllm_config.lora_config is not None

    def _pack_again(self) -> None:
        """Pack what vLLM packs for its CPU kernels when it loads a model, and not when it loads weights again.

        A tied output head keeps a copy of its own, which would serve the old weights. The kernel of a mixture of
        experts would read plain rows as packed ones. Neither would raise an error.
        """
        for module in self.model.modules():
            if isinstance(module, ParallelLMHead) and hasattr(module, "cpu_linear"):
                module.quant_method.process_weights_after_loading(module)
            kernel = getattr(getattr(module, "quant_method", None), "moe_kernel", None)
            if kernel is not None:
                kernel.fused_experts.process_weights_after_loading(module)

    @override
    def receive_weights(self, update_info: Arrival) -> None:
        try:
            self.receive(self.manifest.buckets[update_info.bucket], update_info)
        except BaseException:
            self.finish_weight_update()  # as vLLM's worker does, so that another update can be started
            raise

    @abstractmethod
    def receive(self, bucket: Bucket, arrival: Arrival) -> None:
        """Receive the bucket's tensors and load them."""

    def recorded(self, pairs: Pairs) -> Pairs:
        """Pass tensors on to vLLM's loader, and have their device compute the digest of each; ``finish_weight_update``
        waits for it.
        """
        for name, tensor in pairs:
            self._sums[name] = weighted_sum(tensor)
            yield name, tensor
