"""Settings of the roles: what differs without Ray."""

from __future__ import annotations

from pathlib import Path

import pytest

from lpo_ray.config import load_config
from lpo_ray.run.settings import gradient_checkpointing, packing, rank_threads, recorder_settings, setup_of
from lpo_ray.run.spec import make_spec
from lpo_ray.telemetry.monitor.advice import Setup, advise

QUICKSTART = Path(__file__).parents[2] / "configs" / "quickstart.yaml"
RANKS = ["learner.world_size=4", "rollout.num_workers=3", "verifier.num_processes=2"]


@pytest.mark.parametrize(
    ("kind", "expected"), [("ray", Setup(0, 3, 4, 2)), ("inprocess", Setup(0, 1, 1, 1, in_process=True))]
)
def test_there_is_one_setup_of_what_runs(kind: str, expected: Setup, tiny_policy: Path, tmp_path: Path) -> None:
    overrides = [*RANKS, f"cluster.kind={kind}", f"model.path={tiny_policy}", f"run.dir={tmp_path}"]
    spec = make_spec(load_config(QUICKSTART, overrides))
    assert setup_of(spec.config) == recorder_settings(spec, str(tiny_policy)).setup == expected
    assert packing(spec).world_size == expected.world_size


def test_a_run_in_one_process_is_given_no_advice_on_ranks_and_workers() -> None:
    engines = {"sample": 0.2, "verify": 0.0, "wait": 0.8}
    learner = {"project": 0.8, "anchor": 0.0, "wait": 0.2}
    assert "learner.world_size=" in (advise(engines, learner, Setup(0, 1, 1, 1)) or "")
    assert advise(engines, learner, Setup(0, 1, 1, 1, in_process=True)) is None


def test_what_a_rank_does_by_default_follows_its_device() -> None:
    def of(*overrides: str) -> tuple[bool, int | None]:
        config = load_config(QUICKSTART, overrides)
        return gradient_checkpointing(config), rank_threads(config)

    gpu = "learner.gpus_per_rank=1"
    offload = "learner.deepspeed={zero_optimization: {offload_optimizer: {device: cpu}}}"
    assert of() == of(offload) == (False, 1)
    assert of(gpu) == (True, 1)
    assert of(gpu, offload) == (True, None)  # its share of the host's cores, which the optimizer runs on
    assert of(gpu, offload, "learner.threads=3", "learner.gradient_checkpointing=false") == (False, 3)
