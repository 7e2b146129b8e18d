"""Whether a model's folder holds one whole language model. Asked of config.json and of the headers of its weights, so
before anything starts; and of what transformers says once it has read the weights.

transformers fills what is missing with random numbers, leaves out what it does not know, and says so in its log only.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import convert_and_load_state_dict_in_model
from transformers.modeling_utils import LoadStateDictConfig
from transformers.utils import (
    ADAPTER_CONFIG_NAME,
    SAFE_WEIGHTS_INDEX_NAME,
    SAFE_WEIGHTS_NAME,
    WEIGHTS_INDEX_NAME,
    WEIGHTS_NAME,
)
from transformers.utils.peft_utils import find_adapter_config_file

from lpo_ray.errors import ConfigError

NAMED = 3
"""names of weights in a message; the others are counted"""
MERGE = "expected a model without one: merge it into the weights (peft: merge_and_unload, then save_pretrained)"


def check_no_adapter(path: str) -> None:
    """Check that ``path``, a folder or a hub's name, is no adapter, and has none beside its model.

    Raises ConfigError: only the model would be trained, as if the adapter were not there.
    """
    try:
        found = find_adapter_config_file(path)
    except (OSError, ValueError):  # there is no such model: its config cannot be read either
        return
    if found is None:
        return
    if not (Path(found).parent / "config.json").is_file():
        raise ConfigError(f"model {path!r} is an adapter of {_adapted(Path(found))} without the model itself; {MERGE}")
    raise ConfigError(f"model {path!r} has {ADAPTER_CONFIG_NAME} beside its weights; {MERGE}")


def check_decoder(path: str, config: PretrainedConfig) -> None:
    """Check that the model continues texts without an encoder: no engine serves another. Raises ConfigError."""
    if config.get_text_config().is_encoder_decoder or config.is_encoder_decoder:
        raise ConfigError(f"model {path!r} is a {config.model_type}, which has an encoder; expected a decoder alone")


def check_trainable(path: str, config: PretrainedConfig) -> None:
    """Check that the model is one that text is trained on in full: no other modality, not quantised, RoPE that stays.

    Raises ConfigError.
    """
    check_decoder(path, config)
    parts = [name for name in config.to_dict() if name.endswith("_config") and name in config.sub_configs]
    if config.get_text_config() is not config:
        raise ConfigError(
            f"model {path!r} is a {config.model_type} of several models ({', '.join(sorted(parts))}); expected "
            "a language model alone: save its text model in a folder of its own, with that model's config"
        )
    for name in ("quantization_config", "compression_config"):
        if quantised := getattr(config, name, None):
            method = quantised.get("quant_method", "unknown") if isinstance(quantised, dict) else quantised
            raise ConfigError(
                f"model {path!r} has weights that are quantised ({name}: {method}); expected float32, bfloat16 "
                "or float16: take the model that it was made from, or write it out dequantised"
            )
    _check_rope(path, config)


def check_weights(path: str, config: PretrainedConfig, *, trust_remote_code: bool) -> None:
    """Check by the names and shapes in the headers that the folder's safetensors are the weights of its config.

    Nothing is checked of weights in another format, which have no header, nor of a hub's name. Raises ConfigError.
    """
    folder = Path(path)
    if not folder.is_dir():
        return
    files = safetensors_of(folder)
    if not files:
        if not any((folder / name).is_file() for name in (WEIGHTS_NAME, WEIGHTS_INDEX_NAME)):
            raise ConfigError(
                f"model {path!r} has no weights; expected {SAFE_WEIGHTS_NAME}, or "
                f"{SAFE_WEIGHTS_INDEX_NAME} and the files that it names"
            )
        return
    shapes = {name: shape for file in files for name, shape in _header(file).items()}
    meta = torch.device("meta")
    with meta:
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    state: dict[str, Tensor] = {name: torch.empty(shape, device=meta) for name, shape in shapes.items()}
    mapping: Any = get_model_conversion_mapping(model)
    plan = LoadStateDictConfig(device_map={"": meta}, dtype=torch.float32, weight_mapping=mapping)
    info, _ = convert_and_load_state_dict_in_model(model, state, plan, None)
    model.tie_weights(missing_keys=info.missing_keys, recompute_mapping=False)
    model._adjust_missing_and_unexpected_keys(info)
    check_loaded(path, model, {**info.to_dict(), "conversion_errors": info.conversion_errors})


def check_loaded(path: str, model: PreTrainedModel, info: Mapping[str, Collection[object]]) -> None:
    """Check that transformers found every weight of ``model`` in its files, with its shape, and no other weight.

    ``info``: what transformers says of the loading. Raises ConfigError.
    """
    mismatched = [f"{name} {list(found)} instead of {list(wanted)}" for name, found, wanted in info["mismatched_keys"]]  # type: ignore[misc]
    problems = [
        f"{len(names)} {what}: {_some(names)}"
        for what, names in (
            ("missing, which would be random numbers", info["missing_keys"]),
            ("of another shape, which would be random numbers", mismatched),
            ("that it has not, which would be left out", info["unexpected_keys"]),
            ("that could not be converted", info.get("conversion_errors", ())),
        )
        if names
    ]
    if problems:
        raise ConfigError(
            f"model {path!r} has other weights than a {type(model).__name__} needs: {'; '.join(problems)}. "
            "Expected every weight under its name and no other: copy the folder again, or repair what wrote it"
        )


def check_tied(path: str, model: PreTrainedModel) -> None:
    """Check that a loaded model's head is its embedding where the config says so. Raises ConfigError.

    transformers leaves them apart when the files have both and they differ; only the embedding would be published.
    """
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    if model.config.tie_word_embeddings and head is not None and head.weight is not embedding.weight:
        raise ConfigError(
            f"model {path!r} has tie_word_embeddings=true in its config, but its files have an output head "
            "that is not the embedding; expected one of them: set tie_word_embeddings=false in its config.json, or "
            "remove the head from its weights"
        )


def check_tokens(path: str, highest: int, config: PretrainedConfig) -> None:
    """Check that the model has a row of its embedding for the ``highest`` token id. Raises ConfigError."""
    rows = config.get_text_config().vocab_size
    if highest >= rows:
        raise ConfigError(
            f"model {path!r} has a tokenizer with ids up to {highest}, but {rows} rows of its embedding "
            f"(vocab_size); expected {highest + 1} at least: resize the model (resize_token_embeddings) and save it, "
            "or take the tokenizer that it was trained with"
        )


def _check_rope(path: str, config: PretrainedConfig) -> None:
    """Refuse RoPE whose frequencies follow the longest sequence of a batch: log-probs would depend on company."""
    context = getattr(config, "max_position_embeddings", None)
    for rope in _ropes(config):
        kind = rope.get("rope_type", rope.get("type"))
        trained = rope.get("original_max_position_embeddings") or getattr(
            config, "original_max_position_embeddings", None
        )
        switches = kind == "longrope" and trained and context and context > trained
        if switches or kind == "dynamic":
            raise ConfigError(
                f"model {path!r} has rope_type={kind}, whose frequencies follow the longest sequence of a "
                "batch: a response's log-probs would depend on the others, and engines compute it otherwise. Expected "
                "RoPE that is the same for every batch: default, linear, yarn or llama3"
            )


def _ropes(config: PretrainedConfig) -> list[dict[str, object]]:
    """List the model's RoPE parameters; some models have them for each kind of layer."""
    parameters = getattr(config, "rope_parameters", None) or {}
    nested = [value for value in parameters.values() if isinstance(value, dict)]
    return nested or [parameters]


