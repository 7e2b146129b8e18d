"""Composition root on Ray: a spec in, the five components out, or a part of them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import TypeVar

import ray
import torch

from actors.control.driver import RunDriver
from actors.learner.group import LearnerGroup
from actors.learner.target_builder import RemoteTargetBuilder
from actors.publisher import DeliverySettings, Publisher
from actors.roles import learner_group, remote_target_builder, remote_verifier, requests_of, rollout_pool
from actors.rollout.node_drain import watch_nodes
from actors.rollout.remote import RemoteWorker
from actors.runtime.connection import join
from actors.runtime.inspection import inspect
from actors.runtime.placement import check_room, nodes
from actors.runtime.remote_calls import call
from actors.transports.table import TRANSPORTS, Transport
from actors.verifier.remote import RemoteVerifier
from actors.verifier.settings import verifier_settings
from lpo_ray.common.plugins import UnknownName, resolve
from lpo_ray.config.schema import Config
from lpo_ray.errors import ConfigError
from lpo_ray.interfaces import Events, RolloutEngine, WeightTransport
from lpo_ray.records import BusyWorker, Key, Process, WeightsVersion
from lpo_ray.rollout.member import Member
from lpo_ray.rollout.pool import RolloutPool
from lpo_ray.run import settings
from lpo_ray.run.ray_needs import check_needs
from lpo_ray.run.spec import RunSpec
from lpo_ray.telemetry.log import LogLine

T = TypeVar("T")
AUTO = "auto"
"""transport.kind: by placement"""


@dataclass(slots=True)
class Cluster:
    """The five components of a run as actors."""

    rollout: RolloutPool[RemoteWorker]
    verifier: RemoteVerifier
    target_builder: RemoteTargetBuilder
    learner: LearnerGroup
    transport: WeightTransport
    background: list[asyncio.Task[None]] = field(default_factory=list)
    """tasks that look after the cluster during the run"""

    @property
    def processes(self) -> dict[str, Process]:
        """Process of every actor, by name."""
        restartable = (self.verifier.service, self.target_builder.builder)
        return {
            **dict(zip(self.learner.names, self.learner.processes, strict=False)),
            **{member.name: member.process for member in self.rollout.up()},
            **{actor.name: actor.process for actor in restartable if actor.process is not None},
        }

    def lend(self) -> AbstractAsyncContextManager[RolloutEngine] | None:
        """Lend an engine that keeps its weights for as long; None when there is none to spare."""
        return self.rollout.lend()

    def busy(self, stage: str) -> list[BusyWorker]:
        """Name the workers at work on ``stage``, as far as it is known here."""
        if stage in ("sample", "evaluate", "verify"):
            sampling = self.rollout.busy() if stage != "verify" else []
            return sampling + (self.verifier.busy() if stage != "sample" else [])
        ranks = self.learner.busy()
        if stage == "publish":
            return ranks + self.rollout.receivers()
        if stage == "anchor":
            return ranks or self.target_builder.busy()
        if stage == "project":
            return ranks or self.rollout.receivers()  # a new engine is given the weights before they change
        return ranks

    def silence_of(self, key: Key) -> float:
        """Seconds since whoever holds a group gave a sign of life."""
        return min(self.rollout.silence_of(key), self.verifier.silence_of(key))

    async def inspect(self, process: Process) -> str:
        """Describe what ``process`` is doing, wherever it runs."""
        return await inspect(process)

    async def scale(self, role: str, count: int) -> str:
        """Have ``count`` workers of ``role`` from now on; returns what happens. Raises ConfigError."""
        least = {"rollout": 0, "verifier": 1}
        if role not in least:
            raise ConfigError(f"{role}={count}; expected rollout=N or verifier=N: other roles have a fixed number")
        if count < least[role]:
            raise ConfigError(f"{role}={count}; expected {least[role]} or more")
        return self.rollout.scale(count) if role == "rollout" else await self.verifier.scale(count)

    async def close(self) -> None:
        """End every actor of the run."""
        for task in self.background:
            task.cancel()
        await asyncio.gather(
            self.rollout.close(), self.verifier.close(), self.target_builder.builder.close(), self.learner.close()
        )


def check(config: Config) -> None:
    """Check what only this side of the Ray border knows, before anything starts. Raises ConfigError."""
    if config.transport.kind != AUTO:
        _transport_named(config.transport.kind)
    if not config.cluster.address:
        check_needs()


def _transport_named(kind: str) -> Transport:
    """Find a row of TRANSPORTS, or what "module:function" returns. Raises ConfigError."""
    try:
        found = resolve(kind, TRANSPORTS, "transport.kind")
    except UnknownName as error:
        raise ConfigError(str(error)) from error
    return found if isinstance(found, Transport) else found()


def connect(config: Config) -> None:
    """Join the cluster at cluster.address, or start one on this machine that ends with this process.

    The local cluster announces as many logical CPUs as the roles ask for: stages of a synchronous run take turns, so
    more roles than cores is the normal case on a small machine. What this process computes with torch, the metrics, is
    too little for a second thread, and one that finds no free core is waited for: milliseconds for a softmax of
    [64, 8].
    """
    torch.set_num_threads(1)
    if config.cluster.address:
        join(config.cluster.address, "cluster.address")
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_worker_niceness", "0")  # Ray's default is 15 for all; see actors.runtime.cpu_tuning
    # Ray warns that it turned its token authentication on, which is what a cluster of our own should have.
    logging.getLogger("ray._private.authentication").setLevel(logging.ERROR)
    wanted = sum(b["CPU"] for request in requests_of(config) for b in request.bundles) + 1
    ray.init(
        address="local",  # without it Ray joins whatever cluster it finds on this machine
        num_cpus=max(int(wanted + 0.999), os.cpu_count() or 1),
        include_dashboard=False,
        object_store_memory=int(config.cluster.object_store_gib * 2**30),
        log_to_driver=False,
        logging_level=logging.WARNING,
    )


def run_driver(run: str, note: Callable[[str], None], log: Callable[[LogLine], None]) -> RunDriver:
    """Make the driver's side of the control actor of ``run``, on the cluster that this process is connected to."""
    return RunDriver(run, note, log)


