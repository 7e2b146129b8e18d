"""Names to functions: a row of a table, "package.module:function" or "folder/file.py:function"."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Mapping
from importlib.machinery import PathFinder
from pathlib import Path
from types import ModuleType
from typing import TypeVar

T = TypeVar("T")


class UnknownName(ValueError):
    """A name that is neither in its table nor importable."""


def resolve(name: str, table: Mapping[str, T], kind: str) -> T:
    """Look ``name`` up in ``table``, or import what "package.module:function" or "folder/file.py:function" names.

    ``kind`` is the config key, for the message. Raises UnknownName.
    """
    if name in table:
        return table[name]
    module, colon, attribute = name.rpartition(":")
    if not colon:
        raise UnknownName(
            f"{kind} is {name!r}; expected one of {', '.join(sorted(table))}, or 'package.module:function'"
        )
    try:
        found: T = getattr(_module(module), attribute)
    except (ImportError, AttributeError, ValueError, TypeError, OSError, SyntaxError) as error:  # TypeError: ".mod:fn"
        raise UnknownName(
            f"{kind} is {name!r}, which cannot be imported ({error}); expected 'package.module:function' on PYTHONPATH "
            f"or in the working folder, or one of {', '.join(sorted(table))}"
        ) from error
    if not callable(found):
        raise UnknownName(
            f"{kind} is {name!r}, which is a {type(found).__name__}; expected 'package.module:function', or one of "
            f"{', '.join(sorted(table))}"
        )
    return found


def is_installed(package: str) -> bool:
    """Tell whether a package can be imported. A folder of that name, such as W&B leaves, is none, though Python takes
    it for one where no other is.
    """
    spec = importlib.util.find_spec(package)
    return spec is not None and spec.origin is not None


def plugin_file(name: str) -> Path | None:
    """Find the file of "package.module:function" or "folder/file.py:function", without running anything of it or of the
    packages that it is in. None: the name is of another kind, or there is no such file.
    """
    module, colon, _ = name.rpartition(":")
    if not colon or ("/" in name and not module.endswith(".py")):
        return None
    if module.endswith(".py"):
        return Path(module).resolve()
    path: list[str] | None = None
    spec = None
    for at, part in enumerate(module.split(".")):
        spec = PathFinder.find_spec(part, path) if at == 0 or path else None
        if spec is None:
            return None
        path = list(spec.submodule_search_locations or ())
    return Path(spec.origin) if spec is not None and spec.origin else None


def _module(name: str) -> ModuleType:
    """Import a module by its name, or by the path of its file, which is loaded once."""
    if not name.endswith(".py"):
        return importlib.import_module(name)
    path = str(Path(name).resolve())
    if path not in sys.modules:
        spec = importlib.util.spec_from_file_location(path, path)
        assert spec is not None and spec.loader is not None  # of a name that ends in .py there always is one
        module = importlib.util.module_from_spec(spec)
        sys.modules[path] = module  # before it runs, as import does: its dataclasses look themselves up there
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[path]
            raise
    return sys.modules[path]
