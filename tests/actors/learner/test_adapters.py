"""An adapter on real ranks of ZeRO-3: it alone is trained, gathered and saved, as one process would train it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from lpo_ray.learner.torch_learner import TorchPolicy, TorchScorer
from lpo_ray.policy.loading import load_policy
from lpo_ray.policy.lora import AdapterSettings
from lpo_ray.policy.lora_layers import inject
from lpo_ray.policy.saving import save_policy
from lpo_ray.policy.scoring import response_logprobs, score_bundles
from lpo_ray.policy.weights import published
from tests.actors.learner.test_resharding import ODD, assert_same, whole
from tests.support.model_folders import random_model
from tests.support.zero3_ranks import bundle, on_ranks, rank_settings

ADAPTER = AdapterSettings(3, 6, ("all-linear",))
STEPS = 3


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    random_model(ODD).save_pretrained(folder)
    return folder


def loss_of(policy: Any, number: int) -> Tensor:
    return score_bundles(policy, bundle(number), 1.0).logprobs.sum() / 100


def train(
    rank: int, model: Path, options: dict[str, object], restored: tuple[Path, int] | None, saved: Path, steps: int
) -> dict[str, Any]:
    """Start as a rank does, restore, save, take steps of two micro-batches each, and save what came out."""
    from actors.learner.zero3 import Zero3Policy, load_sharded
    from lpo_ray.policy.lora_layers import BaseScorer
    from lpo_ray.policy.tensor_file import DiskTensors

    settings = rank_settings(model, **{"adapter": ADAPTER, **options})
    sharded = load_sharded(str(model), settings, lambda: None, settings.adapter)
    policy = Zero3Policy(sharded, settings.optimiser, gradient_checkpointing=settings.gradient_checkpointing)
    if restored is not None:
        policy.restore(*restored, lambda what: torch.distributed.barrier())
    policy.save(saved)
    world_size, norms = torch.distributed.get_world_size(), []
    base = BaseScorer(policy, policy.model)
    before = response_logprobs(base, bundle(9))
    for step in range(steps):
        for number in range(0, 2, world_size):  # of two micro-batches, each rank has its own; a third one has none
            mine = number + rank
            loss = loss_of(policy, 2 * step + mine) if mine < 2 else loss_of(policy, 0) * 0.0
            policy.backward(loss)
        norms.append(policy.step(1e-2))
    policy.save(saved / "next")
    weights = DiskTensors(saved / f"gathered{rank}", policy.shapes(), policy.model.dtype) if rank == 0 else None
    policy.gather(weights)
    found = {} if weights is None else {name: tensor.clone() for name, tensor in weights.tensors.items()}
    if weights is not None:
        save_policy(saved / "policy", policy.model, settings.adapter, weights.tensors)
        weights.close()
    return {
        "weights": found, "norms": norms, "logprobs": response_logprobs(policy, bundle(9)),
        "base": response_logprobs(base, bundle(9)), "before": before,
        "frozen": sum(p.ds_tensor.numel() for p in policy.model.parameters() if not p.requires_grad),
    }  # fmt: skip


def one_process(model: Path, dtype: str, adapter: AdapterSettings = ADAPTER) -> tuple[TorchPolicy, list[Any]]:
    settings = rank_settings(model, dtype)
    loaded = load_policy(str(model), dtype)
    inject(loaded, adapter)
    policy, norms = TorchPolicy(loaded, settings.optimiser, attention="packed"), []
    for step in range(STEPS):
        for number in range(2):
            policy.backward(loss_of(policy, 2 * step + number))
        norms.append(policy.step(1e-2))
    return policy, norms


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "computed-again"])
def test_ranks_train_an_adapter_as_one_process_does(
    tmp_path: Path, model: Path, world_size: int, checkpointing: bool
) -> None:
    options = {"dtype": "float32", "gradient_checkpointing": checkpointing}
    ranks = on_ranks(world_size, train, model, options, None, tmp_path, STEPS)
    alone, norms = one_process(model, "float32")
    expected = published(alone.model)
    assert ranks[0]["weights"].keys() == expected.keys() and len(expected) == 28
    for name, tensor in ranks[0]["weights"].items():
        torch.testing.assert_close(tensor, expected[name].detach(), rtol=1e-4, atol=1e-7)
    for found, wanted in zip(ranks[0]["norms"], norms, strict=True):
        assert found.gradient == pytest.approx(wanted.gradient, rel=1e-4)
        assert found.gradient_by_kind == pytest.approx(wanted.gradient_by_kind, rel=1e-3)
        assert found.update_ratio_by_kind == pytest.approx(wanted.update_ratio_by_kind, rel=1e-3)
        assert set(found.update_ratio_by_kind) == {"attention", "mlp"}
    untrained = response_logprobs(TorchScorer(load_policy(str(model), "float32")), bundle(9))
    for rank in ranks:
        for found, before, wanted in zip(rank["base"], rank["before"], untrained, strict=True):
            assert np.array_equal(found, before)  # bit for bit: the base has not moved
            assert np.allclose(found, wanted, atol=1e-5)
        assert max(np.abs(a - b).max() for a, b in zip(rank["logprobs"], rank["base"], strict=True)) > 1e-2


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_its_state_goes_from_two_ranks_to_three_one_and_two_again(tmp_path: Path, model: Path, dtype: str) -> None:
    a, b, c, d = (tmp_path / name for name in "abcd")
    options = {"dtype": dtype}
    on_ranks(2, train, model, options, None, a, STEPS)
    written = whole(a / "next", 2)
    assert written["step"] == STEPS and all("lora_" in name for name in written if name != "step")
    on_ranks(3, train, model, options, (a / "next", 2), b, 0)
    on_ranks(1, train, model, options, (b, 3), c, 0)
    resumed = on_ranks(2, train, model, options, (c, 1), d, 0)
    for folder, ranks in ((b, 3), (c, 1), (d, 2)):
        assert_same(whole(folder, ranks), written)
    assert_same(resumed[0]["weights"], load_file(a / "policy" / "adapter_model.safetensors"))


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_ranks_begin_with_the_adapter_of_a_folder(tmp_path: Path, model: Path) -> None:
    first = on_ranks(2, train, model, {"dtype": "float32"}, None, tmp_path / "a", STEPS)
    adapter = AdapterSettings(3, 6, ("all-linear",), path=str(tmp_path / "a" / "policy"))
    second = on_ranks(2, train, model, {"dtype": "float32", "adapter": adapter}, None, tmp_path / "b", 0)
    assert_same(second[0]["weights"], first[0]["weights"])
    for found, wanted in zip(second[0]["logprobs"], first[0]["logprobs"], strict=True):
        assert np.array_equal(found, wanted)
