"""Engines that are built without weights, and get all of them from the learner's ranks.

Every engine is published to before it answers. One that starts once a publish has reached all weights of an engine of
this run need not read the model's files: hundreds of engines that read one disk take minutes. Its weights are NaN until
then, so that one which no publish reaches shows: by itself (``unfilled``), and in every log-prob that it enters.
vLLM's own format for that, ``dummy``, fills weights and buffers with small numbers, which may pass for rounding.
"""

from __future__ import annotations

import torch
from torch import nn
from typing_extensions import override
from vllm.config import ModelConfig
from vllm.model_executor.model_loader import register_model_loader
from vllm.model_executor.model_loader.base_loader import BaseModelLoader

BLANK = "lpo_ray_blank"
"""vLLM's load_format of an engine without weights"""


@register_model_loader(BLANK)
class BlankLoader(BaseModelLoader):
    """Loader that reads nothing. What is no parameter stays as the model's code makes it."""

    @override
    def download_model(self, model_config: ModelConfig) -> None:
        """Download nothing."""

    @override
    def load_weights(self, model: nn.Module, model_config: ModelConfig) -> None:
        for parameter in model.parameters():
            if not parameter.is_meta:
                parameter.data.fill_(torch.nan if parameter.is_floating_point() else 0)


def unfilled(model: nn.Module) -> list[str]:
    """Name the parameters that still have NaN."""
    return [
        name
        for name, parameter in model.named_parameters()
        if parameter.is_floating_point() and bool(parameter.data.sum(dtype=torch.float32).isnan())
    ]
