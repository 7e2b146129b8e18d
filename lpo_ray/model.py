"""Loading a policy, naming its weights, and the probe that proves where they are."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from hashlib import blake2b
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from lpo_ray.errors import ConfigError
from lpo_ray.records import IntArray


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


def trainable_weights(named: Iterable[tuple[str, Tensor]], model: PreTrainedModel | nn.Module) -> dict[str, Tensor]:
    """Name -> tensor of what must travel: a tied output head is left out, it is the embedding under another name."""
    config = getattr(model, "config", None)
    tied = bool(getattr(config, "tie_word_embeddings", False))
    return {name: tensor for name, tensor in named if not (tied and name == "lm_head.weight")}


def serialise(weights: Mapping[str, Tensor]) -> tuple[bytes, str]:
    """The safetensors bytes of the weights and their digest: 128 bits of BLAKE2b over exactly these bytes."""
    payload = save({name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()})
    return payload, digest_of(payload)


def digest_of(payload: bytes) -> str:
    """Digest of published bytes, as in WeightsVersion."""
    return blake2b(payload, digest_size=16).hexdigest()


def probe_sequences(vocabulary: int, context: int) -> list[IntArray]:
    """Fixed token sequences whose log-probs prove which weights are served; the same on every machine.

    Random tokens, so that every part of the model shows in the result: a head that stayed stale moves them by far
    more than the tolerance.
    """
    rng = np.random.default_rng(20260506)
    length = min(33, context - 1)
    return [rng.integers(0, vocabulary, size=length, dtype=np.int64) for _ in range(2)]


def largest_difference(left: Iterable[np.ndarray], right: Iterable[np.ndarray]) -> float:
    """Max |a - b| over pairs of arrays; NaN on either side counts as infinite."""
    worst = 0.0
    for a, b in zip(left, right, strict=True):
        difference = float(np.max(np.abs(a - b))) if a.shape == b.shape else float("inf")
        worst = max(worst, difference if np.isfinite(difference) else float("inf"))
    return worst
