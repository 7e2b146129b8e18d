"""Shared fixtures."""

from __future__ import annotations

import os
from pathlib import Path

import psutil
import pytest
import torch
from hypothesis import settings

# Machines are noisy: how long an example takes says nothing about the code.
settings.register_profile("lpo", deadline=None, max_examples=50)
settings.load_profile("lpo")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
CLUSTER_BYTES = 7 * 2**30
"""memory that the processes of one test of the real stack take at most"""


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int | None:
    """With ``--dist loadgroup`` as many processes as the memory has room for clusters."""
    room = psutil.virtual_memory().total // CLUSTER_BYTES
    return max(1, min(room, psutil.cpu_count() or 1)) if config.getvalue("dist") == "loadgroup" else None


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> object | None:
    """With ``--dist loadgroup`` tests that share a cluster go to one process."""
    from tests.support.side_by_side import ByCluster

    return ByCluster(config, log) if config.getvalue("dist") == "loadgroup" else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what cannot run here: vLLM's CUDA build has no engine for CPUs, which all tests of the real stack but those
    marked gpu ask for.
    """
    if torch.version.cuda is None:
        return
    on_cpu = pytest.mark.skip(reason=f"its engines run on CPUs, and this torch is a CUDA build ({torch.__version__})")
    for item in items:
        if item.get_closest_marker("e2e") and not item.get_closest_marker("gpu"):
            item.add_marker(on_cpu)


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base policy of two training steps: small, real, and the same for every test."""
    from lpo_ray.tasks.base_policy import Recipe, cached_base_policy

    folder = tmp_path_factory.getbasetemp()
    if os.environ.get("PYTEST_XDIST_WORKER"):
        folder = folder.parent  # of all workers of this session: the first builds it
    return cached_base_policy(folder / "base", Recipe(steps=2, batch_size=8))
