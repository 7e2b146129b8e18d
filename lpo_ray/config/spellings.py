"""Several spellings of one value: `~` of a home folder in keys that name files, and the names of number formats."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from lpo_ray.config.schema import Config
from lpo_ray.errors import ConfigError

PATHS = (
    "run.dir", "model.path", "model.warmup.cache_dir", "task.name", "task.verifier", "task.path", "task.heldout_path",
    "task.chat_template", "objective.reference_path",
)  # fmt: skip
"""keys whose text is, or may be, a path"""
DTYPES = {"bf16": "bfloat16", "fp32": "float32", "float": "float32", "fp16": "float16", "half": "float16"}
"""other names of a number format"""


def use_one_spelling(config: Config) -> None:
    """Put home folders in the place of `~`, and the names of number formats that we use. Raises ConfigError for a user
    that is not known.
    """
    for holder in (config.model, config.rollout):
        name = holder.dtype.lower().removeprefix("torch.")
        holder.dtype = DTYPES.get(name, name)
    for section, name, key in _leaves(config, ""):
        value = getattr(section, name)
        if key in PATHS and isinstance(value, str):
            setattr(section, name, expanded(value, key))
        elif isinstance(value, dict):
            setattr(section, name, _within(value, key))


def expanded(path: str, key: str) -> str:
    """Expand `~` and `~user` at the beginning of each of the files that ``path`` names. Raises ConfigError."""
    return ",".join(_expanded(part, key) for part in path.split(","))


def _expanded(path: str, key: str) -> str:
    if not path.startswith("~"):
        return path
    try:
        return str(Path(path).expanduser())
    except RuntimeError as error:
        raise ConfigError(f"{key} is {path!r}: {error}; expected ~/ or an absolute path") from error


def _within(value: Any, key: str) -> Any:  # noqa: ANN401 - of a mapping of any values
    """Expand entries of mappings whose name says that they are paths, such as nvme_path of DeepSpeed."""
    if not isinstance(value, dict):
        return value
    return {
        name: expanded(item, f"{key}.{name}")
        if isinstance(item, str) and name.endswith(("path", "dir", "folder", "file"))
        else _within(item, f"{key}.{name}")
        for name, item in value.items()
    }


def _leaves(section: Any, prefix: str) -> Iterator[tuple[Any, str, str]]:  # noqa: ANN401 - a section
    """List holder, name and key of all keys."""
    for field in fields(section):
        value = getattr(section, field.name)
        if is_dataclass(value):
            yield from _leaves(value, f"{prefix}{field.name}.")
        else:
            yield section, field.name, f"{prefix}{field.name}"
