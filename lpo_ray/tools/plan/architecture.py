"""The numbers of a model's architecture that sizes and times follow from. No weight is read, and none is allocated.

``architectures.json`` has what the config.json of the recipes' models on the Hugging Face hub says, as of the models'
releases (Qwen2.5 September 2024, Qwen3 April 2025), for machines that do not reach the hub. Parameters are counted on a
model without memory (torch's meta device), so they are exact for whatever transformers can build.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from lpo_ray.errors import ConfigError
from lpo_ray.policy.loading import UNREADABLE
from lpo_ray.policy.lora import ALL_LINEAR, AdapterSettings, linear_layers
from lpo_ray.policy.proof_limits import is_mixture
from lpo_ray.policy.whole import check_no_adapter, check_trainable
from lpo_ray.tasks.base_policy import character_tokenizer, make_model


@dataclass(frozen=True, slots=True)
class Architecture:
    """Decoder of attention and gated feed-forward layers. Sizes in elements."""

    name: str
    source: str
    """where the numbers come from, for a reader"""
    parameters: int
    """all of them, a tied head counted once"""
    largest_parameter: int
    largest_layer: int
    """parameters of the decoder layer that has most"""
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    tied: bool
    """the output head is the input embedding"""
    qk_norm: bool
    """queries and keys are normalised, as in Qwen3"""
    context: int
    """positions"""
    widths: Mapping[str, int] = field(default_factory=dict)
    """last part of the name of a linear layer, such as q_proj -> rows and columns of all of these; the head left out"""

    def adapter_parameters(self, adapter: AdapterSettings) -> int:
        """Count the parameters of an adapter. Raises ConfigError for a target that the model has not."""
        targets = self.widths if adapter.targets == (ALL_LINEAR,) else adapter.targets
        lost = [name for name in targets if name not in self.widths]
        if lost:
            known = ", ".join(self.widths)
            raise ConfigError(f"model.lora.targets has {', '.join(lost)}; expected [{ALL_LINEAR}] or some of {known}")
        return adapter.rank * sum(self.widths[name] for name in targets)

    @property
    def embedding(self) -> int:
        """Parameters of the input embedding, and of the output head."""
        return self.vocab_size * self.hidden_size

    @property
    def body(self) -> int:
        """Parameters that every token is multiplied with, the output head left out."""
        return self.parameters - self.embedding * (1 if self.tied else 2)


def read_architecture(path: str | None) -> Architecture:
    """Read the architecture of a Hugging Face folder, a hub name, or (None) the tiny base policy. Raises ConfigError.

    A hub name that cannot be reached is looked up in architectures.json.
    """
    if path is None:
        model = make_model(character_tokenizer(), seed=0)
        return describe(model, "the tiny base policy", "lpo_ray/tasks/base_policy.py")
    folder = Path(path)
    if folder.is_absolute() or folder.exists():
        return _of_config(path, _read_folder(folder), f"{folder / 'config.json'}")
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    try:
        return _of_config(path, AutoConfig.from_pretrained(path), "config.json on the hub")
    except UNREADABLE as error:
        shipped = shipped_architectures()
        if path not in shipped:
            raise ConfigError(
                f"model.path is {path!r}, which is no folder and could not be had from the hub "
                f"({str(error).splitlines()[0]}); put its config.json in a folder and give that as model.path, or take "
                f"one that is known without the hub: {', '.join(shipped)}"
            ) from error
        fields = dict(shipped[path])
        config = AutoConfig.for_model(str(fields.pop("model_type")), **fields)
        return _of_config(path, config, "lpo_ray/architectures.json, as the hub was not reached")


def shipped_architectures() -> dict[str, dict[str, int | bool | str]]:
    """Hub name -> fields of its config.json."""
    return json.loads(resources.files("lpo_ray.tools.plan").joinpath("architectures.json").read_text())


def describe(model: PreTrainedModel, name: str, source: str) -> Architecture:
    """Measure ``model``, which may be on the meta device. Raises ConfigError for one without such numbers."""
    config = model.config.get_text_config()
    sizes = {id(parameter): parameter.numel() for parameter in model.parameters()}
    layers = next((module for module in model.modules() if isinstance(module, torch.nn.ModuleList)), None)
    heads, hidden = getattr(config, "num_attention_heads", None), getattr(config, "hidden_size", None)
    inner, context = getattr(config, "intermediate_size", None), getattr(config, "max_position_embeddings", None)
    known = (heads, hidden, inner, context)
    mixture = is_mixture(name for name, _ in model.named_parameters())  # configurations count experts by many names
    if layers is None or not all(isinstance(value, int) for value in known) or mixture:
        raise ConfigError(
            f"model {name!r} ({type(model).__name__}) is not a decoder of attention and one feed-forward network a "
            "layer, so its sizes are not known to plan; expected a model like Llama, Qwen2 or Qwen3"
        )
    assert isinstance(heads, int) and isinstance(hidden, int) and isinstance(inner, int) and isinstance(context, int)
    return Architecture(
        name=name,
        source=source,
        parameters=sum(sizes.values()),
        largest_parameter=max(sizes.values()),
        largest_layer=max(sum(p.numel() for p in layer.parameters()) for layer in layers),
        hidden_size=hidden,
        intermediate_size=inner,
        num_layers=len(layers),
        num_heads=heads,
        num_kv_heads=getattr(config, "num_key_value_heads", None) or heads,
        head_dim=getattr(config, "head_dim", None) or hidden // heads,
        vocab_size=config.vocab_size,
        tied=bool(config.tie_word_embeddings),
        qk_norm=any(name.endswith("q_norm.weight") for name, _ in model.named_parameters()),
        context=context,
        widths=_widths(model),
    )


def _widths(model: PreTrainedModel) -> dict[str, int]:
    found: dict[str, int] = {}
    for name, layer in linear_layers(model):
        found[name] = found.get(name, 0) + layer.in_features + layer.out_features
    return found


def _of_config(name: str, config: PretrainedConfig, source: str) -> Architecture:
    check_trainable(name, config)
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
    except UNREADABLE as error:
        raise ConfigError(
            f"no language model can be built from the configuration of {name!r}: {str(error).splitlines()[0]}; "
            "expected one that transformers knows as a causal language model"
        ) from error
    return describe(model, name, source)


def _read_folder(folder: Path) -> PretrainedConfig:
    check_no_adapter(str(folder))
    file = folder / "config.json"
    if not file.is_file():
        raise ConfigError(f"model.path is {str(folder)!r}, which has no config.json; expected a Hugging Face folder")
    try:
        return AutoConfig.from_pretrained(str(folder))
    except UNREADABLE as error:
        raise ConfigError(f"{file} cannot be read as a model's configuration: {str(error).splitlines()[0]}") from error
