"""The digest of a model in its files: whatever the files are called, and not if a bit differs."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lpo_ray.errors import ConfigError
from lpo_ray.policy.base_files import base_digest
from tests.support.model_folders import llama, random_model


@pytest.fixture
def model(tmp_path: Path) -> Path:
    random_model(llama()).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_it_is_of_the_tensors_and_not_of_the_files(model: Path, tmp_path: Path) -> None:
    random_model(llama()).save_pretrained(tmp_path / "cut", max_shard_size="20KB")
    assert len(list((tmp_path / "cut").glob("*.safetensors"))) > 1
    assert base_digest(str(model)) == base_digest(str(tmp_path / "cut"))


def test_a_bit_a_name_and_a_dtype_change_it(model: Path, tmp_path: Path) -> None:
    whole, found = load_file(model / "model.safetensors"), {base_digest(str(model))}
    first = next(iter(whole))
    flipped = whole[first].clone()
    flipped.view(-1).view(dtype=torch.int32)[0] ^= 1
    for number, tensors in enumerate((
        whole | {first: flipped},
        {name + "2" if name == first else name: tensor for name, tensor in whole.items()},
        whole | {first: whole[first].bfloat16()},
    )):  # fmt: skip
        folder = tmp_path / str(number)
        shutil.copytree(model, folder)
        save_file(tensors, folder / "model.safetensors")
        found.add(base_digest(str(folder)))
    assert len(found) == 4


def test_files_that_are_cut_short_are_named(model: Path) -> None:
    file = model / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-8])
    with pytest.raises(ConfigError, match=r"cannot be read.*copy it again"):
        base_digest(str(model))