def address() -> str:
    """Address of the cluster that this process is connected to."""
    return ray.get_runtime_context().gcs_address


def disconnect() -> None:
    """Leave the cluster; a local one ends with all its processes."""
    ray.shutdown()


async def build_cluster(spec: RunSpec, model_path: str, events: Events) -> Cluster:
    """Start every actor of the run, in parallel, and wait until all are ready. On an error none stays behind."""
    config = spec.config
    requests = requests_of(config)
    if not config.cluster.autoscaling:
        check_room(requests)
    transport = _transport_named(transport_kind(config, len(nodes()) + config.cluster.autoscaling))
    learner = _learner(spec, model_path, events)
    rollout = _rollout(spec, model_path, transport, events)
    verifier = _verifier(spec, model_path, events)
    builder = remote_target_builder(config, settings.target_rules(spec), settings.restart_rule(spec), events)
    try:
        async with asyncio.TaskGroup() as starting:
            seconds = config.supervision.start_seconds
            starting.create_task(_started(events, "learner", seconds, learner.start()))
            starting.create_task(rollout.start())
            for actor in (verifier.service, builder.builder):
                starting.create_task(_started(events, actor.name, seconds, actor.start()))
        prepared = _publisher(spec, model_path, learner, rollout, transport)
        publisher = await _started(events, "sending of weights", config.learner.silence_seconds, prepared)
    except BaseException:
        await rollout.close()
        verifier.service.kill()
        builder.builder.kill()
        learner.kill()
        raise
    watching = asyncio.get_running_loop().create_task(watch_nodes(rollout, events))
    return Cluster(rollout, verifier, builder, learner, publisher, [watching])


async def _started(events: Events, name: str, seconds: float, start: Awaitable[T]) -> T:
    """Await ``start``, and show the component as starting meanwhile."""
    with events.starting(name, seconds):
        return await start


@contextlib.asynccontextmanager
async def open_learner(spec: RunSpec, model_path: str, events: Events) -> AsyncIterator[LearnerGroup]:
    """Start the learner's ranks alone, ended with the context."""
    learner = _learner(spec, model_path, events)
    check_room(requests_of(spec.config)[:1])
    try:
        await learner.start()
        await _open_export(
            spec.config, learner, TRANSPORTS["object_store"]
        )  # what is sent has a digest; nobody receives it
        yield learner
    finally:
        await learner.close()


