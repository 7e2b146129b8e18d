"""An engine's processes and GPUs: what goes together, as train, --dry-run and plan see it."""

from __future__ import annotations

from pathlib import Path

import pytest

from lpo_ray.config import load_config
from lpo_ray.config.engine import engine_processes, indivisible, is_asynchronous
from lpo_ray.config.schema import Config
from lpo_ray.errors import ConfigError

QUICKSTART = Path(__file__).parents[2] / "configs" / "quickstart.yaml"


def config_of(*overrides: str) -> Config:
    return load_config(QUICKSTART, [f"rollout.{override}" for override in overrides])


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["tensor_parallel_size=2", "gpus_per_worker=1"], "set rollout.gpus_per_worker=2"),
        (["tensor_parallel_size=2", "gpus_per_worker=0.5"], "set rollout.gpus_per_worker=2"),
        (["gpus_per_worker=4"], "set rollout.gpus_per_worker=1, or rollout.tensor_parallel_size=4"),
        (["gpus_per_worker=1.5"], "set rollout.gpus_per_worker=1"),
        (["gpus_per_worker=2", "engine_args={pipeline_parallel_size: 4}"], "set rollout.gpus_per_worker=4"),
        (["tensor_parallel_size=2", "engine=inprocess"], "expected rollout.engine=auto or asynchronous"),
        (
            ["engine_args={pipeline_parallel_size: 0}"],
            "is 0; expected a whole number, 1 or more",
        ),
        (["engine_args={pipeline_parallel_size: two}"], "is 'two'; expected a whole number"),
        (["engine_args={pipeline_parallel_size: true}"], "is True; expected a whole number"),
        (["max_model_len=0"], "rollout.max_model_len is 0; expected a number above 0"),
    ],
)
def test_processes_without_their_gpus_are_refused(overrides: list[str], said: str) -> None:
    with pytest.raises(ConfigError) as refused:
        config_of(*overrides)
    assert said in str(refused.value)


@pytest.mark.parametrize(
    ("overrides", "processes", "asynchronous"),
    [
        ([], 1, False), (["tensor_parallel_size=2"], 2, True), (["gpus_per_worker=0.5"], 1, True),
        (["gpus_per_worker=8", "tensor_parallel_size=4", "engine_args={pipeline_parallel_size: 2}"], 8, True),
        (["engine=asynchronous"], 1, True), (["gpus_per_worker=1", "engine=inprocess"], 1, False),
    ],
)  # fmt: skip
def test_an_engine_of_several_processes_is_asynchronous(
    overrides: list[str], processes: int, asynchronous: bool
) -> None:
    rollout = config_of(*overrides).rollout
    assert (engine_processes(rollout), is_asynchronous(rollout)) == (processes, asynchronous)


def test_a_model_is_cut_where_vllm_cuts_it() -> None:
    of_three, of_eight = config_of("tensor_parallel_size=3").rollout, config_of("tensor_parallel_size=8").rollout
    assert "does not divide the model's 32 attention heads" in str(indivisible(of_three, 32, 8, 36))
    assert "with 6 key-value heads" in str(indivisible(of_eight, 48, 6, 36))
    assert indivisible(of_eight, 32, 4, 36) is None
    staged = config_of("engine_args={pipeline_parallel_size: 4}").rollout
    assert "for a model of 3 layers" in str(indivisible(staged, 32, 8, 3))
