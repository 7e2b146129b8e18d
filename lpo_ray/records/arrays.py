"""Arrays of records: their types, and what records of every kind do with them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float32]
DoubleArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]


def check_lengths(what: str, expected: int, **lengths: int) -> None:
    """Raise ValueError when one of ``lengths`` is not ``expected``. ``what`` names the record in the message."""
    for name, length in lengths.items():
        if length != expected:
            raise ValueError(f"{what}: {name} has {length} entries, expected {expected}")


def joined(arrays: Sequence[npt.NDArray[Any]]) -> npt.NDArray[Any]:
    """Join arrays end to end: without a copy where they are pieces of one array that follow each other in it."""
    first, total = arrays[0], sum(len(array) for array in arrays)
    end = first.__array_interface__["data"][0]
    for array in arrays:
        start = array.__array_interface__["data"][0]
        if first.base is None or array.base is not first.base or start != end or array.strides != (array.itemsize,):
            return np.concatenate(arrays)
        end = start + array.nbytes
    return np.lib.stride_tricks.as_strided(first, (total,), writeable=first.flags.writeable)


def run_starts(values: npt.NDArray[Any]) -> list[int]:
    """List where runs of equal values begin."""
    return [0, *(np.flatnonzero(values[1:] != values[:-1]) + 1).tolist()]
