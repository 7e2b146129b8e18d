"""Weights on their way from the learner to the engines: a manifest of tensors in buckets, and the digest that names it.

Made by the learner, read by every sender and receiver. All tensors of a manifest travel in one dtype, the engines'.
Inside a bucket they lie one behind the other: a process that has the bytes of a bucket has its tensors as views.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from blake3 import blake3
from torch import Tensor, nn
from transformers import PreTrainedModel

from lpo_ray.policy.lora import adapter_parameters

Pairs = Iterable[tuple[str, Tensor]]
Plain = dict[str, object]
"""a value of str, int, list and dict only, which every serialiser carries"""


@dataclass(frozen=True, slots=True)
class TensorMeta:
    """Name and shape of a tensor, under its Hugging Face name. Example: ``TensorMeta("lm_head.weight", (90, 64))``"""

    name: str
    shape: tuple[int, ...]

    @property
    def numel(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class Bucket:
    """Consecutive tensors that are gathered, sent and loaded together. Sender i sends ``shares[i]``."""

    shares: tuple[tuple[TensorMeta, ...], ...]

    @property
    def tensors(self) -> tuple[TensorMeta, ...]:
        """All tensors of the bucket, in the order of their bytes."""
        return tuple(tensor for share in self.shares for tensor in share)

    @property
    def numel(self) -> int:
        """Number of elements."""
        return sum(tensor.numel for tensor in self.tensors)

    def share(self, sender: int) -> tuple[TensorMeta, ...]:
        """Return the tensors that a sender sends; none for a rank that is no sender."""
        return self.shares[sender] if sender < len(self.shares) else ()

    def span(self, sender: int) -> tuple[int, int]:
        """Return the first element and the end of a sender's share."""
        sizes = [sum(tensor.numel for tensor in share) for share in self.shares]
        return sum(sizes[:sender]), sum(sizes[: sender + 1])

    def views(self, elements: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Yield name and tensor, as views of the bucket's ``elements`` [numel]."""
        for sender in range(len(self.shares)):
            yield from self.share_views(sender, elements[slice(*self.span(sender))])

    def share_views(self, sender: int, elements: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Yield name and tensor, as views of the ``elements`` of one sender's share."""
        start = 0
        for tensor in self.share(sender):
            yield tensor.name, elements[start : start + tensor.numel].view(tensor.shape)
            start += tensor.numel


@dataclass(frozen=True)
class Manifest:
    """Every tensor of a policy, in buckets. The same on all ranks and engines of a run."""

    dtype: str
    """such as float32"""
    buckets: tuple[Bucket, ...]

    @cached_property
    def tensors(self) -> tuple[TensorMeta, ...]:
        """All tensors, in the order in which they travel."""
        return tuple(tensor for bucket in self.buckets for tensor in bucket.tensors)

    @property
    def torch_dtype(self) -> torch.dtype:
        """Dtype in which every tensor travels."""
        return getattr(torch, self.dtype)

    @property
    def slot_numel(self) -> int:
        """Number of elements of the largest bucket."""
        return max(bucket.numel for bucket in self.buckets)

    @property
    def num_bytes(self) -> int:
        """Bytes of one publish to one engine."""
        return sum(tensor.numel for tensor in self.tensors) * self.torch_dtype.itemsize

    @property
    def num_senders(self) -> int:
        """Number of ranks that send."""
        return len(self.buckets[0].shares)

    def digest(self, digests: Mapping[str, str]) -> str:
        """Compute the identity of a version, over name, shape, dtype and digest of every tensor.

        It does not depend on buckets, on the number of ranks, or on the transport. Raises KeyError when a tensor has no
        digest.
        """
        lines = (f"{t.name} {t.shape} {self.dtype} {digests[t.name]}\n" for t in self.tensors)
        return blake3("".join(lines).encode()).hexdigest(16)

    def to_plain(self) -> Plain:
        """Make a form that engines behind another serialiser can read."""
        return {
            "dtype": self.dtype,
            "buckets": [[[[t.name, list(t.shape)] for t in share] for share in b.shares] for b in self.buckets],
        }

    @staticmethod
    def from_plain(plain: Mapping[str, object]) -> Manifest:
        """Make a manifest of what ``to_plain`` returned."""
        buckets = plain["buckets"]
        assert isinstance(buckets, list)
        return Manifest(
            str(plain["dtype"]),
            tuple(
                Bucket(tuple(tuple(TensorMeta(name, tuple(shape)) for name, shape in share) for share in shares))
                for shares in buckets
            ),
        )


def bucket_bytes(mib: int | None, *, on_device: bool) -> int:
    """Size of a bucket: ``mib``, or by where it is gathered. A round of calls to all ranks and engines goes with each,
    beside which 64 MiB take long on a host, and a thirtieth of that on GPUs.
    """
    return (mib or (1024 if on_device else 64)) * 2**20


def make_manifest(tensors: Sequence[TensorMeta], dtype: str, *, bucket_bytes: int, num_senders: int) -> Manifest:
    """Cut ``tensors`` into buckets of at most ``bucket_bytes`` (a larger tensor is a bucket of its own), and each
    bucket into ``num_senders`` shares of whole tensors and about equal size.
    """
    limit = bucket_bytes // getattr(torch, dtype).itemsize
    groups: list[list[TensorMeta]] = []
    used = 0
    for tensor in tensors:
        if not groups or used + tensor.numel > limit:
            groups.append([])
            used = 0
        groups[-1].append(tensor)
        used += tensor.numel
    return Manifest(dtype, tuple(Bucket(_shares(group, num_senders)) for group in groups))


def _shares(tensors: Sequence[TensorMeta], count: int) -> tuple[tuple[TensorMeta, ...], ...]:
    """Cut into consecutive shares: a tensor belongs to the share in which its middle lies."""
    shares: list[list[TensorMeta]] = [[] for _ in range(count)]
    total, before = sum(tensor.numel for tensor in tensors), 0
    for tensor in tensors:
        shares[min(count - 1, (2 * before + tensor.numel) * count // (2 * total))].append(tensor)
        before += tensor.numel
    return tuple(tuple(share) for share in shares)


def is_published(name: str, model: PreTrainedModel | nn.Module) -> bool:
    """Say whether a parameter must be sent: a tied output head is the embedding under another name."""
    tied = bool(getattr(getattr(model, "config", None), "tie_word_embeddings", False))
    return not (tied and name == "lm_head.weight")


def published(model: PreTrainedModel | nn.Module) -> dict[str, nn.Parameter]:
    """List the parameters that are sent, by the names of the wire: an adapter's alone where there is one, else all."""
    return adapter_parameters(model) or {n: p for n, p in model.named_parameters() if is_published(n, model)}
