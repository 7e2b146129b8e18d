"""YAML whose scalars stay what was written until a key says what they are.

YAML decides by its looks what a word is: `1.10` a number, `010` eight, `on` true. So a tree has a Scalar for each word,
and ``typed.py`` reads it as the key's type. Where a key takes anything, ``plain_value`` decides by one rule: numbers
are decimal, `true` and `false` are the only booleans, all else is text.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from enum import Enum
from typing import TypeAlias

import yaml

Tree: TypeAlias = "Scalar | list[Tree] | dict[str, Tree]"
NUMBER = re.compile(r"[-+]?(\d+(_\d+)*(\.\d*)?|\.\d+)([eE][-+]?\d+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
MAX_DIGITS = 300
"""digits of a number that is read as one"""
NULL = ("", "~", "null", "Null", "NULL")
TRUE, FALSE = ("true", "True", "TRUE"), ("false", "False", "FALSE")


class Scalar(str):
    """Text of a scalar as it was written, without its quotes."""

    __slots__ = ("plain",)
    plain: bool
    """whether it had no quotes, so that it may be null"""

    def __new__(cls, text: str, *, plain: bool) -> Scalar:
        """Make one."""
        made = super().__new__(cls, text)
        made.plain = plain
        return made

    @property
    def is_null(self) -> bool:
        """Whether it says that there is no value."""
        return self.plain and str(self) in NULL


class _Loader(yaml.SafeLoader):
    """Loader of trees. A key that stands twice is an error."""

    def construct_scalar_text(self, node: yaml.ScalarNode) -> Scalar:
        return Scalar(node.value, plain=node.style is None)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[str, Tree]:
        names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode) and key.value != "<<"]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise yaml.constructor.ConstructorError(None, None, f"key {twice!r} stands twice", node.start_mark)
        return {str(name): value for name, value in super().construct_mapping(node, deep=True).items()}


_Loader.yaml_implicit_resolvers = {"<": [("tag:yaml.org,2002:merge", re.compile("^<<$"))]}
_Loader.add_constructor("tag:yaml.org,2002:str", _Loader.construct_scalar_text)
_Loader.add_constructor("tag:yaml.org,2002:map", _Loader.construct_mapping)


def read_tree(text: str) -> Tree:
    """Parse one document of YAML. Raises yaml.YAMLError."""
    try:
        return as_tree(yaml.load(text, _Loader))
    except (TypeError, RecursionError) as error:  # dates and sets by their tags, a list that holds itself
        raise yaml.YAMLError(str(error)) from error


def as_tree(value: object, *, plain: bool = False) -> Tree:
    """Turn a value of Python into a tree; ``plain``: whether text in it may be null. TypeError for another object."""
    if isinstance(value, Scalar):
        return value
    if isinstance(value, Mapping):
        return {str(name): as_tree(item, plain=plain) for name, item in value.items()}
    if isinstance(value, str):
        return Scalar(value, plain=plain)
    if isinstance(value, Sequence):
        return [as_tree(item, plain=plain) for item in value]
    if value is None or isinstance(value, bool | int | float):
        return Scalar(yaml.safe_dump(value).splitlines()[0], plain=True)
    if isinstance(value, Enum):
        return Scalar(str(value.value), plain=False)
    raise TypeError(f"{value!r} is a {type(value).__name__}; expected what YAML has")


def number(text: str) -> int | float | None:
    """Read a decimal number; None when ``text`` is none. One of too many digits is infinite."""
    if NUMBER.fullmatch(text) is None:
        return None
    digits = text.replace("_", "").replace(".inf", "inf").replace(".Inf", "inf").replace(".INF", "inf")
    if re.fullmatch(r"[-+]?\d+", digits) and len(digits) <= MAX_DIGITS:
        return int(digits)
    return float(digits.replace(".nan", "nan").replace(".NaN", "nan").replace(".NAN", "nan"))


def plain_value(tree: Tree) -> object:
    """Turn a tree into values of Python, for a key that takes anything."""
    if isinstance(tree, dict):
        return {name: plain_value(item) for name, item in tree.items()}
    if isinstance(tree, list):
        return [plain_value(item) for item in tree]
    if tree.is_null:
        return None
    text = str(tree)
    if not tree.plain:
        return text
    if text in TRUE + FALSE:
        return text in TRUE
    found = number(text)
    return text if found is None else found
