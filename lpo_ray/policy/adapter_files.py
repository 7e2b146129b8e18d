"""Folders of PEFT adapters: adapter_config.json and adapter_model.safetensors, as PEFT, transformers and vLLM have.

What is read becomes settings of ours, or is refused: an adapter of another kind than those that are trained and served
here would be another policy than its folder says.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers.utils import ADAPTER_CONFIG_NAME, ADAPTER_SAFE_WEIGHTS_NAME

from lpo_ray.errors import ConfigError
from lpo_ray.policy.lora import ALL_LINEAR, AdapterSettings, layers_of, peft_config

WITHOUT: Mapping[str, tuple[object, ...]] = {
    "use_dora": (False, None), "lora_bias": (False, None), "bias": ("none", None), "fan_in_fan_out": (False, None),
    "use_qalora": (False, None), "use_bdlora": (None,), "alora_invocation_tokens": (None,),
    "modules_to_save": (None, []), "rank_pattern": ({}, None), "alpha_pattern": ({}, None), "exclude_modules": (None,),
    "layers_to_transform": (None,), "layer_replication": (None,), "target_parameters": (None, []),
    "trainable_token_indices": (None,), "init_lora_weights": (True, False, None, "gaussian", "orthogonal", "eva"),
}  # fmt: skip
"""key of adapter_config.json -> values with which an adapter is a plain one, whose base is the model as it is"""
NAMED = 3
"""names of tensors in a message"""


def is_adapter(path: str | Path) -> bool:
    """Whether a folder is that of an adapter."""
    return (Path(path) / ADAPTER_CONFIG_NAME).is_file()


def save_adapter(folder: Path, settings: AdapterSettings, base: str, tensors: Mapping[str, Tensor]) -> None:
    """Write an adapter of the model ``base`` (a folder or a hub's name). ``tensors``: by the names of the wire."""
    folder.mkdir(parents=True, exist_ok=True)
    written = {
        **peft_config(settings),
        "target_modules": sorted({layer.rpartition(".")[2] for layer in layers_of(tensors)})
        if settings.targets == (ALL_LINEAR,)
        else list(settings.targets),
        "base_model_name_or_path": base,
        "inference_mode": True,
    }
    text = json.dumps(written, indent=2, sort_keys=True) + "\n"
    (folder / ADAPTER_CONFIG_NAME).write_text(text, encoding="utf-8")
    whole = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
    save_file(whole, folder / ADAPTER_SAFE_WEIGHTS_NAME, metadata={"format": "pt"})


def read_settings(path: str) -> tuple[AdapterSettings, str]:
    """Read the settings of the adapter in folder ``path``, and the model that it is of. Raises ConfigError when there
    is none, or one of another kind.
    """
    found = _read(path)
    if found.get("peft_type") != "LORA":
        raise ConfigError(f"adapter {path!r} is of kind {found.get('peft_type')!r}; expected LORA")
    for key, plain in WITHOUT.items():
        if (value := found.get(key, plain[0])) not in plain:
            raise ConfigError(f"adapter {path!r} has {key}={value!r}; expected a plain LoRA, with {key}={plain[0]!r}")
    targets = found.get("target_modules")
    named = (targets,) if targets == ALL_LINEAR else targets
    if not isinstance(named, list | tuple) or not all(isinstance(name, str) for name in named):
        raise ConfigError(
            f"adapter {path!r} has target_modules={targets!r}; expected names of layers, or {ALL_LINEAR!r}"
        )
    rank, alpha = found.get("r"), found.get("lora_alpha")
    if not isinstance(rank, int) or not isinstance(alpha, int | float) or alpha != int(alpha):
        raise ConfigError(f"adapter {path!r} has r={rank!r} and lora_alpha={alpha!r}; expected two whole numbers")
    base = str(found.get("base_model_name_or_path") or "")
    rslora = bool(found.get("use_rslora", False))
    return AdapterSettings(rank, int(alpha), tuple(sorted(named)), rslora, path=path), base


def check_folder(settings: AdapterSettings) -> None:
    """Check that the adapter to begin with has these settings. Raises ConfigError naming what differs."""
    if settings.path is None:
        return
    found, _ = read_settings(settings.path)
    shapes = {name: tuple(tensor.shape) for name, tensor in read_tensors(settings.path).items()}
    layers = layers_of(shapes)
    for key, value, theirs in (
        ("rank", settings.rank, found.rank),
        ("alpha", settings.alpha, found.alpha),
        ("rslora", settings.rslora, found.rslora),
    ):
        if value != theirs:
            raise ConfigError(
                f"model.lora.{key} is {value}, the adapter in {settings.path} has {theirs}; expected that"
            )
    targets = set(settings.targets)
    if targets not in ({ALL_LINEAR}, set(found.targets)):
        ends = sorted({layer.rpartition(".")[2] for layer in layers})
        raise ConfigError(
            f"model.lora.targets is {list(settings.targets)}, the adapter in {settings.path} has {ends}; expected those"
        )


def read_tensors(path: str) -> dict[str, Tensor]:
    """Read the tensors of the adapter in folder ``path``, by the names of the wire. Raises ConfigError."""
    file = Path(path) / ADAPTER_SAFE_WEIGHTS_NAME
    try:
        return load_file(file)
    except (OSError, SafetensorError) as error:
        raise ConfigError(
            f"adapter {path!r}: {file.name} cannot be read: {' '.join(str(error).split())}; expected the tensors of an "
            "adapter as safetensors: copy it again, or save it with PEFT"
        ) from error


def check_tensors(path: str, found: Mapping[str, Tensor], wanted: Mapping[str, Sequence[int]]) -> None:
    """Check that an adapter's tensors are those that the model with such an adapter has. Raises ConfigError."""
    shapes = {name: tuple(tensor.shape) for name, tensor in found.items()}
    problems = {
        "missing": sorted(set(wanted) - set(shapes)),
        "that the model has no layer for": sorted(set(shapes) - set(wanted)),
        "of another shape": sorted(n for n, shape in wanted.items() if n in shapes and tuple(shape) != shapes[n]),
    }
    if any(problems.values()):
        said = "; ".join(f"{len(v)} {what}: {', '.join(v[:NAMED])}" for what, v in problems.items() if v)
        raise ConfigError(
            f"adapter {path!r} has other tensors than model.lora says: {said}. Expected lora_A and lora_B of each "
            "target of this model: take the model and the targets that it was trained with"
        )


def _read(path: str) -> dict[str, Any]:
    file = Path(path) / ADAPTER_CONFIG_NAME
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"adapter {path!r}: {file.name} cannot be read: {error}; expected a PEFT folder") from error
    if not isinstance(found, dict):
        raise ConfigError(f"adapter {path!r}: {file.name} holds {type(found).__name__}; expected a PEFT folder")
    return found