def safetensors_of(folder: Path) -> list[Path]:
    """List the files that transformers reads. Raises ConfigError when one of them is not there."""
    if (folder / SAFE_WEIGHTS_NAME).is_file():
        return [folder / SAFE_WEIGHTS_NAME]
    index = folder / SAFE_WEIGHTS_INDEX_NAME
    if not index.is_file():
        return []
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise ConfigError(f"{index} is no index of weights ({error}); the model folder is damaged") from error
    absent = [name for name in names if not (folder / name).is_file()]
    if absent:
        raise ConfigError(
            f"{folder} lacks {len(absent)} of the {len(names)} files that {index.name} names: {_some(absent)}; "
            "expected all of them: copy the folder again"
        )
    return [folder / name for name in names]


def _header(file: Path) -> dict[str, list[int]]:
    """Read name and shape of each tensor of a safetensors file."""
    try:
        with safe_open(file, framework="pt") as opened:
            return {name: opened.get_slice(name).get_shape() for name in opened.keys()}  # noqa: SIM118 - no dict
    except SafetensorError as error:
        raise ConfigError(f"{file} cannot be read: {error}; it is cut short or damaged: copy it again") from error


def _adapted(file: Path) -> str:
    try:
        return repr(json.loads(file.read_text(encoding="utf-8")).get("base_model_name_or_path"))
    except (ValueError, AttributeError):
        return "another model"


def _some(names: Collection[object]) -> str:
    shown = sorted(map(str, names))
    return ", ".join(shown[:NAMED]) + (", ..." if len(shown) > NAMED else "")
