"""GPUs of ranks and engines: what no placement could make good is refused, with what to set."""

from __future__ import annotations

from pathlib import Path

import pytest

from lpo_ray.config import load_config
from lpo_ray.config.engine import shares_gpus
from lpo_ray.config.gpus import most_engines
from lpo_ray.errors import ConfigError

QUICKSTART = Path(__file__).parents[2] / "configs" / "quickstart.yaml"


def overrides(rank: float, engine: float, *more: str) -> list[str]:
    return [f"learner.gpus_per_rank={rank}", f"rollout.gpus_per_worker={engine}", *more]


@pytest.mark.parametrize(
    ("rank", "engine", "more", "reason"),
    [
        (2, 1, (), "gpus_per_rank is 2; expected 0, 1 or a share: a rank computes on one GPU"),
        (1, 1.5, (), "gpus_per_worker is 1.5 with rollout.tensor_parallel_size=1"),
        (1.5, 1, (), "gpus_per_rank is 1.5; expected 0, 1 or a share"),
        (0.6, 0.5, (), "shares of one GPU; expected a sum of 1 at most, or 1 for both"),
        (0.5, 1, (), "a rank shares its GPU with an engine only, never with a rank: set learner.gpus_per_rank=1"),
        (0.5, 0, (), "a rank shares its GPU with an engine only"),
        (0.5, 0.5, ("rollout.num_workers=3",), "rollout.num_workers is 3.*learner.world_size=2 ranks.*2 at most"),
        (0.5, 0.5, ("rollout.autoscale.max=3", "pipeline.max_staleness=1"), "autoscale.max is 3"),
        (0.5, 0.5, ("learner.labels={pool: a}", "rollout.labels={pool: b}"), "pool=a and rollout.labels pool=b"),
    ],
)  # fmt: skip
def test_gpus_that_cannot_be_used_as_asked_are_refused(
    rank: float, engine: float, more: tuple[str, ...], reason: str
) -> None:
    with pytest.raises(ConfigError, match=reason):
        load_config(QUICKSTART, overrides(rank, engine, *more))


@pytest.mark.parametrize(
    ("rank", "engine", "more", "shared"),
    [
        (0, 0, (), False), (1, 1, (), False), (0, 0.5, (), False), (1, 0.5, (), False), (1, 0, (), False),
        (0.5, 0.5, (), True), (0.3, 0.7, ("rollout.num_workers=2",), True), (0.1, 0.2, (), True),
        (0.5, 0, ("learner.world_size=1",), False),
        (0.5, 0.5, ("learner.labels={pool: a}", "rollout.labels={pool: a, kind: x}"), True),
    ],
)  # fmt: skip
def test_shares_below_one_on_both_sides_are_of_the_same_gpus(
    rank: float, engine: float, more: tuple[str, ...], shared: bool
) -> None:
    config = load_config(QUICKSTART, overrides(rank, engine, *more))
    assert shares_gpus(config) == shared
    assert most_engines(config) == config.learner.world_size
