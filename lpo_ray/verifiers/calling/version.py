"""Which version of a user's verifier is meant: the digest of its file, which is read and never imported here."""

from __future__ import annotations

from functools import lru_cache
from hashlib import blake2b
from importlib.machinery import PathFinder
from pathlib import Path


def version_of(name: str) -> str:
    """Of ``module:function`` or ``path/to/file.py:function``, as it is on disk now. Empty for every other verifier, the
    version of which is this package's own or an endpoint's.
    """
    module, colon, _ = name.rpartition(":")
    if not colon or ("/" in name and not module.endswith(".py")):
        return ""
    path = Path(module).resolve() if module.endswith(".py") else _file_of(module)
    try:
        status = path.stat() if path is not None else None
        return "" if status is None else _digest(path, status.st_mtime_ns, status.st_size)
    except OSError:  # whoever loads it says so
        return ""


def _file_of(module: str) -> Path | None:
    """Without running anything of it or of the packages that it is in."""
    path: list[str] | None = None
    spec = None
    for at, part in enumerate(module.split(".")):
        spec = PathFinder.find_spec(part, path) if at == 0 or path else None
        if spec is None:
            return None
        path = list(spec.submodule_search_locations or ())
    return Path(spec.origin) if spec is not None and spec.origin else None


@lru_cache(maxsize=256)
def _digest(path: Path, changed: int, size: int) -> str:
    """``changed`` and ``size`` are in the key, so that a file is read once only."""
    return blake2b(path.read_bytes(), digest_size=16).hexdigest()
