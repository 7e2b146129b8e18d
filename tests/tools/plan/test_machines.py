"""Where ``plan`` puts a run's bundles: as Ray and actors/roles.py do."""

from __future__ import annotations

from pathlib import Path

from lpo_ray.config import load_config
from lpo_ray.tools.plan.machines import Bundle, described, place
from lpo_ray.tools.plan.requirements import bundles, places_on

QUICKSTART = Path(__file__).parents[3] / "configs" / "quickstart.yaml"
NO_SPREAD: frozenset[str] = frozenset()


def placed(cluster: str, *overrides: str) -> dict[str, list[tuple[int, tuple[int, ...]]]] | str:
    found = places_on(load_config(QUICKSTART, overrides), described(cluster))
    if isinstance(found, str):
        return found
    roles = dict.fromkeys(where.role for where in found)
    return {role: [(where.machine, where.devices) for where in found if where.role == role] for role in roles}


def test_shares_go_to_the_fullest_gpu_as_ray_gives_them() -> None:
    found = place([Bundle("rollout", 1, 0.5)] * 3, described("4xH100"), spread=NO_SPREAD)
    assert [where.devices for where in found] == [(0,), (0,), (1,)]


def test_a_rank_and_an_engine_share_each_gpu() -> None:
    found = placed("4xH100", "learner.gpus_per_rank=0.5", "rollout.gpus_per_worker=0.5", "rollout.num_workers=2")
    assert found["learner"] == found["rollout"] == [(0, (0,)), (0, (1,))]
    assert found["verifier"] == [(0, ())]


def test_the_quickstart_on_a_gpu_takes_one() -> None:
    config = load_config(QUICKSTART.with_name("quickstart_gpu.yaml"), ())
    found = places_on(config, described("1xH100"))
    assert [(where.role, where.devices) for where in found] == [
        ("learner", (0,)), ("rollout", (0,)), ("verifier", ()),
    ]  # fmt: skip
    assert isinstance(places_on(config, described("8xcpu")), str)


def test_engines_in_parts_have_the_gpus_of_ranks_on_one_node() -> None:
    parts = ("learner.world_size=6", "learner.gpus_per_rank=0.4", "rollout.gpus_per_worker=0.6",
             "rollout.tensor_parallel_size=2")  # fmt: skip
    found = placed("2x3xH100", *parts, "rollout.num_workers=2")
    assert found["learner"] == [(0, (0,)), (0, (1,)), (0, (2,)), (1, (0,)), (1, (1,)), (1, (2,))]
    assert found["rollout"] == [(0, (0, 1)), (1, (0, 1))]
    assert placed("2x3xH100", *parts, "rollout.num_workers=3") == (
        "1 of 3 engines have no place: each needs the GPUs of 2 ranks on one node"
    )
    said = placed("4xH100", *parts)
    assert isinstance(said, str) and said.startswith(
        "2 of 6 shared GPU bundles (1 GPUs and 1.5 CPUs each, on one node)"
    )


def test_a_shared_gpu_is_asked_for_once() -> None:
    config = load_config(QUICKSTART, ["learner.gpus_per_rank=0.5", "rollout.gpus_per_worker=0.5"])
    assert sum(bundle.gpus for bundle in bundles(config)) == config.learner.world_size
    apart = load_config(QUICKSTART, ["learner.gpus_per_rank=1", "rollout.gpus_per_worker=1"])
    assert sum(bundle.gpus for bundle in bundles(apart)) == 3
