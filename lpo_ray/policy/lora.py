"""Adapters (LoRA, by PEFT): their settings, and the names under which they travel.

Beside a layer's weight W an adapter has lora_A [rank, in] and lora_B [out, rank]: W x + scale * lora_B lora_A x. At the
start lora_B is zero, and the adapter changes nothing. Only A and B are trained, sent, digested and saved, under the
names of PEFT's files, which vLLM reads too: "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight".
``lora_layers`` puts them into a model.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedModel

ALL_LINEAR = "all-linear"
"""PEFT's word for every linear layer but the output head"""
RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""ranks that vLLM has kernels for; one in between is served by those of the next"""
PREFIX = "base_model.model."
"""what PEFT's files have before the name of a module"""
ADAPTER = "default"
"""PEFT's name of the one adapter that a model has here; it is no part of the names in a file"""
BASE_LAYER = ".base_layer."
"""what PEFT puts into the names of the weights that an adapter is beside"""


@dataclass(frozen=True, slots=True)
class AdapterSettings:
    """An adapter. Example: ``AdapterSettings(16, 32, ("q_proj", "v_proj"))``"""

    rank: int
    """rows of lora_A, columns of lora_B"""
    alpha: int
    targets: tuple[str, ...]
    """last parts of the names of the layers that have it, or ``ALL_LINEAR`` alone"""
    rslora: bool = False
    """scale is alpha / sqrt(rank) instead of alpha / rank"""
    seed: int = 0
    """seed of lora_A's initial values"""
    path: str | None = None
    """folder of an adapter with these settings, whose values it begins with"""


def peft_config(settings: AdapterSettings) -> dict[str, object]:
    """Make what PEFT's adapter_config.json says of such an adapter: plain values, which cross any border."""
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": settings.rank,
        "lora_alpha": settings.alpha,
        "target_modules": ALL_LINEAR if settings.targets == (ALL_LINEAR,) else list(settings.targets),
        "use_rslora": settings.rslora,
        "lora_dropout": 0.0,
        "bias": "none",
    }


def wire_name(name: str) -> str:
    """Translate the name of an adapter's parameter in a model into that in PEFT's files."""
    return PREFIX + name.replace(f".{ADAPTER}.", ".")


def file_name(name: str) -> str:
    """Translate the name of a frozen parameter beside an adapter into that in the model's own files."""
    return name.replace(BASE_LAYER, ".")


def adapter_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """List the parameters of a model's adapter by the names under which they travel; none where it has no adapter."""
    return {wire_name(name): p for name, p in model.named_parameters() if _is_of_adapter(name)}


def linear_layers(model: PreTrainedModel) -> Iterator[tuple[str, nn.Linear]]:
    """Yield the linear layers of a model, each with the last part of its name; the output head is left out."""
    head = model.get_output_embeddings()
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and module is not head:
            yield name.rpartition(".")[2], module


def layers_of(names: Iterable[str]) -> list[str]:
    """List the layers that tensors on the wire belong to, by their names in the model, each once."""
    return list(dict.fromkeys(name.removeprefix(PREFIX).rpartition(".lora_")[0] for name in names))


def _is_of_adapter(name: str) -> bool:
    return name.endswith((f".lora_A.{ADAPTER}.weight", f".lora_B.{ADAPTER}.weight"))
