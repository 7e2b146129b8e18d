"""What every supported Python writes a shard's classes as, and what no shard may hold."""

from __future__ import annotations

import io
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from deepspeed.runtime.fp16.loss_scaler import LossScaler
from deepspeed.runtime.zero.config import ZeroStageEnum

from actors.learner.safe_shards import FORCE, without_code
from lpo_ray.errors import CheckpointDamaged
from tests.support.pickles import Evil, enum_by_name, enum_by_value, pickled

WRITERS = {"3.11.4 and later": enum_by_value, "3.11.0 to 3.11.3": enum_by_name}


def shard(path: Path, stage: bytes) -> Path:
    """A file as torch.save writes it, whose ``zero_stage`` is the given pickle (without PROTO and STOP)."""
    whole = io.BytesIO()
    torch.save({"zero_stage": "HERE", "weights": torch.arange(3.0)}, whole)
    plain = pickled("HERE")
    with zipfile.ZipFile(whole) as read, zipfile.ZipFile(path, "w") as written:
        for name in read.namelist():
            content = read.read(name)
            if name.endswith("data.pkl"):
                assert plain in content
                content = content.replace(plain, stage)
            written.writestr(name, content)
    return path


@pytest.mark.parametrize("spelling", WRITERS.values(), ids=WRITERS)
@pytest.mark.parametrize("stage", ZeroStageEnum)
def test_a_stage_is_read_however_its_python_wrote_it(
    tmp_path: Path, spelling: Callable[[ZeroStageEnum], bytes], stage: ZeroStageEnum
) -> None:
    path = shard(tmp_path / "shard.pt", spelling(stage))
    assert pickle.loads(b"\x80\x02" + spelling(stage) + b".") is stage  # the spelling is a real one
    with without_code(tmp_path):
        read = torch.load(path, weights_only=False)
    assert read["zero_stage"] is stage
    assert read["weights"].tolist() == [0, 1, 2]


def test_what_this_python_writes_is_read(tmp_path: Path) -> None:
    content = {"zero_stage": ZeroStageEnum.weights, "loss_scaler": LossScaler(1.0), "moments": torch.ones(2)}
    torch.save(content, tmp_path / "shard.pt")
    with without_code(tmp_path):
        read = torch.load(tmp_path / "shard.pt", weights_only=False)
    assert read["zero_stage"] is ZeroStageEnum.weights
    assert type(read["loss_scaler"]) is LossScaler
    assert FORCE not in os.environ


@pytest.mark.parametrize(
    "arguments",
    [(ZeroStageEnum, "mro"), (ZeroStageEnum, "__class__"), (ZeroStageEnum, "from_bytes"), (LossScaler, "update_scale"),
     (ZeroStageEnum, 3), (ZeroStageEnum, ["weights"]), ("text", "format"), (ZeroStageEnum,)],
    ids=str,
)  # fmt: skip
def test_getattr_gives_stages_and_nothing_else(tmp_path: Path, arguments: tuple[object, ...]) -> None:
    spelling = b"c__builtin__\ngetattr\n" + pickled(arguments) + b"R"
    path = shard(tmp_path / "shard.pt", spelling)
    with pytest.raises(CheckpointDamaged, match="more than tensors"), without_code(tmp_path):
        torch.load(path, weights_only=False)


@pytest.mark.parametrize("name", ["eval", "exec", "__import__", "open", "setattr", "vars"])
def test_no_other_builtin_is_called(tmp_path: Path, name: str) -> None:
    path = shard(tmp_path / "shard.pt", f"c__builtin__\n{name}\n".encode() + pickled(("1",)) + b"R")
    with pytest.raises(CheckpointDamaged, match=f"GLOBAL {name}"), without_code(tmp_path):
        torch.load(path, weights_only=False)


def test_a_shard_that_would_run_code_does_not(tmp_path: Path) -> None:
    torch.save({"evil": Evil(tmp_path / "ran")}, tmp_path / "shard.pt")
    with pytest.raises(CheckpointDamaged, match="more than tensors"), without_code(tmp_path):
        torch.load(tmp_path / "shard.pt", weights_only=False)
    assert not (tmp_path / "ran").exists()
