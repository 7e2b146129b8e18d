"""Adapters put into a running engine of vLLM, from tensors: vLLM itself takes them from folders only.

Importing this repairs what vLLM does wrong with adapters here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

import torch
from vllm.lora.layers.logits_processor import LogitsProcessorWithLoRA
from vllm.lora.lora_model import LoRAModel
from vllm.lora.peft_helper import PEFTHelper
from vllm.lora.worker_manager import WorkerLoRAManager

from actors.rollout.cpu_lora import repair

repair()


class HeadWithoutAdapter:
    """Stands for vLLM's kernels at the output head, which no adapter here has. They take hidden states for one a
    request: those of a probe's prompt, beside other requests, would end the engine.
    """

    def add_lora_logits(self, logits: torch.Tensor, *_: object) -> torch.Tensor:
        """Return the logits as they are."""
        return logits


def put(
    manager: WorkerLoRAManager,
    config: Mapping[str, object],
    tensors: Mapping[str, torch.Tensor],
    number: int,
    dropped: Sequence[int],
) -> None:
    """Put an adapter in the place of those that are ``dropped``, between two steps of the engine.

    ``config``: what PEFT's adapter_config.json says of it; ``tensors``: by the names of PEFT's files. Raises
    RuntimeError when there is no place for it.
    """
    places = manager._adapter_manager
    helper = PEFTHelper.from_dict(dict(config))
    helper.validate_legal(manager.lora_config)
    mapper = getattr(places.model, "hf_to_vllm_mapper", None)
    made = LoRAModel.from_lora_tensors(
        number, dict(tensors), helper, device="cpu",
        dtype=cast("torch.dtype", manager.lora_config.lora_dtype),
        model_vocab_size=manager.vocab_size,
        weights_mapper=None if mapper is None else mapper.get_rename_mapper(),
    )  # fmt: skip
    for old in dropped:
        places.remove_adapter(old)
    there = list(places.list_adapters())
    if len(there) >= places.capacity:  # vLLM would drop one unasked, used or not
        raise RuntimeError(
            f"an engine has the adapters {there} and no place for {number}; expected {places.capacity - 1} at "
            "most: one under which requests may run would be dropped"
        )
    for module in places.model.modules():
        if isinstance(module, LogitsProcessorWithLoRA):
            module.punica_wrapper = HeadWithoutAdapter()  # pyright: ignore[reportAttributeAccessIssue] - of the same calls
    places.add_adapter(made)
    places.activate_adapter(number)
