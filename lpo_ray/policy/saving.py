"""A policy in a folder that others can read: transformers 4 and 5, vLLM, and whatever reads the folder it came from.

transformers 5 writes configs that transformers 4 reads without an error and wrongly (rope_theta falls back to 10,000),
and tokenizer classes that it does not know. Training changes the weights only. So everything else is the source's own,
byte for byte where it can be.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import CONFIG_MAPPING, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import CONFIG_NAME, GENERATION_CONFIG_NAME, cached_file

from lpo_ray.policy.adapter_files import save_adapter
from lpo_ray.policy.generation import TOKENS, savable
from lpo_ray.policy.lora import AdapterSettings

Json = dict[str, Any]
TOKENIZER_CONFIG = "tokenizer_config.json"
CHAT_TEMPLATE = "chat_template.jinja"
TOKENIZER_FILES = (
    "tokenizer.json", TOKENIZER_CONFIG, "special_tokens_map.json", "added_tokens.json", CHAT_TEMPLATE,
    "chat_template.json", "tokenizer.model", "vocab.json", "merges.txt",
)  # fmt: skip
TEMPLATES = "additional_chat_templates"
OF_THIS_FILE = ("transformers_weights",)
"""keys of a config that are about the files beside it"""


def save_policy(
    folder: Path, model: PreTrainedModel, adapter: AdapterSettings | None, tensors: Mapping[str, Tensor] | None = None
) -> None:
    """Write a trained policy: the whole model, or its adapter alone, in PEFT's format. ``tensors``: the trained ones by
    name, where the model does not hold them; always for an adapter.
    """
    if adapter is None:
        save_model(model, folder, tensors)
    else:
        assert tensors is not None
        save_adapter(folder, adapter, str(model.name_or_path), tensors)


def save_model(model: PreTrainedModel, folder: Path, state_dict: Mapping[str, Tensor] | None = None) -> None:
    """Write weights, config, generation config and the code that comes with the model. ``state_dict``: the weights,
    where the model does not hold them.
    """
    model.save_pretrained(folder, state_dict=None if state_dict is None else dict(state_dict))
    source = model.name_or_path or ""
    if config := _file(source, CONFIG_NAME):
        written, own = _read(folder / CONFIG_NAME), _read(config)
        dtype = written.get("dtype") or written.get("torch_dtype")
        architectures = own.get("architectures") or written.get("architectures")
        kept = {key: value for key, value in own.items() if key not in OF_THIS_FILE}
        _write(folder / CONFIG_NAME, {**kept, "architectures": architectures, "dtype": dtype})
        if "auto_map" in own:
            for code in config.parent.glob("*.py"):
                shutil.copyfile(code, folder / code.name)
    if generation := _generation_config(source):
        _write(folder / GENERATION_CONFIG_NAME, generation)
    make_readable(folder)


def repairs(source: str) -> list[str]:
    """List what of the files beside a model's weights will be written otherwise than it is, and why."""
    file = _file(source, GENERATION_CONFIG_NAME)
    if file is None:
        return []
    own = _generation_config(source)
    if own is None:
        return [f"{file} cannot be read and is left out; what is written has the end tokens of config.json"]
    written = savable(own)
    if written == own:
        return []
    changed = sorted(key for key in {**own, **written} if own.get(key) != written.get(key))
    return [f"{file} has values that transformers does not save; what is written differs in {', '.join(changed)}"]


