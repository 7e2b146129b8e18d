"""What a rank does on its device, and what it leaves where it lies."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from actors.learner import zero3
from actors.learner.zero3 import Zero3Policy


@pytest.mark.parametrize("machine_has_gpus", [True, False])
@pytest.mark.parametrize(
    ("on_gpu", "world_size", "backend", "device"),
    [(False, 2, "gloo", None), (True, 2, "nccl", torch.device("cuda", 0)), (True, 1, "nccl", None)],
)
def test_ranks_meet_on_the_device_that_they_were_given_whatever_the_machine_has(
    machine_has_gpus: bool, on_gpu: bool, world_size: int, backend: str, device: torch.device | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    joined = {}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: machine_has_gpus)
    monkeypatch.setattr(torch.distributed, "init_process_group", lambda name, **more: joined.update(more, name=name))
    monkeypatch.setattr(zero3.deepspeed, "init_distributed", lambda dist_backend, **_: joined.update(ours=dist_backend))
    zero3.join_group(SimpleNamespace(), 1, world_size, on_gpu=on_gpu)
    assert (joined["name"], joined["ours"], joined["device_id"]) == (backend, backend, device)


def offloaded(*, on_disk: bool) -> Zero3Policy:
    """A policy whose optimizer is on the host or on disk, without DeepSpeed's engine."""
    policy = object.__new__(Zero3Policy)
    policy.model = torch.nn.Linear(3, 2, bias=False)
    policy.model.weight.ds_numel, policy.rank = 5, 1
    policy.engine = SimpleNamespace(optimizer=SimpleNamespace(swap_optimizer=on_disk))
    policy.optimiser, policy._offloads = torch.optim.AdamW(policy.model.parameters()), True
    policy.sum_over_ranks = lambda values: values
    return policy


@pytest.fixture(autouse=True)
def nothing_is_moved(monkeypatch: pytest.MonkeyPatch) -> None:
    """DeepSpeed's own ways to a shard bring it to the device, 16 bytes a parameter, and swap it in from a disk."""

    def moved(*_: object) -> None:
        raise AssertionError("a shard was moved")

    for name in ("safe_get_local_grad", "safe_get_local_optimizer_state", "safe_get_local_fp32_param"):
        monkeypatch.setattr(zero3, name, moved, raising=False)


def test_norms_on_the_host_are_taken_of_what_lies_there(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = offloaded(on_disk=False)
    monkeypatch.setattr(zero3, "gradients", lambda _: [(policy.model.weight, torch.tensor([3.0, 4.0, torch.nan]))])
    assert list(policy._gradient_norms().values()) == [5.0]  # 5 elements on two ranks: the second's last is padding


def test_norms_on_disk_are_not_measured() -> None:
    policy = offloaded(on_disk=True)
    assert policy._gradient_norms() == policy._update_ratios() == {}
