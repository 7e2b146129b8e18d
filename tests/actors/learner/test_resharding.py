"""The training state goes from any number of ranks to any other bit for bit, on real ranks of ZeRO-3."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor
from transformers import Qwen3Config

from tests.support.model_folders import random_model
from tests.support.zero3_ranks import bundle, on_ranks, rank_settings

ODD = Qwen3Config(
    vocab_size=50, hidden_size=16, intermediate_size=27, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, head_dim=6, max_position_embeddings=64, tie_word_embeddings=True,
)  # fmt: skip
"""a model whose tensors no number of ranks divides evenly"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    random_model(ODD).save_pretrained(folder)
    return folder


def stage(
    rank: int, model: Path, options: dict[str, object], restored: tuple[Path, int] | None, saved: Path, more: int
) -> None:
    """Start as a rank does, restore, save, take ``more`` steps, and save again."""
    from actors.learner.zero3 import Zero3Policy, load_sharded
    from lpo_ray.policy.scoring import score_bundles

    settings = rank_settings(model, **options)
    policy = Zero3Policy(
        load_sharded(str(model), settings, lambda: None), settings.optimiser, gradient_checkpointing=False
    )
    if restored is not None:
        policy.restore(*restored, lambda what: torch.distributed.barrier())
    policy.save(saved)
    if options == {"dtype": "float32"}:
        policy.engine.save_checkpoint(str(saved / "old"), tag="shards")  # as earlier versions did
    for number in range(more):
        scores = score_bundles(policy, bundle(2 * number + rank), 1.0)
        policy.backward(scores.logprobs.sum() / 100)
        assert policy.step(1e-2).applied
    policy.save(saved / "next")


def whole(folder: Path, written_by: int) -> dict[str, Tensor]:
    """Every parameter's weights and moments, and the number of updates."""
    runs: dict[str, list[Tensor]] = {}
    for rank in range(written_by):
        with safe_open(folder / "shards" / f"rank_{rank:05d}.safetensors", framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - no dict
                runs.setdefault(name, []).append(file.get_tensor(name))
            runs.setdefault("step", []).append(torch.tensor([float(file.metadata()["step"])]))
    assert len({len(found) for found in runs.values()}) == 1
    step = runs.pop("step")
    assert len(set(map(float, step))) == 1
    return {name: torch.cat(found) for name, found in runs.items()} | {"step": step[0]}


def assert_same(left: dict[str, Tensor], right: dict[str, Tensor]) -> None:
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        assert torch.equal(tensor, right[name]), name


OFFLOAD = {"zero_optimization": {"offload_optimizer": {"device": "cpu"}}}


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "options",
    [{"dtype": "float32"}, {"dtype": "bfloat16"}, {"dtype": "bfloat16", "deepspeed": OFFLOAD}],
    ids=["float32", "bfloat16", "offloaded"],
)
def test_two_ranks_three_one_and_two_again(tmp_path: Path, model: Path, options: dict[str, object]) -> None:
    a, b, c, d = (tmp_path / name for name in "abcd")
    on_ranks(2, stage, model, options, None, tmp_path / "first", 2)
    first = whole(tmp_path / "first", 2)
    assert first["step"] == 0 and not first["exp_avg/model.norm.weight"].any()  # saved before any update
    on_ranks(2, stage, model, options, (tmp_path / "first" / "next", 2), a, 1)
    assert_same(whole(tmp_path / "first" / "next", 2), whole(a, 2))
    on_ranks(3, stage, model, options, (a, 2), b, 0)
    on_ranks(1, stage, model, options, (b, 3), c, 0)
    on_ranks(2, stage, model, options, (c, 1), d, 1)
    written = whole(a, 2)
    assert written["step"] == 2 and written["exp_avg/model.norm.weight"].any()
    assert {written[name].numel() for name in ("weights/model.norm.weight", "exp_avg_sq/model.norm.weight")} == {16}
    for folder, ranks in ((b, 3), (b / "next", 3), (c, 1), (d, 2)):
        assert_same(whole(folder, ranks), written)
    assert_same(whole(d / "next", 2), whole(a / "next", 2))  # as if they had always been two
    assert not torch.equal(written["weights/model.norm.weight"], whole(a / "next", 2)["weights/model.norm.weight"])
    if options == {"dtype": "float32"}:
        old(tmp_path, model, written)


def old(tmp_path: Path, model: Path, written: dict[str, Tensor]) -> None:
    """What an earlier version wrote from two ranks is read by two, and by three."""
    for ranks in (2, 3):
        on_ranks(ranks, stage, model, {"dtype": "float32"}, (tmp_path / "a" / "old", 2), tmp_path / f"{ranks}", 0)
        assert_same(whole(tmp_path / f"{ranks}", ranks), written)
