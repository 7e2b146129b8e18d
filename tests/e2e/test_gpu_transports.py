"""The GPU transports through the same calls as the others; skipped without the hardware. ``make gpu`` runs them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from actors.cluster import Cluster
from tests.support.clusters import on_cluster
from tests.support.real_specs import plan_of
from tests.support.transported_models import Case, look, make_model, on_ranks, perturb, reference

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.gpu, pytest.mark.timeout(600)]
NEEDED = {"cuda_ipc": (1, 0.5), "shared_memory": (1, 0.5), "object_store": (1, 0.5), "nccl": (2, 1.0)}
"""kind -> GPUs, and share of a GPU for the rank and for the engine"""


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", NEEDED)
def test_after_each_of_three_updates_the_engine_is_transformers(
    kind: str, dtype: str, tmp_path: Path, tiny_policy: Path
) -> None:
    count, share = NEEDED[kind]
    if torch.cuda.device_count() < count:
        pytest.skip(f"needs {count} GPUs, found {torch.cuda.device_count()}")
    path = make_model(tmp_path / "model", "qwen3", True, tiny_policy)
    spec = plan_of(
        tmp_path, path, f"transport.kind={kind}", f"model.dtype={dtype}", f"rollout.dtype={dtype}",
        "learner.world_size=1", f"learner.gpus_per_rank={share}", f"rollout.gpus_per_worker={share}",
        "rollout.gpu_memory_utilization=0.3",
    )  # fmt: skip
    cases: list[Case] = []

    async def use(cluster: Cluster) -> None:
        for step in range(1, 4):
            await on_ranks(cluster.learner, perturb, step)
            publication = await cluster.transport.publish(step)
            model = await reference(cluster.learner, path / f"step{step}", dtype)
            cases.append(await look(cluster, model, publication))

    on_cluster(spec, path, use)
    for case in cases:
        assert case.greedy
        assert case.difference < (1e-3 if dtype == "float32" else 2e-2)
        assert case.versions == {case.publication.version.step}
