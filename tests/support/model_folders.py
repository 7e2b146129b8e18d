"""Tiny models of any architecture in folders as a hub has them, and what may be wrong with such a folder."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, PretrainedConfig, PreTrainedModel

from lpo_ray.tasks.base_policy import character_tokenizer

ROWS = 104
"""of an embedding; the tokenizer has 100 tokens"""
SIZES = {
    "vocab_size": ROWS, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 256, "bos_token_id": None, "eos_token_id": 2,
    "pad_token_id": 0,
}  # fmt: skip


def llama(**changes: object) -> LlamaConfig:
    return LlamaConfig(**{**SIZES, **changes})


def random_model(config: PretrainedConfig, std: float = 0.2) -> PreTrainedModel:
    """A model with weights so large that every part of it shows in the log-probs."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(copy.deepcopy(config)).eval()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=std)
    return model


def write_model(
    folder: Path, config: PretrainedConfig | None = None, generation: dict[str, object] | None = None, **how: object
) -> Path:
    random_model(config or llama()).save_pretrained(folder, **how)
    character_tokenizer().save(folder)
    if generation is not None:
        (folder / "generation_config.json").write_text(json.dumps(generation))
    return folder


def edit_weights(folder: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
    weights = load_file(folder / "model.safetensors")
    save_file(change(weights), folder / "model.safetensors", metadata={"format": "pt"})


def without(part: str) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda weights: {name: tensor for name, tensor in weights.items() if part not in name}


def edit_json(file: Path, **values: object) -> None:
    """Set keys of a JSON file; None removes one."""
    kept = {**(json.loads(file.read_text()) if file.exists() else {}), **values}
    file.write_text(json.dumps({key: value for key, value in kept.items() if value is not None}))
