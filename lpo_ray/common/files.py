"""Whole files: a reader sees the old content or the new, never a part of it, and never a secret."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path

from lpo_ray.common.redaction import redact


def write_json(path: Path, value: Mapping[str, object]) -> None:
    """Replace the file by ``value`` as JSON, with null for NaN and Inf."""
    write_text(path, json.dumps(finite(value), indent=2) + "\n")


def write_text(path: Path, text: str) -> None:
    """Replace the file's content at once. Folders of runs are passed on, so the value of a secret, which the last words
    of a process may contain, becomes its name.
    """
    partial = path.with_name(f".partial-{path.name}")
    partial.write_text(redact(text), encoding="utf-8", errors="replace")
    os.replace(partial, path)


def finite(value: object) -> object:
    """Return ``value`` with None for NaN and Inf, at any depth: JSON has neither."""
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
