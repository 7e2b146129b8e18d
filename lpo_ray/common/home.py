"""Folders of this user. A container's user may have no home, or one that it may not write."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path


def home(environment: Mapping[str, str] = os.environ) -> Path:
    """Return $HOME, else what the system says of this user; "/", as containers do, where it knows no such user."""
    if named := environment.get("HOME"):
        return Path(named)
    try:
        return Path.home()
    except RuntimeError:
        return Path("/")


def default_cache_dir(environment: Mapping[str, str] = os.environ) -> Path:
    """Return $LPO_RAY_CACHE, else ~/.cache/lpo-ray."""
    return Path(environment.get("LPO_RAY_CACHE") or home(environment) / ".cache" / "lpo-ray")


def writable(path: Path) -> bool:
    """Whether this user may make or write the folder ``path``."""
    absolute = path.absolute()
    existing = next(folder for folder in (absolute, *absolute.parents) if folder.exists())
    return existing.is_dir() and os.access(existing, os.W_OK | os.X_OK)


def user() -> str:
    """Name this user by its number: a name need not exist."""
    return f"user {os.getuid()}"