def save_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write a tokenizer: the files that it was read from, where they are still there, and elsewhere than ``folder``."""
    source = tokenizer.name_or_path
    names = {*TOKENIZER_FILES, *getattr(tokenizer, "vocab_files_names", {}).values()}
    found = [file for name in sorted(names) if (file := _file(source, name))]
    config = next((file for file in found if file.name == TOKENIZER_CONFIG), None)
    if config is None or config.parent.resolve() == folder.resolve():
        tokenizer.save_pretrained(folder)
    else:
        folder.mkdir(parents=True, exist_ok=True)
        code = config.parent.glob("*.py") if "auto_map" in _read(config) else ()
        for file in (*found, *code):
            shutil.copyfile(file, folder / file.name)
        if (templates := config.parent / TEMPLATES).is_dir():
            shutil.copytree(templates, folder / TEMPLATES, dirs_exist_ok=True)
    make_readable(folder)


def write_template(folder: Path, template: str) -> None:
    """Give the tokenizer of a folder another chat template, where each version of transformers looks for it."""
    (folder / CHAT_TEMPLATE).write_text(template, encoding="utf-8")
    config = folder / TOKENIZER_CONFIG
    _write(config, {**(_read(config) if config.is_file() else {}), "chat_template": template})


def add_end_tokens(folder: Path, token_ids: Sequence[int]) -> None:
    """Add tokens to those that end a response of the folder's model, in its generation config."""
    if not token_ids:
        return
    file, config = folder / GENERATION_CONFIG_NAME, _read(folder / CONFIG_NAME)
    values = _read(file) if file.is_file() else {name: config[name] for name in TOKENS if config.get(name) is not None}
    own = values.get("eos_token_id", config.get("eos_token_id"))
    values.pop("_from_model_config", None)  # or generate() makes it again from config.json
    ends = own if isinstance(own, list) else [] if own is None else [own]
    _write(file, {**values, "eos_token_id": list(dict.fromkeys([*ends, *token_ids]))})


def make_readable(folder: Path) -> None:
    """Have the folder's JSON files say what transformers 4 looks for, beside what transformers 5 wrote."""
    repairs: dict[str, Callable[[Json], Json]] = {
        CONFIG_NAME: _with_old_names,
        GENERATION_CONFIG_NAME: savable,
        TOKENIZER_CONFIG: _with_old_class,
    }
    for name, repair in repairs.items():
        if (folder / name).is_file():
            values = _read(folder / name)
            if (repaired := repair(values)) != values:
                _write(folder / name, repaired)


def _with_old_names(config: Json) -> Json:
    """Add ``torch_dtype``; to a config that transformers 5 wrote also RoPE and renamed keys as 4 has them."""
    added: Json = {}
    if dtype := config.get("dtype"):
        added["torch_dtype"] = dtype
    if not str(config.get("transformers_version")).startswith("5."):
        return {**config, **added}
    kind = str(config.get("model_type"))
    aliases = CONFIG_MAPPING[kind].attribute_map if kind in CONFIG_MAPPING else {}
    added |= {old: config[new] for old, new in aliases.items() if new in config and old not in config}
    rope = config.get("rope_parameters") or {}
    if "full_attention" in rope:  # for each kind of layer, as in Gemma 3
        sliding = rope.get("sliding_attention") or {}
        if "rope_theta" in sliding:
            added["rope_local_base_freq"] = sliding["rope_theta"]
        rope = rope["full_attention"] or {}
    if "rope_theta" in rope and "rope_theta" not in config:
        added["rope_theta"] = rope["rope_theta"]
        if "partial_rotary_factor" in rope:
            added.setdefault("partial_rotary_factor", rope["partial_rotary_factor"])
        if rope.get("rope_type", "default") != "default":
            apart = ("rope_theta", "partial_rotary_factor")
            added["rope_scaling"] = {key: value for key, value in rope.items() if key not in apart}
    return {**config, **added}


def _with_old_class(config: Json) -> Json:
    """Name the tokenizer's class and its special tokens as transformers 4 does; 5 reads both."""
    new = {"backend", "is_local", "local_files_only"}
    repaired = {key: value for key, value in config.items() if key not in new}
    if config.get("tokenizer_class") == "TokenizersBackend":
        repaired["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(config.get("extra_special_tokens"), list):
        repaired["additional_special_tokens"] = repaired.pop("extra_special_tokens")
    return repaired


def _file(source: str, name: str) -> Path | None:
    """Find a file of a model's folder, or of a hub's model as it was downloaded; None when it has none."""
    if Path(source).is_dir():
        return file if source and (file := Path(source) / name).is_file() else None
    try:
        found = cached_file(source, name, local_files_only=True, _raise_exceptions_for_missing_entries=False)
    except (OSError, ValueError):  # it is gone, or never was: a model made here
        return None
    return None if found is None else Path(found)


def _generation_config(source: str) -> Json | None:
    """Read the model's own generation config; None when it has none, or none that can be read."""
    file = _file(source, GENERATION_CONFIG_NAME)
    try:
        values = None if file is None else _read(file)
    except ValueError:
        return None
    return values if isinstance(values, dict) else None


def _read(file: Path) -> Json:
    return json.loads(file.read_text(encoding="utf-8"))


def _write(file: Path, values: Json) -> None:
    file.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
