"""Pickles by hand: one that runs code when it is read, and enumerations as every supported Python writes them."""

from __future__ import annotations

import pickle
import pickletools
from enum import Enum
from pathlib import Path


class Evil:
    """Pickled, it makes a file when it is read."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.mark,)


def pickled(value: object) -> bytes:
    """The value in protocol 2, which torch.save takes, without its first and its last opcode, and with no memo."""
    return pickletools.optimize(pickle.dumps(value, 2)).removeprefix(b"\x80\x02").removesuffix(b".")


def enum_by_value(member: Enum) -> bytes:
    """A member as Python writes it from 3.11.4 on: its class is called with its value."""
    return _called(_global(type(member)), pickled((member.value,)))


def enum_by_name(member: Enum) -> bytes:
    """A member as Python 3.11.0 to 3.11.3 write it: getattr is called with its class and its name."""
    return _called(b"c__builtin__\ngetattr\n", _global(type(member)) + pickled(member.name) + b"\x86")


def _global(kind: type) -> bytes:
    return f"c{kind.__module__}\n{kind.__qualname__}\n".encode()


def _called(function: bytes, arguments: bytes) -> bytes:
    return function + arguments + b"R"
