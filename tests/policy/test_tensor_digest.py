"""The digest of a tensor: the same on every device and in any layout, and never blind to a change of one element."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lpo_ray.policy.tensor_digest import ROW, ROWS_AT_ONCE, digests_of, sum_on_accelerator, tensor_digest, weighted_sum

DTYPES = (torch.float32, torch.bfloat16, torch.float8_e4m3fn)
SIZES = st.one_of(st.integers(1, 300), st.integers(1, 40).map(lambda n: 4 * ROW * n // 7))


def numbers(count: int, dtype: torch.dtype, seed: int) -> torch.Tensor:
    size = count * dtype.itemsize
    return torch.randint(0, 256, (size,), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed)).view(dtype)


def by_definition(tensor: torch.Tensor) -> str:
    """The formula, word by word, in Python's own integers."""
    data = bytes(tensor.contiguous().view(-1).view(torch.uint8).tolist())
    total = 0
    for index, at in enumerate(range(0, len(data), 8)):
        word = int.from_bytes(data[at : at + 8], "little")
        total += split_mix(ROW + index // ROW) * split_mix(index % ROW) * (word ^ (word >> 31))
    return f"{total % 2**64:016x}"


def split_mix(number: int) -> int:
    z = (number + 1) * 0x9E3779B97F4A7C15 % 2**64
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
    return (z ^ (z >> 31)) | 1


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("count", [1, 3, 4, 8, 63, ROW - 1, ROW, 4 * ROW + 5])
def test_it_is_the_sum_that_the_docstring_says(count: int, dtype: torch.dtype) -> None:
    tensor = numbers(count, dtype, count)
    assert tensor_digest(tensor) == by_definition(tensor)


@given(SIZES, st.sampled_from(DTYPES), st.integers(0, 9))
def test_an_accelerator_finds_the_same_sum(count: int, dtype: torch.dtype, seed: int) -> None:
    words = numbers(count, torch.float64, seed).view(torch.int64)
    assert sum_on_accelerator(words).item() == weighted_sum(words).item()


def test_an_accelerator_finds_the_same_sum_of_more_words_than_it_takes_at_once() -> None:
    words = torch.arange(ROW * ROWS_AT_ONCE + ROW // 3, dtype=torch.int64) * 0x1234567
    assert sum_on_accelerator(words).item() == weighted_sum(words).item()


@given(SIZES, st.sampled_from(DTYPES), st.data())
def test_a_change_of_one_element_is_always_found(count: int, dtype: torch.dtype, data: st.DataObject) -> None:
    tensor = numbers(count, dtype, 1)
    before = tensor_digest(tensor)
    at = data.draw(st.integers(0, count - 1))
    flips = data.draw(st.integers(1, 2 ** (8 * dtype.itemsize) - 1))
    raw = tensor.view(torch.uint8)
    for byte in range(dtype.itemsize):
        raw[at * dtype.itemsize + byte] ^= (flips >> (8 * byte)) & 0xFF
    assert tensor_digest(tensor) != before


@given(st.sampled_from(DTYPES), st.sets(st.integers(0, 4000), min_size=2, max_size=40), st.integers(0, 31))
def test_the_same_bit_flipped_in_several_elements_is_found(dtype: torch.dtype, where: set[int], bit: int) -> None:
    """A plain sum of 64-bit words would not see highest bits that change in an even number of them."""
    tensor = numbers(4001, dtype, 2)
    before = tensor_digest(tensor)
    size = dtype.itemsize
    raw, (byte, mask) = tensor.view(torch.uint8), (bit // 8 % size, 1 << bit % 8)
    for at in where:
        raw[at * size + byte] ^= mask
    assert tensor_digest(tensor) != before


@pytest.mark.parametrize("dtype", DTYPES)
def test_signs_that_change_everywhere_are_found(dtype: torch.dtype) -> None:
    tensor = numbers(4096, dtype, 5)
    raw = tensor.view(torch.uint8)
    before = tensor_digest(tensor)
    raw[dtype.itemsize - 1 :: dtype.itemsize] ^= 0x80
    assert tensor_digest(tensor) != before


@given(st.integers(2, 200), st.integers(2, 200))
def test_rows_in_another_order_are_found(first: int, second: int) -> None:
    tensor = torch.randn(first + second, 16)
    assert tensor_digest(tensor.roll(1, 0)) != tensor_digest(tensor)


def test_it_is_of_the_values_in_their_order_wherever_they_lie() -> None:
    matrix = torch.randn(6, 5)
    assert tensor_digest(matrix.T.contiguous().T) == tensor_digest(matrix)
    inside = torch.empty(37, dtype=torch.bfloat16)
    for offset in range(7):  # as in a bucket, where a tensor begins where the one before it ends
        part = inside[offset : offset + 30].view(6, 5)
        part.copy_(matrix)
        assert tensor_digest(part) == tensor_digest(matrix.bfloat16())
    assert tensor_digest(matrix.bfloat16()) != tensor_digest(matrix)


def test_many_at_once_are_those_one_by_one() -> None:
    tensors = [torch.randn(n) for n in (1, 5, 100)]
    assert digests_of(tensors) == [tensor_digest(tensor) for tensor in tensors]
    assert digests_of([]) == []
    assert tensor_digest(torch.empty(0)) == "0" * 16
