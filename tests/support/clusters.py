"""A real cluster for a test or a benchmark."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

from actors.cluster import Cluster, build_cluster, connect, disconnect
from lpo_ray.run.signals import run_until_signal
from lpo_ray.run.spec import RunSpec
from tests.support.fakes import FakeEvents


def on_cluster(
    spec: RunSpec, model_path: Path | str, use: Callable[[Cluster], Awaitable[None]], told: FakeEvents | None = None
) -> None:
    """Start Ray and every actor of the plan, run ``use``, and end them all. ``told``: gets what components note."""

    async def main(_: object) -> None:
        cluster = await build_cluster(spec, str(model_path), told or FakeEvents())
        try:
            await use(cluster)
        finally:
            await cluster.close()

    connect(spec.config)
    try:
        run_until_signal(main)
    finally:
        disconnect()