@contextlib.asynccontextmanager
async def open_engines(
    spec: RunSpec, model_path: str, events: Events
) -> AsyncIterator[tuple[RolloutPool[RemoteWorker], RemoteVerifier]]:
    """Start the rollout workers and the verifier alone, ended with the context. Nothing is published: each
    engine serves what it has loaded from ``model_path``, wherever it runs.
    """
    config = spec.config
    if not config.cluster.autoscaling:
        check_room(requests_of(config)[1:])
    rollout = _rollout(spec, model_path, TRANSPORTS["object_store"], events)  # never used, and binds to no node
    verifier = _verifier(spec, model_path, events)
    version = WeightsVersion(0, "as loaded")

    async def admit(member: Member[RemoteWorker]) -> None:
        await call(
            member.worker.handle.serve_loaded.remote(str(version.step)),
            who=member.name, what="serve the weights it has loaded", seconds=config.transport.prepare_seconds,
        )  # fmt: skip
        rollout.serve([member], version)

    rollout.admit = admit
    try:
        async with asyncio.TaskGroup() as starting:
            starting.create_task(rollout.start())
            starting.create_task(verifier.service.start())
        await rollout.admit_all()
        watching = asyncio.get_running_loop().create_task(watch_nodes(rollout, events))
        try:
            yield rollout, verifier
        finally:
            watching.cancel()
    finally:
        await asyncio.gather(rollout.close(), verifier.close())


def transport_kind(config: Config, num_nodes: int) -> str:
    """Choose transport.kind, or for auto the fastest that works on all ``num_nodes`` of the cluster, since engines may
    join anywhere. Raises ConfigError when the one that was named cannot work there.
    """
    kind, gpus = config.transport.kind, (config.learner.gpus_per_rank, config.rollout.gpus_per_worker)
    if kind == "shared_memory" and num_nodes > 1:
        raise ConfigError(
            f"transport.kind=shared_memory, but the cluster has {num_nodes} nodes; expected one: set "
            "transport.kind=auto"
        )
    if kind in ("nccl", "cuda_ipc") and not all(gpus):
        raise ConfigError(
            f"transport.kind={kind} with learner.gpus_per_rank={gpus[0]:g} and rollout.gpus_per_worker={gpus[1]:g}; "
            "expected GPUs on both sides: set them, or transport.kind=auto"
        )
    if kind != AUTO:
        return kind
    if all(gpus):
        return "cuda_ipc" if num_nodes == 1 and all(share < 1 for share in gpus) else "nccl"
    if num_nodes == 1:
        return "shared_memory"
    return "object_store" if any(gpus) else "gloo"


def _learner(spec: RunSpec, model_path: str, events: Events) -> LearnerGroup:
    return learner_group(spec.config, settings.learner_settings(spec, model_path), settings.restart_rule(spec), events)


def _rollout(spec: RunSpec, model_path: str, transport: Transport, events: Events) -> RolloutPool[RemoteWorker]:
    return rollout_pool(spec.config, settings.pool_settings(spec), model_path, spec.context, transport, events)


def _verifier(spec: RunSpec, model_path: str, events: Events) -> RemoteVerifier:
    service = verifier_settings(spec.config.verifier, settings.overlong(spec), settings.sandbox(spec))
    return remote_verifier(spec.config, service, model_path, settings.restart_rule(spec), events)


async def _open_export(config: Config, learner: LearnerGroup, transport: Transport) -> None:
    await learner.open_export(transport, config.rollout.dtype, config.transport.bucket_mib * 2**20)


async def _publisher(
    spec: RunSpec, model_path: str, learner: LearnerGroup, rollout: RolloutPool[RemoteWorker], transport: Transport
) -> Publisher:
    await _open_export(spec.config, learner, transport)
    delivery = DeliverySettings(
        transport,
        processes_per_engine=spec.config.rollout.tensor_parallel_size,
        proof=settings.proof_limits(spec, model_path, (tensor.name for tensor in learner.manifest.tensors)),
        folder_is_version_0=spec.config.model.dtype in ("float32", spec.config.rollout.dtype),
        prepare_seconds=spec.config.transport.prepare_seconds,
        transfer_seconds=spec.config.transport.transfer_seconds,
    )
    publisher = Publisher(learner, rollout, delivery)
    await publisher.measure()
    rollout.admit = publisher.admit
    return publisher
