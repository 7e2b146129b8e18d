"""Training runs on real actors in this process, with a recorder that acts on what it sees and ends them."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

import pytest
from rich.console import Console

from actors.cluster import Cluster, build_cluster, connect, disconnect
from lpo_ray.errors import Interrupted
from lpo_ray.interfaces import Events
from lpo_ray.run.folder import held
from lpo_ray.run.recorder import Recorder
from lpo_ray.run.signals import Signals, run_until_signal
from lpo_ray.run.spec import RunSpec
from lpo_ray.run.train import train
from tests.support.builders import recorder_of

S = TypeVar("S")


class Steering(Recorder, Generic[S]):
    """A recorder that knows what it steers, and keeps what it saw in ``seen``."""

    seen: S
    signals: Signals
    cluster: Cluster


def run_steered(
    spec: RunSpec, policy: Path, steering: type[Steering[S]], seen: S, attach: Callable[[Cluster], None] | None = None
) -> str:
    """Train until ``steering`` asks for the end; returns what the terminal showed. ``attach``: given the cluster."""
    output = io.StringIO()

    async def build(spec: RunSpec, model_path: str, events: Events) -> Cluster:
        recorder.cluster = cluster = await build_cluster(spec, model_path, events)
        if attach is not None:
            attach(cluster)
        return cluster

    async def work(signals: Signals) -> None:
        recorder.signals = signals
        with held(spec, print) as folder:
            await train(folder, str(policy), build, recorder, signals)

    connect(spec.config)
    try:
        recorder = recorder_of(spec, policy, Console(file=output, width=400))
        recorder.__class__, recorder.seen = steering, seen
        with pytest.raises(Interrupted):
            run_until_signal(work)
    finally:
        disconnect()
    return output.getvalue()
