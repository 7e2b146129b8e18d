"""Where a run's components live, on Ray or in this process: chosen once, and the only door of training, evaluation and
replay to ``actors``.
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from typing import Protocol

from lpo_ray.cli.console import StandardError
from lpo_ray.config.schema import ClusterKind, Config
from lpo_ray.errors import Interrupted
from lpo_ray.interfaces import Components, Events, Learner, RolloutEngine, Verifier
from lpo_ray.run import inprocess
from lpo_ray.run.recorder import Recorder
from lpo_ray.run.settings import engine_settings
from lpo_ray.run.signals import call_off_ray_alarm, interrupt_on_signal
from lpo_ray.run.spec import RunSpec
from lpo_ray.run.train import Steerable
from lpo_ray.telemetry.sinks import MetricsSink


class Backend(Protocol):
    """Makes the components of a run, all or a part of them. Everything but ``sinks`` happens within ``cluster``."""

    def cluster(self) -> AbstractContextManager[None]:
        """Have what the components run on. Raises ConfigError before anything is started."""
        ...

    def sinks(self) -> list[MetricsSink]:
        """Make the sinks that show a run's metrics where it runs."""
        ...

    def steerable(self, recorder: Recorder) -> Steerable | None:
        """Make what lets others query and scale the run that ``recorder`` observes; None where nobody can."""
        ...

    async def build(self, spec: RunSpec, model_path: str, events: Events) -> Components:
        """Build the five components."""
        ...

    def open_engines(
        self, spec: RunSpec, model_path: str
    ) -> AbstractAsyncContextManager[tuple[RolloutEngine, Verifier]]:
        """Open what evaluates, without a learner."""
        ...

    def open_learner(self, spec: RunSpec, model_path: str) -> AbstractAsyncContextManager[Learner]:
        """Open the learner alone."""
        ...


def backend_of(config: Config) -> Backend:
    """Choose by cluster.kind. Ray is imported here, when the configuration is known to be good."""
    return InprocessBackend() if config.cluster.kind is ClusterKind.inprocess else RayBackend(config)


def check_options(spec: RunSpec) -> None:
    """Check the options that only the learner's engine knows, and those that only vLLM knows. Raises ConfigError."""
    config = spec.config
    if config.cluster.kind is not ClusterKind.ray:
        return
    if config.learner.deepspeed:
        from actors.learner.deepspeed_options import check_options as check_deepspeed

        check_deepspeed(config.learner.deepspeed)
    check_engine_args(spec)


def check_engine_args(spec: RunSpec) -> None:
    """Check what is passed through to vLLM, which takes seconds to import. Raises ConfigError."""
    if spec.config.rollout.engine_args and spec.config.cluster.kind is ClusterKind.ray:
        from actors.rollout.engine_args import passed_through

        passed_through(engine_settings(spec, ""))


class InprocessBackend:
    """Backend without Ray, for a debugger and for fast tests."""

    def cluster(self) -> AbstractContextManager[None]:
        """Need nothing beside this process."""
        return contextlib.nullcontext()

    def sinks(self) -> list[MetricsSink]:
        """Make none: there is no cluster that shows metrics."""
        return []

    def steerable(self, recorder: Recorder) -> Steerable | None:
        """Return None: nobody can reach into this process."""
        return None

    async def build(self, spec: RunSpec, model_path: str, events: Events) -> Components:
        """Build the five components here."""
        return inprocess.build_inprocess(spec, model_path)

    def open_engines(
        self, spec: RunSpec, model_path: str
    ) -> AbstractAsyncContextManager[tuple[RolloutEngine, Verifier]]:
        """Build the engine and the verifier here."""
        return inprocess.open_engine(spec, model_path)

    @contextlib.asynccontextmanager
    async def open_learner(self, spec: RunSpec, model_path: str) -> AsyncIterator[Learner]:
        """Build the learner here."""
        yield inprocess.build_learner(spec, model_path)


class RayBackend:
    """Backend on a Ray cluster that is joined, or started and ended with the command."""

    def __init__(self, config: Config) -> None:
        """Import Ray and check the request; nothing is started yet. Raises ConfigError."""
        from actors import cluster
        from actors.runtime.ray_metrics import RayMetrics

        cluster.check(config)
        self._config, self._actors, self._metrics = config, cluster, RayMetrics

    @contextlib.contextmanager
    def cluster(self) -> Iterator[None]:
        """Join or start the cluster; leave or end it with the context."""
        try:
            self._actors.connect(self._config)
            interrupt_on_signal()  # Ray has put its own handler in place, which would end with exit code 15
            yield
        except SystemExit as stopped:
            call_off_ray_alarm()
            raise Interrupted(signal.SIGTERM, 0) from stopped
        finally:
            self._actors.disconnect()

    def sinks(self) -> list[MetricsSink]:
        """Make the sink of Ray's own metrics."""
        return [self._metrics(self._config.run.name)]

    def steerable(self, recorder: Recorder) -> Steerable:
        """Make the driver's side of the run's control actor."""
        recorder.on_cluster(self._actors.address())
        return self._actors.run_driver(self._config.run.name, recorder.note, recorder.worker_log)

    async def build(self, spec: RunSpec, model_path: str, events: Events) -> Components:
        """Start every actor of the run."""
        return await self._actors.build_cluster(spec, model_path, events)

    def open_engines(
        self, spec: RunSpec, model_path: str
    ) -> AbstractAsyncContextManager[tuple[RolloutEngine, Verifier]]:
        """Start the rollout workers and the verifier."""
        return self._actors.open_engines(spec, model_path, StandardError())

    def open_learner(self, spec: RunSpec, model_path: str) -> AbstractAsyncContextManager[Learner]:
        """Start the learner's ranks."""
        return self._actors.open_learner(spec, model_path, StandardError())
