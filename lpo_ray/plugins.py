"""Names to functions: a row of a literal table, or "package.module:function" from anywhere on the path. Stdlib only."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import TypeVar

T = TypeVar("T")


class UnknownName(ValueError):
    """A name is neither in its table nor importable."""


def resolve(name: str, table: Mapping[str, T], kind: str) -> T:
    """``table[name]``, or what "package.module:function" names. ``kind`` is the config key, for the message."""
    if name in table:
        return table[name]
    module, colon, attribute = name.partition(":")
    if not colon:
        raise UnknownName(
            f"{kind} is {name!r}; expected one of {', '.join(sorted(table))}, or 'package.module:function'"
        )
    try:
        found: T = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError, TypeError) as error:  # TypeError: a relative name, ".mod:fn"
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
