"""Buckets, shares and digests of what travels."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lpo_ray.policy.tensor_digest import tensor_digest
from lpo_ray.policy.weights import Manifest, TensorMeta, bucket_bytes, make_manifest

SHAPES = st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=3).map(tuple), min_size=1, max_size=12)


def metas(shapes: list[tuple[int, ...]]) -> list[TensorMeta]:
    return [TensorMeta(f"t{number}", shape) for number, shape in enumerate(shapes)]


@given(SHAPES, st.integers(4, 2000), st.integers(1, 5))
def test_every_tensor_travels_once_in_order_and_in_one_share(
    shapes: list[tuple[int, ...]], bucket_bytes: int, senders: int
) -> None:
    tensors = metas(shapes)
    manifest = make_manifest(tensors, "float32", bucket_bytes=bucket_bytes, num_senders=senders)
    assert list(manifest.tensors) == tensors
    assert manifest.num_bytes == 4 * sum(tensor.numel for tensor in tensors)
    for bucket in manifest.buckets:
        assert len(bucket.shares) == senders
        assert bucket.numel * 4 <= bucket_bytes or len(bucket.tensors) == 1
        assert bucket.share(senders) == ()
        assert bucket.span(senders) == (bucket.numel, bucket.numel)
        spans = [bucket.span(sender) for sender in range(senders)]
        assert [end for _, end in spans] == [start for start, _ in spans[1:]] + [bucket.numel]
    assert manifest.slot_numel == max(bucket.numel for bucket in manifest.buckets)


@given(SHAPES, st.integers(4, 2000), st.integers(1, 5))
def test_views_are_the_tensors_that_were_written(
    shapes: list[tuple[int, ...]], bucket_bytes: int, senders: int
) -> None:
    manifest = make_manifest(metas(shapes), "float32", bucket_bytes=bucket_bytes, num_senders=senders)
    values = {tensor.name: torch.randn(tensor.shape) for tensor in manifest.tensors}
    for bucket in manifest.buckets:
        elements = torch.empty(bucket.numel)
        for name, view in bucket.views(elements):
            view.copy_(values[name])
        for sender in range(senders):
            share = elements[slice(*bucket.span(sender))]
            for name, view in bucket.share_views(sender, share):
                torch.testing.assert_close(view, values[name], rtol=0, atol=0)


@given(SHAPES, st.integers(4, 2000), st.integers(1, 5))
def test_a_manifest_survives_any_serialiser(shapes: list[tuple[int, ...]], bucket_bytes: int, senders: int) -> None:
    manifest = make_manifest(metas(shapes), "bfloat16", bucket_bytes=bucket_bytes, num_senders=senders)
    assert Manifest.from_plain(json.loads(json.dumps(manifest.to_plain()))) == manifest


def test_shares_are_about_equal() -> None:
    manifest = make_manifest(metas([(10, 10)] * 40), "float32", bucket_bytes=1 << 20, num_senders=4)
    assert [len(share) for share in manifest.buckets[0].shares] == [10, 10, 10, 10]


def test_a_version_depends_on_every_byte_and_on_nothing_else() -> None:
    tensors = metas([(3, 4), (5,)])
    values = {tensor.name: torch.randn(tensor.shape) for tensor in tensors}
    digests = {name: tensor_digest(value) for name, value in values.items()}
    one, many = (make_manifest(tensors, "float32", bucket_bytes=size, num_senders=n) for size, n in ((400, 1), (20, 3)))
    assert one.digest(digests) == many.digest(digests)
    other = dict(digests, t1=tensor_digest(torch.nextafter(values["t1"], torch.tensor(9.0))))
    assert one.digest(other) != one.digest(digests)
    half = make_manifest(tensors, "bfloat16", bucket_bytes=400, num_senders=1)
    assert half.digest(digests) != one.digest(digests)
    with pytest.raises(KeyError):
        one.digest({"t0": digests["t0"]})


def test_buckets_between_gpus_are_large_unless_told_otherwise() -> None:
    assert bucket_bytes(None, on_device=True) == 2**30  # a round of calls to all ranks and engines for each
    assert bucket_bytes(None, on_device=False) == 2**26
    assert bucket_bytes(3, on_device=True) == bucket_bytes(3, on_device=False) == 3 * 2**20
