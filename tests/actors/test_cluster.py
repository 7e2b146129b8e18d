"""What the composition root decides: which transport ``auto`` takes and which are refused."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace

import pytest

from actors.cluster import Cluster, _engines, check, transport_kind
from actors.rollout.inflight import RULES
from lpo_ray.config import load_config
from lpo_ray.config.schema import Config, Inflight
from lpo_ray.errors import ConfigError

QUICKSTART = Path(__file__).parents[2] / "configs" / "quickstart.yaml"


def config_of(kind: str, learner: float, rollout: float) -> Config:
    gpus = [f"learner.gpus_per_rank={learner}", f"rollout.gpus_per_worker={rollout}"]
    gpus += [f"rollout.tensor_parallel_size={rollout}"] if rollout > 1 else []
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


@pytest.mark.parametrize("shared", [True, False])
async def test_engines_wait_for_ranks_only_where_they_share_their_gpus(shared: bool) -> None:
    order: list[str] = []

    async def start(who: str, seconds: float) -> None:
        await asyncio.sleep(seconds)
        order.append(who)

    ranks = asyncio.ensure_future(start("ranks", 0.05))
    await _engines(SimpleNamespace(start=lambda: start("engines", 0.0)), after=ranks if shared else None)
    await ranks
    assert order == (["ranks", "engines"] if shared else ["engines", "ranks"])


async def test_scale_says_at_once_how_many_engines_have_a_ranks_gpu() -> None:
    pool = SimpleNamespace(scale=lambda count: f"{count} rollout workers")
    for most, count in ((2, 2), (None, 9)):
        layout = SimpleNamespace(most_engines=lambda most=most: most)
        cluster = Cluster(pool, SimpleNamespace(), SimpleNamespace(), SimpleNamespace(world_size=4), None, layout)
        assert await cluster.scale("rollout", count) == f"{count} rollout workers"
    cluster.layout = SimpleNamespace(most_engines=lambda: 2)
    with pytest.raises(ConfigError, match="rollout=3; expected 2 at most: engines share the GPUs of 4 ranks"):
        await cluster.scale("rollout", 3)
