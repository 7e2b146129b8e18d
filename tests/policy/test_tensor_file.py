"""Safetensors files of the library, read by ours: the same tensors, runs of them, and what is said of damaged files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import SafetensorError
from safetensors.torch import save_file

from lpo_ray.common.files import DiskFull
from lpo_ray.policy.tensor_file import DTYPES, DiskTensors, open_tensors

TENSORS = {name: torch.arange(6).reshape(2, 3).to(dtype) for name, dtype in DTYPES.items()} | {
    "scalar": torch.tensor(1.5), "empty": torch.empty(0, 4), "long": torch.arange(1000, dtype=torch.float32),
}  # fmt: skip


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tensors") / "all.safetensors"
    save_file(TENSORS, path, metadata={"step": "7"})
    return path


def test_every_dtype_and_shape_is_read_as_it_was_written(path: Path) -> None:
    found = open_tensors(path)
    assert found.metadata == {"step": "7"}
    assert found.tensors.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        read = found.tensors[name][...]
        assert (read.dtype, read.shape) == (tensor.dtype, tensor.shape)
        assert found.tensors[name].get_shape() == list(tensor.shape)
        assert torch.equal(read.flatten().view(torch.uint8), tensor.flatten().view(torch.uint8))


@given(st.integers(0, 1000), st.integers(0, 1000))
def test_a_run_is_read_alone(path: Path, one: int, other: int) -> None:
    first, end = sorted((one, other))
    assert torch.equal(open_tensors(path).tensors["long"].run(first, end), TENSORS["long"][first:end])


def test_a_file_that_ends_early_is_refused_when_it_is_opened_and_while_it_is_read(path: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(path.read_bytes())
    opened = open_tensors(damaged)
    damaged.write_bytes(path.read_bytes()[: opened.tensors["long"].offset + 100])
    with pytest.raises(ValueError, match="ends 3900 bytes before its tensor does"):
        opened.tensors["long"].run(0, 1000)
    with pytest.raises(SafetensorError):
        open_tensors(damaged)


def test_tensors_on_disk_are_apart_keep_what_is_written_and_leave_no_file(tmp_path: Path) -> None:
    shapes = {"a": (3, 5), "scalar": (), "empty": (0, 4), "b": (5000,)}
    stored = DiskTensors(tmp_path / "weights", shapes, torch.bfloat16)
    expected = {name: torch.randn(shape).bfloat16() for name, shape in shapes.items()}
    for name, value in expected.items():
        stored.tensors[name].copy_(value)
        stored.written([name])
    assert {name: tensor.shape for name, tensor in stored.tensors.items()} == shapes
    assert all(torch.equal(stored.tensors[name], value) for name, value in expected.items())
    assert len({tensor.untyped_storage().data_ptr() for tensor in stored.tensors.values()}) == len(shapes)
    save_file(stored.tensors, tmp_path / "by disk.safetensors")
    save_file(expected, tmp_path / "by memory.safetensors")
    assert (tmp_path / "by disk.safetensors").read_bytes() == (tmp_path / "by memory.safetensors").read_bytes()
    stored.close()
    assert not (tmp_path / "weights").exists()


def test_no_room_for_tensors_on_disk_is_an_error_before_any_is_written(tmp_path: Path) -> None:
    with pytest.raises(DiskFull, match="weights"):
        DiskTensors(tmp_path / "weights", {"a": (2**42,)}, torch.float32)
