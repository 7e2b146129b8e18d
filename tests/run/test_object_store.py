"""The size of the object store: from what a step needs, within what there is."""

from __future__ import annotations

from pathlib import Path

import pytest

from lpo_ray.config import load_config
from lpo_ray.config.schema import Config
from lpo_ray.run.object_store import GIB, LEAST, Room, needed_bytes, object_store_bytes
from lpo_ray.tools.plan.limits import store_notes

QUICKSTART = Path(__file__).parents[2] / "configs" / "quickstart.yaml"
LARGE = ("pipeline.groups_per_step=256", "sampling.group_size=16", "sampling.max_tokens=32768")
STEP = 12 * 256 * 16 * 32768


def config_of(*overrides: str) -> Config:
    return load_config(QUICKSTART, list(overrides))


def room(memory: float, *, available: float | None = None, shared: float | None = None) -> Room:
    sizes = memory, memory if available is None else available, memory if shared is None else shared
    return Room(*(int(size * GIB) for size in sizes))


@pytest.mark.parametrize(
    ("overrides", "steps"),
    [
        ((), 2),  # held, and on its way to the ranks
        (("pipeline.max_staleness=1", "objective.behaviour=engine"), 3),
        (("pipeline.oversample_groups=256", "pipeline.max_gib=100"), 4),
        (("pipeline.max_staleness=9", "objective.behaviour=engine", f"pipeline.max_gib={2 * STEP / GIB}"), 3),
    ],
)
def test_what_a_step_needs_is_what_is_held_and_what_is_on_its_way(overrides: tuple[str, ...], steps: int) -> None:
    assert needed_bytes(config_of(*LARGE, *overrides)) == pytest.approx(1.25 * steps * STEP, rel=1e-6)


def test_the_store_is_as_large_as_a_step_needs_within_what_there_is() -> None:
    large = config_of(*LARGE, "rollout.kv_cache_gib=2")
    needed = needed_bytes(large)
    assert object_store_bytes(config_of(), room(1000)) == LEAST
    assert object_store_bytes(large, room(1000)) == needed
    assert object_store_bytes(large, room(10)) == 3 * GIB
    assert object_store_bytes(large, room(1000, shared=2.5)) == 2 * GIB
    assert object_store_bytes(large, room(1000, available=4)) == 2 * GIB
    assert object_store_bytes(large, room(1000, shared=0.0625)) == LEAST  # Ray says what it does about that
    assert object_store_bytes(config_of(*LARGE, "cluster.object_store_gib=5.5"), room(1)) == int(5.5 * GIB)


def test_plan_says_when_the_store_is_too_small_and_what_to_do() -> None:
    large = config_of(*LARGE)
    assert store_notes(config_of(), GIB) == []
    assert store_notes(config_of(), None) == []
    assert store_notes(large, needed_bytes(large)) == []
    [here] = store_notes(large, GIB)
    assert "can have 3.8 GiB in Ray's object store, which has 1.0 here" in here
    [there] = store_notes(large, None)
    assert f"--object-store-memory={needed_bytes(large)} or more" in there
    assert store_notes(config_of(*LARGE, "cluster.kind=inprocess", "learner.world_size=1"), GIB) == []
