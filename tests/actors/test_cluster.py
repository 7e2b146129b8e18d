"""What the composition root decides: which transport ``auto`` takes and which are refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from actors.cluster import check, transport_kind
from actors.rollout.inflight import RULES
from lpo_ray.config import load_config
from lpo_ray.config.schema import Config, Inflight
from lpo_ray.errors import ConfigError

QUICKSTART = Path(__file__).parents[2] / "configs" / "quickstart.yaml"


def config_of(kind: str, learner: float, rollout: float) -> Config:
    gpus = [f"learner.gpus_per_rank={learner}", f"rollout.gpus_per_worker={rollout}"]
    return load_config(QUICKSTART, [f"transport.kind={kind}", *gpus])


@pytest.mark.parametrize(
    ("learner", "rollout", "num_nodes", "kind"),
    [
        (0, 0, 1, "shared_memory"), (0, 0, 2, "gloo"), (1, 1, 1, "nccl"), (1, 1, 3, "nccl"), (0.5, 0.5, 1, "cuda_ipc"),
        (0.5, 0.5, 2, "cuda_ipc"), (1, 0, 1, "shared_memory"), (0, 1, 1, "shared_memory"), (1, 0, 2, "object_store"),
        (1, 0.5, 1, "shared_memory"), (1, 0.5, 2, "object_store"), (1, 4, 2, "nccl"),
    ],
)  # fmt: skip
def test_auto_takes_the_fastest_that_works(learner: float, rollout: float, num_nodes: int, kind: str) -> None:
    assert transport_kind(config_of("auto", learner, rollout), num_nodes) == kind
    assert transport_kind(config_of("object_store", learner, rollout), num_nodes) == "object_store"


def test_what_cannot_work_is_refused_before_anything_starts() -> None:
    with pytest.raises(ConfigError, match="the cluster has 2 nodes; expected one"):
        transport_kind(config_of("shared_memory", 0, 0), 2)
    with pytest.raises(ConfigError, match=r"nccl with learner.gpus_per_rank=1 and .*=0; expected whole GPUs"):
        transport_kind(config_of("nccl", 1, 0), 1)
    with pytest.raises(ConfigError, match="expected whole GPUs on both sides, since NCCL takes one process a GPU"):
        transport_kind(config_of("nccl", 0.5, 0.5), 2)
    with pytest.raises(ConfigError, match="expected shares below 1 on both sides, since both must be on one GPU"):
        transport_kind(config_of("cuda_ipc", 1, 1), 1)
    with pytest.raises(ConfigError, match=r"transport.kind is 'rdma'; expected one of cuda_ipc, gloo"):
        check(config_of("rdma", 0, 0))


def test_every_mode_has_a_rule_and_running_requests_are_kept_by_default() -> None:
    assert set(RULES) == set(Inflight)
    assert load_config(QUICKSTART, []).pipeline.inflight is Inflight.keep_recompute
