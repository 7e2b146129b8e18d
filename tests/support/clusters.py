"""A real cluster for a test or a benchmark."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from actors.cluster import Cluster, build_cluster, connect, disconnect
from lpo_ray.run.signals import run_until_signal
from lpo_ray.run.spec import RunSpec
from tests.support.fakes import FakeEvents

T = TypeVar("T")


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


@dataclass
class Standing:
    """A cluster that stays up for one test module after the other. Its event loop goes on in a thread of its own."""

    spec: RunSpec
    policy: Path
    cluster: Cluster
    told: FakeEvents
    """what its components noted"""
    run: Callable[[Coroutine[Any, Any, Any]], Any]
    """does something with it, and returns the result"""
    step: int = -1
    """of the weights that were published last"""

    def next_step(self) -> int:
        """Number the weights that are published next; the first are those of the policy's folder."""
        self.step += 1
        return self.step


@contextlib.contextmanager
def standing_cluster(spec: RunSpec, policy: Path) -> Iterator[Standing]:
    """Start Ray and every actor of the plan, and end them with the context."""
    loop, told = asyncio.new_event_loop(), FakeEvents()
    thread = threading.Thread(target=loop.run_forever, name="cluster", daemon=True)
    thread.start()

    def run(work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, loop).result()

    connect(spec.config)
    try:
        cluster = run(build_cluster(spec, str(policy), told))
        try:
            yield Standing(spec, policy, cluster, told, run)
        finally:
            run(cluster.close())
    finally:
        disconnect()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
