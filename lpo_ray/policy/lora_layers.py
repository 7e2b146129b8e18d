"""A model with an adapter (LoRA) in it. Imports PEFT, which takes a second: only for what trains or saves one.

The adapter is injected, not wrapped around: classes, methods and names of the model stay what they are, but for
"q_proj.weight" beside an adapter, which becomes "q_proj.base_layer.weight".
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import cast

import torch
from peft import get_peft_config, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers import PreTrainedModel
from typing_extensions import override

from lpo_ray.common.seeds import derive_seed
from lpo_ray.errors import ConfigError
from lpo_ray.policy.adapter_files import check_tensors, read_tensors
from lpo_ray.policy.layout import Layout
from lpo_ray.policy.lora import (
    ADAPTER,
    ALL_LINEAR,
    AdapterSettings,
    adapter_parameters,
    linear_layers,
    peft_config,
)
from lpo_ray.policy.scoring import Scorer


def inject(model: PreTrainedModel, settings: AdapterSettings) -> Mapping[str, nn.Parameter]:
    """Give a model an adapter, and let nothing else be trained. Returns its parameters by the names of the wire.

    It changes nothing yet, or is that of a folder. The weights beside it may be sharded already. Raises
    ConfigError when a target is no linear layer of the model, or the folder has another adapter.
    """
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    known = sorted({name for name, _ in linear_layers(model)})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(settings.seed, "adapter"))
        try:
            inject_adapter_in_model(get_peft_config(peft_config(settings)), model)
        except ValueError as error:
            raise _refused(model, settings, known, " ".join(str(error).split())) from error
    _check_targets(model, settings, known)
    found = adapter_parameters(model)
    for parameter in found.values():  # PEFT makes them float32
        parameter.data = parameter.data.to(model.dtype)
    if settings.path is not None:
        fill(found, read_tensors(settings.path), settings.path)
    return found


def fill(parameters: Mapping[str, nn.Parameter], tensors: Mapping[str, torch.Tensor], source: str) -> None:
    """Copy tensors into an adapter's parameters, all of them by name. Raises ConfigError naming ``source``."""
    check_tensors(source, tensors, {name: parameter.shape for name, parameter in parameters.items()})
    for name, parameter in parameters.items():
        parameter.data.copy_(tensors[name])


@contextmanager
def without_adapter(model: nn.Module) -> Iterator[None]:
    """Have the model compute what it would without its adapter: that is the policy before training."""
    layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)


@torch.no_grad()
def merge(model: PreTrainedModel) -> None:
    """Add the adapter to the weights beside it, summed up in float32, and take it out of the model."""
    for name, layer in [(n, m) for n, m in model.named_modules() if isinstance(m, LoraLayer)]:
        down, up = (cast("torch.Tensor", part[ADAPTER].weight).float() for part in (layer.lora_A, layer.lora_B))
        linear = layer.get_base_layer()
        weight = cast("torch.Tensor", linear.weight)
        weight.copy_(weight.float() + layer.scaling[ADAPTER] * (up @ down))
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, linear)
    del model.peft_config


class BaseScorer(Scorer):
    """Scores by a policy without its adapter: the frozen reference, for no memory. A collective where the policy is."""

    def __init__(self, policy: Scorer, model: nn.Module) -> None:
        self.packed, self.share_prompt = policy.packed, policy.share_prompt
        self._policy, self._model = policy, model

    @override
    def score(self, layout: Layout, temperature: float) -> tuple[torch.Tensor, torch.Tensor]:
        with without_adapter(self._model):
            return self._policy.score(layout, temperature)

    @override
    def score_plainly(self, layout: Layout) -> torch.Tensor:
        with without_adapter(self._model):
            return self._policy.score_plainly(layout)


def _check_targets(model: PreTrainedModel, settings: AdapterSettings, known: Sequence[str]) -> None:
    """Check that all targets are there, and are layers whose product is the layer's. Raises ConfigError."""
    adapted = {name: module for name, module in model.named_modules() if isinstance(module, BaseTunerLayer)}
    for name, module in adapted.items():
        if not isinstance(module.get_base_layer(), nn.Linear):
            kind = type(module.get_base_layer()).__name__
            raise _refused(
                model, settings, known, f"{name} is a {kind}, and only linear layers can have an adapter here"
            )
        if module is model.get_output_embeddings():
            raise _refused(model, settings, known, f"{name} is the output head, which is trained in full or not at all")
    lost = [t for t in settings.targets if t != ALL_LINEAR and not any(f".{n}".endswith(f".{t}") for n in adapted)]
    if lost:
        raise _refused(model, settings, known, f"it has no layer {', '.join(lost)}")


def _refused(model: PreTrainedModel, settings: AdapterSettings, known: Sequence[str], why: str) -> ConfigError:
    return ConfigError(
        f"model.lora.targets is {list(settings.targets)}, but of {type(model).__name__} {why}; expected [{ALL_LINEAR}] "
        f"or names of its linear layers: {', '.join(known)}"
    )
