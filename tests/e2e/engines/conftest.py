"""One cluster with one engine for all modules here, since starting one is what costs time: each kind once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from lpo_ray.config.schema import Inflight
from tests.support.clusters import Standing, standing_cluster
from tests.support.real_specs import plan_of
from tests.support.transported_models import make_model

SLOTS = 12
"""responses that the engine decodes at once"""


@pytest.fixture(scope="package", params=[pytest.param("inprocess", marks=pytest.mark.long), "asynchronous"])
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="package")
def standing(kind: str, tmp_path_factory: pytest.TempPathFactory, tiny_policy: Path) -> Iterator[Standing]:
    folder = tmp_path_factory.mktemp(kind)
    policy = make_model(folder / "policy", "qwen3", True, tiny_policy)
    first, *_ = Inflight
    spec = plan_of(
        folder, policy, f"rollout.engine={kind}", "learner.world_size=1", "rollout.kv_cache_gib=0.2",
        "rollout.silence_seconds=240", f"rollout.max_num_seqs={SLOTS}", f"pipeline.inflight={first.value}",
        "supervision.backoff_seconds=0",
    )  # fmt: skip
    with standing_cluster(spec, policy) as found:
        yield found
