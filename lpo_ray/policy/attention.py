"""Attention over packed sequences, as an attention implementation of transformers.

The packed tokens are gathered into padded rows (see ``layout.AttentionRows``), go through torch's scaled dot product
attention, and are gathered back. Only attention pays for padding. A mask is built only for short responses behind a
shared prompt, so the flash kernels of CPU and GPU serve the rest. In half precision on a GPU, torch's variable-length
kernel takes the packed tokens as they are where nothing is shared.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, PreTrainedModel

from lpo_ray.policy.layout import AttentionRows, Gather

PACKED = "lpo_ray_packed"
"""the implementation's name in transformers"""
SOFT_CAP = "attn_logit_softcapping"
"""key of a config that caps attention's own logits, as Gemma 2's; torch's scaled dot product attention leaves it out"""


class _ToRows(torch.autograd.Function):
    """Gather of packed tokens into rows, [T, heads, D] -> [S, heads, D].

    The backward pass is a gather too: a pad never has a gradient, so only the further copies of shared prompts have to
    be added.
    """

    @staticmethod
    def forward(ctx: FunctionCtx, packed: Tensor, gather: Gather) -> Tensor:
        ctx.gather = gather  # type: ignore[attr-defined]
        return packed.index_select(0, gather.index)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        gather: Gather = ctx.gather  # type: ignore[attr-defined]
        result = gradient.index_select(0, gather.owner)
        if len(gather.copies):
            result.index_add_(0, gather.copied, gradient.index_select(0, gather.copies))
        return result, None


class _FromRows(torch.autograd.Function):
    """Gather of each packed token's own output, [S, heads, D] -> [T, heads, D]."""

    @staticmethod
    def forward(ctx: FunctionCtx, padded: Tensor, gather: Gather) -> Tensor:
        ctx.gather, ctx.length = gather, len(padded)  # type: ignore[attr-defined]
        return padded.index_select(0, gather.owner)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        result = gradient.new_zeros(ctx.length, *gradient.shape[1:])  # type: ignore[attr-defined]
        return result.index_copy_(0, ctx.gather.owner, gradient), None  # type: ignore[attr-defined]


def packed_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    rows: AttentionRows,
    scaling: float | None = None,
    **_: object,
) -> tuple[Tensor, None]:
    """Attend [1, heads, T, D] queries to [1, kv heads, T, D] keys and values -> [1, T, heads, D]."""
    repeat = query.shape[1] // key.shape[1]
    packed = [tensor[0].transpose(0, 1) for tensor in (query, key, value)]
    if query.device.type != "cpu" and query.dtype in (torch.float16, torch.bfloat16) and len(rows.bounds):
        return _on_sequences(packed, rows, scaling, grouped=repeat > 1)[None], None
    padded = []
    for flat, gather, times in zip(packed, (rows.queries, rows.keys, rows.keys), (1, repeat, repeat), strict=True):
        gathered = flat if rows.in_place else _ToRows.apply(flat, gather)
        padded.append(gathered.repeat_interleave(times, dim=1) if times > 1 else gathered)
    num_queries = [bucket.rows * bucket.queries for bucket in rows.buckets]
    num_keys = [bucket.rows * bucket.keys for bucket in rows.buckets]
    parts = (tensor.split(sizes) for tensor, sizes in zip(padded, (num_queries, num_keys, num_keys), strict=True))
    outputs = []
    for bucket, *flats in zip(rows.buckets, *parts, strict=True):
        q, k, v = (flat.unflatten(0, (bucket.rows, -1)).transpose(1, 2) for flat in flats)
        causal = bucket.mask is None and bucket.queries > 1
        attended = scaled_dot_product_attention(q, k, v, bucket.mask, is_causal=causal, scale=scaling)
        outputs.append(attended.transpose(1, 2).flatten(0, 1))
    joined = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
    return (joined if rows.in_place else _FromRows.apply(joined, rows.queries))[None], None


def _on_sequences(packed: list[Tensor], rows: AttentionRows, scaling: float | None, *, grouped: bool) -> Tensor:
    """Run torch's flash attention over sequences of unequal length, in half precision on a GPU -> [T, heads, D]."""
    from torch.nn.attention.varlen import varlen_attn

    (query, key, value), ends, longest = packed, rows.bounds, rows.longest
    found = varlen_attn(
        query, key, value, ends, ends, longest, longest, scale=scaling, window_size=(-1, 0), enable_gqa=grouped
    )
    assert isinstance(found, Tensor)
    return found


def supports_packing(model: PreTrainedModel) -> bool:
    """Say whether the model's attention can be replaced, and every layer of it is full causal attention."""
    config = model.config.get_text_config()
    kinds = getattr(config, "layer_types", None) or ["full_attention"]
    window = getattr(config, "sliding_window", None) if not getattr(config, "layer_types", None) else None
    plain = window is None and not getattr(config, SOFT_CAP, None)
    return bool(model._supports_attention_backend) and plain and set(kinds) == {"full_attention"}


AttentionInterface.register(PACKED, packed_attention)
