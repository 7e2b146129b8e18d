"""Values as the schema's types mean them. What cannot be meant is a ConfigError that names key, value and reason."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from functools import cache
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from lpo_ray.config.scalars import FALSE, TRUE, Scalar, Tree, number, plain_value
from lpo_ray.errors import ConfigError

YES, NO = ("yes", "on", "1"), ("no", "off", "0")
"""what a key of true and false takes beside these words, in any case"""
MISSING_MARK = "???"
"""plain text that says: to be set by who uses this file"""
NAMES: Mapping[object, str] = {
    int: "a whole number", float: "a number", bool: "true or false", str: "text",
    (str, float, int): "a name or a number",
}  # fmt: skip


@cache
def hints_of(section: type) -> dict[str, Any]:
    """Return the type of each key of a section of the schema."""
    return get_type_hints(section)


def is_section(hint: object) -> bool:
    """Whether the type is a section of the schema."""
    return isinstance(hint, type) and is_dataclass(hint)


def members_of(hint: object) -> tuple[object, ...]:
    """Split a union into its types, null left out."""
    is_union = get_origin(hint) in (Union, UnionType)
    return tuple(member for member in get_args(hint) if member is not NoneType) if is_union else (hint,)


def takes_text(hint: object) -> bool:
    """Whether a key of this type takes text, so that an override's is taken as it stands."""
    return str in members_of(hint)


def typed(tree: Tree, hint: object, key: str) -> Any:  # noqa: ANN401 - of the key's own type
    """Turn ``tree`` into a value of the type ``hint``. Raises ConfigError."""
    if hint is Any:
        return _finite(plain_value(tree), key)
    if is_section(hint):
        return _section(tree, hint, key)
    if isinstance(tree, Scalar) and tree.is_null and NoneType in get_args(hint):
        return None
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is list:
        if isinstance(tree, list):
            return [typed(item, arguments[0], f"{key}[{place}]") for place, item in enumerate(tree)]
        what = NAMES.get(arguments[0], "section")
        raise _refused(key, tree, f"a list in brackets, each entry {what}")
    if origin is dict:
        if isinstance(tree, dict):
            return {name: typed(item, arguments[1], f"{key}.{name}") for name, item in tree.items()}
        raise _refused(key, tree, "a mapping in braces, such as {name: value}")
    expected = _expected(hint)
    if not isinstance(tree, Scalar) or tree.is_null:
        raise _refused(key, tree, expected)
    found = _scalar(tree, members_of(hint), key)
    if found is None:
        raise _refused(key, tree, expected)
    return found


def _scalar(text: Scalar, members: tuple[object, ...], key: str) -> Any:  # noqa: ANN401 - one of ``members``
    """Read a scalar as one of the types ``members``; None when it is none."""
    read = number(text)
    if float in members and read is not None:
        return _finite(read if int in members else float(read) if abs(read) < math.inf else read, key)
    if str in members:
        return str(text)
    if members == (int,) and read is not None:
        return int(_finite(read, key)) if read == read and (abs(read) == math.inf or read == int(read)) else None
    if members == (bool,):
        is_true = text in TRUE or text.lower() in YES
        return is_true if is_true or text in FALSE or text.lower() in NO else None
    (kind,) = members
    if isinstance(kind, type) and issubclass(kind, Enum):
        return next((choice for choice in kind if choice.value == text), None)
    return None


def _section(tree: Tree, section: Any, key: str) -> object:  # noqa: ANN401 - a class of the schema
    """Make a section that stands in a list."""
    if not isinstance(tree, dict):
        raise _refused(key, tree, f"keys of {', '.join(field.name for field in fields(section))} in braces")
    hints = hints_of(section)
    for name in tree:
        if name not in hints:
            raise ConfigError(f"unknown key {key + '.' + name!r}; expected one of {', '.join(hints)}")
    made = section(**{name: typed(item, hints[name], f"{key}.{name}") for name, item in tree.items()})
    for field in fields(section):
        if getattr(made, field.name) == MISSING_MARK:
            raise ConfigError(f"{key} has no {field.name}; expected it beside {', '.join(tree) or 'nothing'}")
    return made


def _finite(value: Any, key: str) -> Any:  # noqa: ANN401 - as it came
    """Return ``value``. Raises ConfigError when it is, or holds, NaN or infinity."""
    if isinstance(value, Mapping):
        for name, item in value.items():
            _finite(item, f"{key}.{name}")
    elif isinstance(value, list):
        for place, item in enumerate(value):
            _finite(item, f"{key}[{place}]")
    elif isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{key} is {value}; expected a finite number")
    return value


def _expected(hint: object) -> str:
    members = members_of(hint)
    kind = members[0]
    if isinstance(kind, type) and issubclass(kind, Enum):
        what = f"one of {', '.join(str(choice.value) for choice in kind)}"
    else:
        what = NAMES.get(members, NAMES.get(kind, str(kind)))
    return f"{what}, or null" if NoneType in get_args(hint) else what


def _refused(key: str, tree: Tree, expected: str) -> ConfigError:
    shown = "null" if isinstance(tree, Scalar) and tree.is_null else repr(plain_value(tree))
    shown = shown if len(shown) <= 80 else f"{shown[:80]}..."
    return ConfigError(f"{key} is {shown}; expected {expected}")
