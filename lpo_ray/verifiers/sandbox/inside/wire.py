"""Values of Python's plain types as JSON, and back: all that crosses between a program and its tests.

What arrives is always of a plain type itself, so nothing of the sender's (no ``__eq__``, no ``__repr__``, no pickle)
acts where it arrives. Instances of subclasses, such as a Counter or an IntEnum, arrive as what they are of. Everything
else stays where it is and crosses as a number that stands for it.
"""

from __future__ import annotations

from collections.abc import Callable
from numbers import Integral
from typing import Any

DEPTH = 50
"""nesting of values in values"""
_EXACT = 2**53
_CONTAINERS = {"l": list, "t": tuple, "s": set, "f": frozenset}


class Unsendable(TypeError):
    """Error of a value that no other process can get."""


def encode(value: Any, opaque: Callable[[Any], int], depth: int = DEPTH) -> Any:  # noqa: ANN401 - any value
    """Turn ``value`` into what json can write. ``opaque`` gives the number that stands for a value of no plain type."""
    if depth == 0:
        raise Unsendable(f"a value nested more than {DEPTH} deep")
    if value is None or value is True or value is False:
        return value
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, Integral):
        number = int(value)
        return number if -_EXACT < number < _EXACT else {"i": hex(number)}
    if isinstance(value, float):
        return float.__pos__(value)
    if isinstance(value, complex):
        return {"c": [value.real, value.imag]}
    if isinstance(value, bytes | bytearray):
        return {"b" if isinstance(value, bytes) else "a": bytes(value).hex()}
    if isinstance(value, dict):
        return {"d": [[encode(part, opaque, depth - 1) for part in pair] for pair in dict.items(value)]}
    for key, kind in _CONTAINERS.items():
        if isinstance(value, kind):
            return {key: [encode(part, opaque, depth - 1) for part in kind.__iter__(value)]}
    return {"h": opaque(value)}


def decode(tree: Any, stand_in: Callable[[int], Any], depth: int = DEPTH) -> Any:  # noqa: ANN401 - any value
    """Return the value that ``encode`` made ``tree`` of. ``stand_in`` gives what stands for a value of no plain type.
    Raises TypeError, ValueError, KeyError or IndexError for any other tree.
    """
    if not isinstance(tree, dict):
        if isinstance(tree, list):
            raise TypeError("a bare list")
        return tree
    if depth == 0:
        raise ValueError(f"a value nested more than {DEPTH} deep")
    ((key, content),) = tree.items()
    if key in _CONTAINERS:
        return _CONTAINERS[key](decode(part, stand_in, depth - 1) for part in content)
    if key == "d":
        return {decode(k, stand_in, depth - 1): decode(v, stand_in, depth - 1) for k, v in content}
    if key == "i":
        return int(content, 16)
    if key == "c":
        return complex(float(content[0]), float(content[1]))
    if key in ("a", "b"):
        return bytes.fromhex(content) if key == "b" else bytearray.fromhex(content)
    if key == "h":
        return stand_in(int(content))
    raise ValueError(f"a value of unknown kind {key!r}")
