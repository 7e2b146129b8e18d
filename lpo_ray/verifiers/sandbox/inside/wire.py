"""Values of Python's plain types as JSON, and back: all that crosses between a program and its tests.

What arrives is always of a plain type itself, so nothing of the sender's (no ``__eq__``, no ``__repr__``, no pickle)
acts where it arrives. Instances of subclasses, such as a Counter or an IntEnum, arrive as what they are of. Dates,
decimals, arrays of numbers and the like are built anew from such values (``_BUILT``). Instances of the classes that
both sides know by name, such as a task's TreeNode, arrive as instances of the receiver's own class with the same
attributes. Everything else stays where it is and crosses as a number that stands for it.
"""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Callable, Mapping
from numbers import Integral
from typing import Any

DEPTH = 50
"""nesting of values in values"""
IN_PLACE = DEPTH + 2
"""the same of an answer with arguments in it"""
_EXACT = 2**53
_BUILT: dict[str, tuple[str, Callable[[Any], list[Any]]]] = {
    "Decimal": ("decimal", lambda value: [str(value)]),
    "Fraction": ("fractions", lambda value: [value.numerator, value.denominator]),
    "datetime": ("datetime", lambda value: [*value.timetuple()[:6], value.microsecond]),
    "date": ("datetime", lambda value: [value.year, value.month, value.day]),
    "time": ("datetime", lambda value: [value.hour, value.minute, value.second, value.microsecond]),
    "timedelta": ("datetime", lambda value: [value.days, value.seconds, value.microseconds]),
    "deque": ("collections", lambda value: [[*value]]),
    "range": ("builtins", lambda value: [value.start, value.stop, value.step]),
    "ndarray": ("numpy", lambda value: [value.tolist(), value.dtype.str]),
}
"""type -> its module, and the arguments that make a value of it; a subclass before what it is of"""
_NUMBERS = re.compile(r"[<>|=][biufc]\d{1,2}|[<>]U\d{1,3}")
_CONTAINERS = {"l": list, "t": tuple, "s": set, "f": frozenset}


class Unsendable(TypeError):
    """Error of a value that no other process can get."""


def builtin_error(kind: type) -> list[str]:
    """Return the name of an error's nearest builtin type."""
    return [next(each.__name__ for each in kind.__mro__ if each.__module__ == "builtins")]


def own_classes(space: dict[str, Any]) -> dict[str, type]:
    """Return the classes that the code which ran in ``space`` defines, and whose instances have plain attributes."""
    return {
        name: kind
        for name, kind in space.items()
        if isinstance(kind, type) and kind.__module__ == space["__name__"] and kind.__base__ is object
    }


def _type(module: str, name: str) -> Any:  # noqa: ANN401 - a type, or () for none
    """Return a type, if its module has been imported: else no value is of it."""
    return getattr(sys.modules.get(module), name, ())


def _is_whole(value: Any) -> bool:  # noqa: ANN401 - a value of a type of _BUILT
    """Tell whether its plain parts are all that it is: no time zone, no array of objects. An empty array stays where it
    is, as libraries take it for equal to any number.
    """
    is_array = hasattr(value, "dtype")
    return getattr(value, "tzinfo", None) is None and not (is_array and (value.dtype.hasobject or value.size == 0))


def _built(name: str, parts: list[Any]) -> Any:  # noqa: ANN401 - any value
    module = importlib.import_module(_BUILT[name][0])
    if name == "ndarray":
        numbers, dtype = parts
        if not _NUMBERS.fullmatch(dtype):
            raise ValueError(f"an array of {dtype!r}")
        return module.array(numbers, dtype=dtype)
    return getattr(module, name)(*parts)


