"""Loading a policy."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from lpo_ray.errors import ConfigError


def load_policy(path: str, dtype: str) -> PreTrainedModel:
    """The model of a Hugging Face folder, every dropout off.

    Dropout would make the anchor's forward and the update's differ at equal weights: a log-ratio that is not there.
    """
    config = AutoConfig.from_pretrained(path)
    for name in ("attention_dropout", "hidden_dropout", "resid_pdrop", "embd_pdrop", "attn_pdrop"):
        if hasattr(config, name):
            setattr(config, name, 0.0)
    return AutoModelForCausalLM.from_pretrained(path, config=config, dtype=getattr(torch, dtype))


def context_length(path: str) -> int:
    """Positions the model was built for. ConfigError when the folder is not a model."""
    folder = Path(path)
    if folder.is_absolute() or folder.exists():
        if not (folder / "config.json").is_file():
            raise ConfigError(
                f"model.path is {path!r}, which has no config.json; expected a Hugging Face model folder, or null for "
                "the tiny base policy"
            )
        try:
            json.loads((folder / "config.json").read_text())
        except json.JSONDecodeError as error:
            raise ConfigError(f"{folder / 'config.json'} is not JSON: {error}; the model folder is damaged") from error
    try:
        config = AutoConfig.from_pretrained(path)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"model.path is {path!r}, which could not be loaded: {reason}") from error
    length = getattr(config.get_text_config(), "max_position_embeddings", None)
    if not isinstance(length, int):
        raise ConfigError(f"the config of {path!r} has no max_position_embeddings, so its context is not known")
    return length
