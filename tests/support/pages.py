"""What pages and comments may name: where the project lies, and which settings it has."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import get_type_hints

from lpo_ray.config.schema import Config

ROOT = Path(__file__).parents[2]
SECTIONS = get_type_hints(Config)


def exists(setting: str) -> bool:
    """Whether ``section.key`` is one; what follows a key that holds no section of ours is the library's."""
    holder: object = Config
    for name in setting.split("."):
        if not (isinstance(holder, type) and is_dataclass(holder)):
            return True
        if name not in {field.name for field in fields(holder)}:
            return False
        holder = get_type_hints(holder)[name]
    return True
