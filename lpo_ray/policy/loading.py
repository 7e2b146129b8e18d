"""Loading a policy: the model of a Hugging Face folder, its context and its identity.

A model may bring Python code of its own (``auto_map``). It runs only when model.trust_remote_code says so. Whatever
loads a model or tokenizer passes that flag on, never None: transformers would then ask on the terminal.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from blake3 import blake3
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from lpo_ray.common.file_digests import digests, files_of
from lpo_ray.errors import ConfigError


def load_policy(path: str, dtype: str, *, trust_remote_code: bool = False) -> PreTrainedModel:
    """Load the model of a Hugging Face folder, every dropout off.

    Dropout would make the anchor's forward and the update's differ at equal weights: a log-ratio that is not there.
    Raises ConfigError when the model cannot be loaded, or brings code of its own that is not trusted.
    """
    config = _config(path, trust_remote_code=trust_remote_code)
    for name in ("attention_dropout", "hidden_dropout", "resid_pdrop", "embd_pdrop", "attn_pdrop"):
        if hasattr(config, name):
            setattr(config, name, 0.0)
    try:
        return AutoModelForCausalLM.from_pretrained(
            path, config=config, dtype=getattr(torch, dtype), trust_remote_code=trust_remote_code
        )
    except (OSError, ValueError) as error:
        raise not_loaded(path, "weights", error) from error


def context_length(path: str, *, trust_remote_code: bool = False) -> int:
    """Read the number of positions that the model was built for.

    Raises ConfigError when the folder is not a model, or brings code of its own that is not trusted.
    """
    folder = Path(path)
    if folder.is_absolute() or path.startswith((".", "~")) or folder.exists():  # no hub name begins like that
        if not (folder / "config.json").is_file():
            raise ConfigError(
                f"model.path is {path!r}, which has no config.json; expected a Hugging Face model folder (`lpo-ray "
                "import-gguf` makes one), or null for the tiny base policy"
            )
        try:
            json.loads((folder / "config.json").read_text())
        except json.JSONDecodeError as error:
            raise ConfigError(f"{folder / 'config.json'} is not JSON: {error}; the model folder is damaged") from error
    config = _config(path, trust_remote_code=trust_remote_code)
    length = getattr(config.get_text_config(), "max_position_embeddings", None)
    if not isinstance(length, int):
        raise ConfigError(f"the config of {path!r} has no max_position_embeddings, so its context is not known")
    return length


def identity(path: str, *, trust_remote_code: bool = False) -> str:
    """Identify a model: the digest of all files of its folder but ``*.md``, or a hub's name and the commit in use.

    Raises ConfigError as ``context_length`` does.
    """
    folder = Path(path)
    if not folder.is_dir():
        commit = getattr(_config(path, trust_remote_code=trust_remote_code), "_commit_hash", None)
        return f"{path}@{commit}"
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
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    return ConfigError(f"model.path is {path!r}, whose {part} could not be loaded: {reason}")


def _config(path: str, *, trust_remote_code: bool) -> PretrainedConfig:
    try:
        return AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        raise not_loaded(path, "config", error) from error
