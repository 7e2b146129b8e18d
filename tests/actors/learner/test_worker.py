"""Ranks as their actors are, without Ray: they start, train, save for others to read, and restore."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.distributed import TCPStore
from transformers import AutoModelForCausalLM

from lpo_ray.records import FloatArray, Process
from tests.support.model_folders import ROWS, llama, write_model
from tests.support.zero3_ranks import bundle, on_ranks, rank_settings


def live(rank: int, port: int, model: Path, saved: Path) -> tuple[dict[str, FloatArray], list[object]]:
    """Returns this rank's runs of the weights after a restore, and how far it was at times."""
    from actors.learner import worker as module
    from lpo_ray.policy.scoring import score_bundles

    module.ship_log = lambda *_: None
    module.get_node_ip_address = lambda: "127.0.0.1"
    module.meeting_address = lambda: "127.0.0.1"
    module.current_process = lambda: Process(1, "node", "host", ())
    store = TCPStore("127.0.0.1", port, 2, is_master=False)
    worker = module.LearnerWorker(rank, 2, rank_settings(model, "float32", threads=None, silence_seconds=60.0))
    host, own = worker.address()
    if rank == 0:
        store.set("address", json.dumps([host, own]))
    worker.start(*json.loads(store.get("address")), 60.0)
    seen: list[object] = [worker.progress()]
    worker.save(saved / "a")
    assert worker._barrier is not None
    assert worker._barrier._store.get(f"beats/{rank}").decode() == str(seen[0])
    before = {name: parameter.ds_tensor.clone() for name, parameter in worker._policy._named()}
    scores = score_bundles(worker._policy, bundle(rank, ROWS), 1.0)
    worker._policy.backward(scores.logprobs.sum() / 100)
    assert worker._policy.step(1e-2).applied
    seen.append(worker.progress())
    worker.save(saved / "b")
    worker.restore(saved / "a", 2)
    seen.append(worker.progress())
    for name, parameter in worker._policy._named():
        assert torch.equal(parameter.ds_tensor, before[name]), name
    worker.restore(saved / "b", 2)
    return {name: parameter.ds_tensor.numpy() for name, parameter in worker._policy._named()}, seen


@pytest.mark.timeout(300)
def test_a_rank_starts_trains_saves_and_restores(tmp_path: Path) -> None:
    model = write_model(tmp_path / "model", llama(tie_word_embeddings=True), max_shard_size="40KB")
    (shards, seen), (other, _) = on_ranks(2, live, model, tmp_path, joined=False)
    weights = load_file(tmp_path / "b" / "policy" / "model.safetensors")
    assert set(weights) == set(shards)
    for name, tensor in weights.items():
        run = np.concatenate([shards[name], other[name]])[: tensor.numel()]
        np.testing.assert_array_equal(run, tensor.flatten().numpy())
    first = AutoModelForCausalLM.from_pretrained(tmp_path / "a" / "policy").state_dict()
    own = AutoModelForCausalLM.from_pretrained(model).state_dict()
    assert all(torch.equal(tensor, own[name]) for name, tensor in first.items())
    assert not torch.equal(weights["model.norm.weight"], own["model.norm.weight"])
    assert (tmp_path / "b" / "policy" / "tokenizer.json").is_file()
    assert sorted(path.name for path in (tmp_path / "b" / "shards").iterdir()) == [
        "rank_00000.safetensors", "rank_00001.safetensors",
    ]  # fmt: skip
    assert len({done for done, _ in seen}) == 3  # it got on with something all the time
