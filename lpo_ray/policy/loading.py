"""Loading a policy: the model of a Hugging Face folder, its context and its identity.

A model may bring Python code of its own (``auto_map``). It runs only when model.trust_remote_code says so. Whatever
loads a model or tokenizer passes that flag on, never None: transformers would then ask on the terminal.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from contextlib import nullcontext
from pathlib import Path
from pickle import UnpicklingError
from typing import cast

import torch
from blake3 import blake3
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from lpo_ray.common.file_digests import digests, files_of
from lpo_ray.errors import ConfigError
from lpo_ray.policy.attention import SOFT_CAP
from lpo_ray.policy.generation import check_generation_config, without_sampling
from lpo_ray.policy.pieces import Take, in_pieces
from lpo_ray.policy.whole import (
    check_decoder,
    check_loaded,
    check_no_adapter,
    check_tied,
    check_tokens,
    check_trainable,
    check_weights,
)

REASON = 300
"""characters of what transformers says"""
UNREADABLE = (OSError, ValueError, TypeError, KeyError, AttributeError, RuntimeError, ImportError, ZeroDivisionError,
              EOFError, IndexError, UnpicklingError, SafetensorError, StrictDataclassError)  # fmt: skip
"""what transformers raises for a model that is damaged, of a kind that it does not know, or out of reach"""


def load_policy(path: str, dtype: str, *, trust_remote_code: bool = False, take: Take | None = None) -> PreTrainedModel:
    """Load the model of a Hugging Face folder whole, for scoring: nothing random is left in its forward.

    Dropout would make the anchor's forward and the update's differ at equal weights: a log-ratio that is not there. So
    the model is in evaluation mode, and every probability of a dropout is 0. Its generation config has the token ids
    only. ``take``: weights are read a piece at a time, and it keeps a share of each (``pieces``). Raises ConfigError
    when the model is not a whole language model (``whole``), cannot be loaded, or brings code of its own that is not
    trusted.
    """
    check_no_adapter(path)
    config = read_config(path, trust_remote_code=trust_remote_code)
    check_trainable(path, config)
    for name, value in config.to_dict().items():
        if "drop" in name and isinstance(value, float):
            setattr(config, name, 0.0)
    eager = {"attn_implementation": "eager"} if getattr(config, SOFT_CAP, None) else {}
    try:
        with nullcontext() if take is None else in_pieces(take):
            model, info = cast(
                "tuple[PreTrainedModel, dict[str, Collection[object]]]",
                AutoModelForCausalLM.from_pretrained(
                    path, config=config, dtype=getattr(torch, dtype), trust_remote_code=trust_remote_code,
                    output_loading_info=True, ignore_mismatched_sizes=True, **eager,
                ),
            )  # fmt: skip
    except UNREADABLE as error:
        raise not_loaded(path, "weights", error) from error
    check_loaded(path, model, info)
    check_tied(path, model)
    for module in model.modules():
        if isinstance(module, torch.nn.modules.dropout._DropoutNd):
            module.p = 0.0
    without_sampling(model)
    return model.eval()


def enable_checkpointing(model: PreTrainedModel) -> None:
    """Have the backward pass compute activations again. Raises ConfigError when the model cannot.

    transformers does so in training mode only, which also turns random parts on. So the modules that are computed again
    are put in that mode alone, without those in them.
    """
    try:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    except ValueError as error:
        raise ConfigError(f"learner.gradient_checkpointing=true: {error}; expected false for such a model") from error
    for module in model.modules():
        if getattr(module, "gradient_checkpointing", False):
            module.training = True


def check_model(path: str, highest_token: int, *, trust_remote_code: bool = False, to_train: bool = True) -> None:
    """Check without reading a weight that ``path`` is one whole language model, with a row of its embedding for each
    token id up to ``highest_token``. Raises ConfigError.

    ``to_train``: False for an evaluation by vLLM, which also serves quantised models, those of several modalities, and
    RoPE that follows the length. An encoder it does not serve.
    """
    check_no_adapter(path)
    config = read_config(path, trust_remote_code=trust_remote_code)
    check_tokens(path, highest_token, config)
    check_generation_config(path)
    check_decoder(path, config)
    try:
        check_trainable(path, config)
    except ConfigError:
        if to_train:
            raise
        return
    check_weights(path, config, trust_remote_code=trust_remote_code)


def context_length(path: str, *, trust_remote_code: bool = False) -> int:
    """Read the number of positions that the model was built for.

    Raises ConfigError when the folder is not a model, or brings code of its own that is not trusted.
    """
    folder = Path(path)
    if folder.is_absolute() or path.startswith((".", "~")) or folder.exists():  # no hub name begins like that
        check_no_adapter(path)
        if not (folder / "config.json").is_file():
            raise ConfigError(
                f"model.path is {path!r}, which has no config.json; expected a Hugging Face model folder (`lpo-ray "
                "import-gguf` makes one), or null for the tiny base policy"
            )
        try:
            json.loads((folder / "config.json").read_text())
        except json.JSONDecodeError as error:
            raise ConfigError(f"{folder / 'config.json'} is not JSON: {error}; the model folder is damaged") from error
    config = read_config(path, trust_remote_code=trust_remote_code)
    length = getattr(config.get_text_config(), "max_position_embeddings", None)
    if not isinstance(length, int):
        raise ConfigError(f"the config of {path!r} has no max_position_embeddings, so its context is not known")
    return length


def identity(path: str, *, trust_remote_code: bool = False) -> str:
    """Identify a model: the digest of its folder's files (see ``files_of``), or a hub's name and the commit in use.

    Raises ConfigError as ``context_length`` does.
    """
    folder = Path(path)
    if not folder.is_dir():
        commit = getattr(read_config(path, trust_remote_code=trust_remote_code), "_commit_hash", None)
        return f"{path}@{commit}"
    return folder_identity(folder)


def folder_identity(folder: Path) -> str:
    """Identify a model or an adapter by the digest of its folder's files."""
    digest = blake3()
    for name, found in digests(files_of(folder), {}):
        digest.update(f"{name} {found.digest}\n".encode())
    return digest.hexdigest(16)


def not_loaded(path: str, part: str, error: Exception) -> ConfigError:
    """Make the error for a model at ``path`` whose ``part`` (config, tokenizer, weights) transformers could not load.

    It has one line, and names the flag when only the flag is missing.
    """
    if "trust_remote_code" in str(error):
        return ConfigError(
            f"model.path is {path!r}, whose {part} needs Python code that comes with the model; expected a model that "
            "transformers knows by itself. Read that code, and if it may run on every machine of the run, set "
            "model.trust_remote_code=true"
        )
    if isinstance(error, UnpicklingError):  # torch's own text says how to run the code
        return ConfigError(
            f"model.path is {path!r}, whose {part} are in a pickle file that is damaged or holds more than tensors, "
            "such as code; expected tensors only, best as safetensors: take the model from whom you trust"
        )
    reason = " ".join(str(error).split())[:REASON] or type(error).__name__
    return ConfigError(f"model.path is {path!r}, whose {part} could not be loaded: {reason}")


def read_config(path: str, *, trust_remote_code: bool) -> PretrainedConfig:
    """Read the config of a folder or of a hub's model. Raises ConfigError."""
    try:
        return AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code)
    except UNREADABLE as error:
        raise not_loaded(path, "config", error) from error