class Writer:
    """Turns one value into what json can write."""

    def __init__(
        self, opaque: Callable[[Any], int], classes: Mapping[str, type] | None = None, depth: int = DEPTH
    ) -> None:
        """``opaque`` gives the number that stands for a value of no plain type. ``classes``: those that both sides
        know, by name.
        """
        self._opaque, self._classes, self._depth = opaque, classes or {}, depth
        self.objects: list[Any] = []
        """those that were written, in the order in which a reader makes them"""
        self._places: dict[int, int] = {}

    def message(self, value: Any) -> dict[str, Any]:  # noqa: ANN401 - any value
        """Write the value, and each object in it once, so that those that hold each other are no trouble."""
        tree = self._tree(value, self._depth)
        objects = []
        for each in self.objects:  # grows meanwhile
            state = [[str.__str__(name), self._tree(part, self._depth)] for name, part in each.__dict__.items()]
            objects.append([type(each).__name__, state])
        return {"value": tree, "objects": objects} if objects else {"value": tree}

    def _tree(self, value: Any, depth: int) -> Any:  # noqa: ANN401 - any value
        if depth == 0:
            raise Unsendable(f"a value nested more than {self._depth} deep")
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
            return {"d": [[self._tree(part, depth - 1) for part in pair] for pair in dict.items(value)]}
        for key, kind in _CONTAINERS.items():
            if isinstance(value, kind):
                return {key: [self._tree(part, depth - 1) for part in kind.__iter__(value)]}
        if isinstance(value, _type("numpy", "bool_")):
            return bool(value)
        for name, (module, parts) in _BUILT.items():
            if isinstance(value, _type(module, name)) and _is_whole(value):
                return {"v": [name, self._tree(parts(value), depth - 1)]}
        if type(value).__name__ in self._classes and hasattr(value, "__dict__"):
            return {"o": self._place(value)}
        if isinstance(value, type) and issubclass(value, Exception):
            return {"e": [self._opaque(value), *builtin_error(value)]}
        return {"h": self._opaque(value)}

    def _place(self, value: Any) -> int:  # noqa: ANN401 - an object
        if id(value) not in self._places:
            self._places[id(value)] = len(self.objects)
            self.objects.append(value)
        return self._places[id(value)]


def read(
    message: Mapping[str, Any], stand_in: Callable[..., Any], classes: Mapping[str, type] | None = None,
    depth: int = DEPTH, made: list[Any] | None = None,
) -> Any:  # noqa: ANN401 - any value  # fmt: skip
    """Return the value that a Writer made ``message`` of. ``stand_in`` gives what stands for a value of no plain type,
    by its number, or for an error's class, by that and the name of a builtin one that it is of. An object gets no
    attribute that would hide a method of its class. ``made`` gets all objects.

    Raises TypeError, ValueError, KeyError, IndexError or ArithmeticError for any other message.
    """
    states = message.get("objects", [])
    objects = [object.__new__((classes or {})[name]) for name, _ in states]

    def value_of(tree: Any, depth: int) -> Any:  # noqa: ANN401 - any value
        if not isinstance(tree, dict):
            if isinstance(tree, list):
                raise TypeError("a bare list")
            return tree
        if depth == 0:
            raise ValueError("a value nested too deep")
        ((key, content),) = tree.items()
        if key in _CONTAINERS:
            return _CONTAINERS[key](value_of(part, depth - 1) for part in content)
        if key == "d":
            return {value_of(k, depth - 1): value_of(v, depth - 1) for k, v in content}
        if key == "i":
            return int(content, 16)
        if key == "c":
            return complex(float(content[0]), float(content[1]))
        if key in ("a", "b"):
            return bytes.fromhex(content) if key == "b" else bytearray.fromhex(content)
        if key == "v":
            return _built(content[0], value_of(content[1], depth - 1))
        if key == "o":
            return objects[content]
        if key == "h":
            return stand_in(int(content))
        if key == "e":
            return stand_in(int(content[0]), str(content[1]))
        raise ValueError(f"a value of unknown kind {key!r}")

    for each, (_, state) in zip(objects, states, strict=True):
        for name, part in state:
            if not isinstance(name, str) or name.startswith("__") or callable(getattr(type(each), name, None)):
                raise ValueError(f"an object with an attribute {name!r}")
            each.__dict__[name] = value_of(part, depth)
    if made is not None:
        made += objects
    return value_of(message["value"], depth)
