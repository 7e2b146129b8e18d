"""A repair of vLLM's adapters on CPUs: a request without one, in a batch with others that have one, gets none.

vLLM numbers "no adapter" -1, and its torch kernels index by that: such a request was answered with the last adapter.
"""

from __future__ import annotations

import torch
import vllm.lora.ops.torch_ops.lora_ops as kernels
import vllm.lora.punica_wrapper.punica_cpu as callers

_shrink = kernels.bgmv_shrink


def shrink(
    inputs: torch.Tensor,
    lora_b_weights: torch.Tensor,
    output_tensor: torch.Tensor,
    lora_indices_tensor: torch.Tensor,
    scaling: float = 1.0,
) -> None:
    """Multiply by lora_A as vLLM does; rows without an adapter become 0, and so does what lora_B makes of them."""
    _shrink(inputs, lora_b_weights, output_tensor, lora_indices_tensor, scaling)
    output_tensor[: len(lora_indices_tensor)][lora_indices_tensor < 0] = 0


def repair() -> None:
    """Have vLLM use it."""
    kernels.bgmv_shrink = callers.bgmv_shrink = shrink
