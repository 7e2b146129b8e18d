"""Digest of a tensor's bytes, the same wherever it is computed: on a GPU, on a CPU, in any order.

The bytes are read as 64-bit words w_i, little-endian, the last one filled up with zeros. With fixed odd multipliers m_i

    digest = sum_i m_i * (w_i ^ (w_i >> 31))  mod 2^64

Integers have no rounding, so it is exact. Each word is mapped one to one and multiplied by an odd number: a change
inside one word, be it a bit or all eight bytes, always changes the digest. Changes in several words cancel with a
chance of 2^-64, and of 2^-32 at worst, where the same high bit changes in all of them. A product loses high bits:
without the shift two changes of bit 63 would cancel. By 32 bits, a word's two float32 signs would. It finds accidents;
it is no defence against somebody who wants another tensor of the same digest.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
import torch
from torch import Tensor

WORD = 8
"""bytes of a word"""
ROW = 1 << 14
"""words of a row: 128 KiB, which a core's cache holds. m_i is the multiplier of its row times that of its column"""
SHIFT = 31
DIGEST_OF_ZEROS = "0" * 16
"""of any tensor that is zero everywhere"""
ROWS_AT_ONCE = 1 << 10
"""rows of which an accelerator makes temporary copies"""


def tensor_digest(tensor: Tensor) -> str:
    """Compute the digest of a tensor, 16 hexadecimal digits, over its bytes in row-major order."""
    return digests_of([tensor])[0]


def digests_of(tensors: Sequence[Tensor]) -> list[str]:
    """Compute the digests of tensors that are on one device, with a single wait for it."""
    return as_digests([weighted_sum(tensor) for tensor in tensors])


def as_digests(sums: Sequence[Tensor]) -> list[str]:
    """Write what ``weighted_sum`` returned as digests. Waits for the device."""
    return [f"{number % (1 << 64):016x}" for number in (torch.stack(list(sums)).tolist() if sums else ())]


@torch.no_grad()
def weighted_sum(tensor: Tensor) -> Tensor:
    """Compute the digest as an int64 of no dimension, on the tensor's device, which is not waited for."""
    data = tensor.detach().contiguous().view(-1).view(torch.uint8)
    if missing := -data.numel() % WORD:
        data = torch.nn.functional.pad(data, (0, missing))
    elif data.storage_offset() % WORD or data.data_ptr() % WORD:
        data = data.clone()
    words = data.view(torch.int64)
    return torch.tensor(_sum_on_cpu(words.numpy())) if words.device.type == "cpu" else sum_on_accelerator(words)


def _sum_on_cpu(words: np.ndarray) -> int:
    """Sum up with numpy, whose dot product of integers runs at 10 GB/s on one core."""
    columns, rows = _column_multipliers().view(np.uint64), _row_multipliers(len(words)).view(np.uint64)
    unsigned, mixed, total = words.view(np.uint64), np.empty(ROW, np.uint64), np.uint64(0)
    with np.errstate(over="ignore"):
        for row, multiplier in enumerate(rows):
            part = unsigned[row * ROW : (row + 1) * ROW]
            some = np.right_shift(part, np.uint64(SHIFT), out=mixed[: len(part)])
            np.bitwise_xor(part, some, out=some)
            total += multiplier * some.dot(columns[: len(part)])
    return int(total.view(np.int64))


def sum_on_accelerator(words: Tensor) -> Tensor:
    """Sum up elementwise: torch has no dot product of integers for accelerators. ``words``: int64 [n]."""
    columns = _columns_on(words.device)
    rows = torch.from_numpy(_row_multipliers(words.numel())).to(words.device)
    total = words.new_zeros(())
    for first in range(0, len(rows), ROWS_AT_ONCE):
        some = words[first * ROW : (first + ROWS_AT_ONCE) * ROW]
        mixed = some ^ ((some >> SHIFT) & ((1 << (64 - SHIFT)) - 1))
        whole = mixed.numel() // ROW
        if whole:
            sums = (mixed[: whole * ROW].view(whole, ROW) * columns).sum(1)
            total += (rows[first : first + whole] * sums).sum()
        if rest := mixed[whole * ROW :].numel():
            total += rows[first + whole] * (mixed[whole * ROW :] * columns[:rest]).sum()
    return total


def _row_multipliers(num_words: int) -> np.ndarray:
    rows = -(-num_words // ROW)
    return _multipliers(ROW, 1 << max(6, rows.bit_length()))[:rows]


def _column_multipliers() -> np.ndarray:
    return _multipliers(0, ROW)


@cache
def _columns_on(device: torch.device) -> Tensor:
    return torch.from_numpy(_column_multipliers()).to(device)


@cache
def _multipliers(start: int, count: int) -> np.ndarray:
    """Make the odd numbers ``start`` to ``start + count`` of a fixed sequence, as int64: SplitMix64 with last bit 1."""
    with np.errstate(over="ignore"):
        z = np.arange(start + 1, start + count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return ((z ^ (z >> np.uint64(31))) | np.uint64(1)).view(np.int64)
