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

from actors.agents.conducting import Conversations
from actors.agents.service import MessageSettings
from actors.control.driver import RunDriver
from actors.delivery import DeliverySettings
from actors.learner.group import LearnerGroup
from actors.learner.target_builder import RemoteTargetBuilder
from actors.publisher import Publisher
from actors.roles import (
    Layout,
    layout_of,
    learner_group,
    remote_agents,
    remote_environments,
    remote_target_builder,
    remote_verifier,
    requests_of,
    rollout_pool,
)
from actors.rollout.node_drain import watch_nodes
from actors.rollout.remote import RemoteWorker
from actors.runtime.connection import join
from actors.runtime.inspection import inspect
from actors.runtime.placement import check_room, nodes
from actors.runtime.remote_calls import call
from actors.runtime.supervised import RestartableActor
from actors.transports.table import TRANSPORTS, Transport
from actors.verifier.remote import RemoteVerifier
from actors.verifier.settings import verifier_settings
from lpo_ray.common.plugins import UnknownName, resolve
from lpo_ray.config.engine import engine_processes, less_precise, shares_gpus
from lpo_ray.config.gpus import auto_transport
from lpo_ray.config.lora import adapter_settings, has_adapter
from lpo_ray.config.schema import Config
from lpo_ray.errors import ConfigError
from lpo_ray.interfaces import Events, RolloutEngine, TurnEngine, WeightTransport
from lpo_ray.policy.proof_limits import ProofLimits, is_mixture
from lpo_ray.policy.weights import bucket_bytes
from lpo_ray.records import BusyWorker, Key, Process, WeightsVersion
from lpo_ray.rollout.member import Member
from lpo_ray.rollout.pool import RolloutPool
from lpo_ray.run import settings
from lpo_ray.run.builds import check_builds, vllm_build
from lpo_ray.run.object_store import object_store_bytes, room_here
from lpo_ray.run.ray_needs import check_needs
from lpo_ray.run.spec import RunSpec
from lpo_ray.tasks.prompt_form import form_of
from lpo_ray.telemetry.log import LogLine
from lpo_ray.training.call_store import FILE, CallStore

T = TypeVar("T")
AUTO = "auto"
"""transport.kind: by placement"""


@dataclass(slots=True)
class Cluster:
    """The five components of a run as actors."""

    pool: RolloutPool[RemoteWorker]
    verifier: RemoteVerifier
    target_builder: RemoteTargetBuilder
    learner: LearnerGroup
    transport: WeightTransport
    layout: Layout
    background: list[asyncio.Task[None]] = field(default_factory=list)
    """tasks that look after the cluster during the run"""
    conversations: Conversations | None = None
    """None: a response has one turn"""

    @property
    def rollout(self) -> RolloutEngine:
        """The pool, or what conducts conversations with it."""
        return _conducted(self.pool, self.conversations)

    @property
    def processes(self) -> dict[str, Process]:
        """Process of every actor, by name."""
        restartable: list[RestartableActor] = [self.verifier.service, self.target_builder.builder]
        restartable += _services(self.conversations)
        return {
            **dict(zip(self.learner.names, self.learner.processes, strict=False)),
            **{member.name: member.process for member in self.pool.up()},
            **{actor.name: actor.process for actor in restartable if actor.process is not None},
        }

    def lend(self) -> AbstractAsyncContextManager[RolloutEngine] | None:
        """Lend an engine that keeps its weights for as long; None when there is none to spare."""
        lent = self.pool.lend()
        return None if lent is None else self._conducting(lent)

    @contextlib.asynccontextmanager
    async def _conducting(self, lent: AbstractAsyncContextManager[TurnEngine]) -> AsyncIterator[RolloutEngine]:
        async with lent as engine:
            yield _conducted(engine, self.conversations)

    def busy(self, stage: str) -> list[BusyWorker]:
        """Name the workers at work on ``stage``, as far as it is known here."""
        if stage in ("sample", "evaluate", "verify"):
            sampling = [] if stage == "verify" else self._sampling()
            return sampling + (self.verifier.busy() if stage != "sample" else [])
        ranks = self.learner.busy()
        if stage == "publish":
            return ranks + self.pool.receivers()
        if stage == "anchor":
            return ranks or self.target_builder.busy()
        if stage == "project":
            return ranks or self.pool.receivers()  # a new engine is given the weights before they change
        return ranks

    def silence_of(self, key: Key) -> float:
        """Seconds since whoever holds a group gave a sign of life."""
        holders = [self.pool, self.verifier, *([] if self.conversations is None else [self.conversations.others])]
        return min(holder.silence_of(key) for holder in holders)

    def _sampling(self) -> list[BusyWorker]:
        """The engines and who speaks with them, as far as they are at work."""
        others = [] if self.conversations is None else self.conversations.others.busy()
        return others if others and not self.pool.has_work else self.pool.busy() + others

    async def inspect(self, process: Process) -> str:
        """Describe what ``process`` is doing, wherever it runs."""
        return await inspect(process)

    async def scale(self, role: str, count: int) -> str:
        """Have ``count`` workers of ``role`` from now on; returns what happens. Raises ConfigError."""
        least = {"rollout": 0, "verifier": 1, **({} if self.conversations is None else {"environment": 1})}
        if role not in least:
            *others, last = (f"{known}=N" for known in least)
            raise ConfigError(
                f"{role}={count}; expected {', '.join(others)} or {last}: other roles have a fixed number"
                + (", and this run has no environments" if role == "environment" else "")
            )
        if count < least[role]:
            raise ConfigError(f"{role}={count}; expected {least[role]} or more")
        most = self.layout.most_engines()
        if role == "rollout" and most is not None and count > most:
            raise ConfigError(
                f"rollout={count}; expected {most} at most: engines share the GPUs of {self.learner.world_size} ranks, "
                "which all have one then"
            )
        if role == "environment" and self.conversations is not None:
            return await self.conversations.others.scale(count)
        return self.pool.scale(count) if role == "rollout" else await self.verifier.scale(count)

    async def close(self) -> None:
        """End every actor of the run."""
        for task in self.background:
            task.cancel()
        await asyncio.gather(
            self.pool.close(), self.verifier.close(), self.target_builder.builder.close(), self.learner.close(),
            *([] if self.conversations is None else [self.conversations.close()]),
        )  # fmt: skip
        self.layout.close()


def _conducted(engine: TurnEngine, conversations: Conversations | None) -> RolloutEngine:
    return engine if conversations is None else conversations.with_engine(engine)


def check(config: Config) -> None:
    """Check what only this side of the Ray border knows, before anything starts. Raises ConfigError."""
    if config.transport.kind != AUTO:
        _transport_named(config.transport.kind)
    check_builds(config, vllm_build(), torch.__version__, torch_has_cuda=torch.version.cuda is not None)
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
        object_store_memory=object_store_bytes(config, room_here()),
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
    if not config.cluster.autoscaling:
        check_room(requests_of(config))
    transport = _transport_named(transport_kind(config, len(nodes()) + config.cluster.autoscaling))
    # The learner's node: the cluster has one, but more may join.
    on_node = nodes()[0].name if transport is TRANSPORTS["shared_memory"] else None
    layout = layout_of(config, config.learner.world_size, on_node=on_node)
    learner = _learner(spec, model_path, layout, events)
    proof = settings.proof_limits(spec, model_path)
    record = CallStore(spec.run_dir / FILE) if spec.has_agent else None
    # What vLLM quantizes, it may keep where NaN does not show; what is beside an adapter, no publish brings.
    exact = not less_precise(config.rollout) and not has_adapter(config)
    rollout = _rollout(spec, model_path, transport, layout, events, blank=lambda: exact and proof.proves_blank)
    verifier, conversations = _verifier(spec, model_path, events), _conversations(spec, model_path, events, record)
    builder = remote_target_builder(config, settings.target_rules(spec), settings.restart_rule(spec), events)
    try:
        async with asyncio.TaskGroup() as starting:
            seconds = config.supervision.start_seconds
            ranks = starting.create_task(_started(events, "learner", seconds, learner.start()))
            starting.create_task(_engines(rollout, after=ranks if layout.shared else None))
            for actor in (verifier.service, builder.builder, *_services(conversations)):
                starting.create_task(_started(events, actor.name, seconds, actor.start()))
        prepared = _publisher(spec, learner, rollout, transport, proof)
        publisher = await _started(events, "sending of weights", config.learner.silence_seconds, prepared)
    except BaseException:
        await rollout.close()
        for actor in (verifier.service, builder.builder, *_services(conversations)):
            actor.kill()
        learner.kill()
        layout.close()
        raise
    watching = asyncio.get_running_loop().create_task(watch_nodes(rollout, events))
    return Cluster(rollout, verifier, builder, learner, publisher, layout, [watching], conversations)


async def _engines(rollout: RolloutPool[RemoteWorker], *, after: asyncio.Task[None] | None) -> None:
    """Start the engines; where ranks share their GPUs ``after`` them: vLLM measures how much of a GPU is free, and must
    not do so while a rank fills it.
    """
    if after is not None:
        await asyncio.wait([after])
    await rollout.start()


async def _started(events: Events, name: str, seconds: float, start: Awaitable[T]) -> T:
    """Await ``start``, and show the component as starting meanwhile."""
    with events.starting(name, seconds):
        return await start


@contextlib.asynccontextmanager
async def open_learner(spec: RunSpec, model_path: str, events: Events) -> AsyncIterator[LearnerGroup]:
    """Start the learner's ranks alone, ended with the context."""
    layout = layout_of(spec.config, spec.config.learner.world_size)
    learner = _learner(spec, model_path, layout, events)
    check_room(requests_of(spec.config, engines=False))
    try:
        await learner.start()
        await _open_export(
            spec.config, learner, TRANSPORTS["object_store"]
        )  # what is sent has a digest; nobody receives it
        yield learner
    finally:
        await learner.close()
        layout.close()


@contextlib.asynccontextmanager
async def open_engines(
    spec: RunSpec, model_path: str, events: Events
) -> AsyncIterator[tuple[RolloutEngine, RemoteVerifier]]:
    """Start the rollout workers, the verifier and the environments alone, ended with the context. Nothing is published:
    each engine serves what it has loaded from ``model_path``, wherever it runs.
    """
    config = spec.config
    if not config.cluster.autoscaling:
        check_room(requests_of(config, ranks=False))
    layout = layout_of(config, 0)
    transport = TRANSPORTS["object_store"]  # it is never used
    rollout = _rollout(spec, model_path, transport, layout, events, blank=lambda: False)
    verifier, conversations = _verifier(spec, model_path, events), _conversations(spec, model_path, events)
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
            for service in (verifier.service, *_services(conversations)):
                starting.create_task(service.start())
        await rollout.admit_all()
        watching = asyncio.get_running_loop().create_task(watch_nodes(rollout, events))
        try:
            yield _conducted(rollout, conversations), verifier
        finally:
            watching.cancel()
    finally:
        await asyncio.gather(
            rollout.close(), verifier.close(), *([] if conversations is None else [conversations.close()])
        )
        layout.close()


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
    whole = all(share >= 1 for share in gpus)
    needs = {
        "nccl": (whole, "whole GPUs on both sides, since NCCL takes one process a GPU"),
        "cuda_ipc": (shares_gpus(config), "shares below 1 on both sides, since both must be on one GPU"),
    }
    met, expected = needs.get(kind, (True, ""))
    if not met:
        raise ConfigError(
            f"transport.kind={kind} with learner.gpus_per_rank={gpus[0]:g} and rollout.gpus_per_worker={gpus[1]:g}; "
            f"expected {expected}: set them, or transport.kind=auto"
        )
    return auto_transport(config, num_nodes) if kind == AUTO else kind


def _learner(spec: RunSpec, model_path: str, layout: Layout, events: Events) -> LearnerGroup:
    learner = settings.learner_settings(spec, model_path)
    return learner_group(spec.config, learner, layout.ranks, settings.restart_rule(spec), events)


def _rollout(
    spec: RunSpec,
    model_path: str,
    transport: Transport,
    layout: Layout,
    events: Events,
    *,
    blank: Callable[[], bool],
) -> RolloutPool[RemoteWorker]:
    pool, engine = settings.pool_settings(spec), settings.engine_settings(spec, model_path)
    return rollout_pool(spec.config, pool, engine, transport, layout.engines, events, blank=blank)


def _verifier(spec: RunSpec, model_path: str, events: Events) -> RemoteVerifier:
    service = verifier_settings(spec.config.verifier, settings.overlong(spec), settings.sandbox(spec))
    return remote_verifier(spec.config, service, model_path, settings.restart_rule(spec), events)


def _conversations(
    spec: RunSpec, model_path: str, events: Events, record: CallStore | None = None
) -> Conversations | None:
    if not spec.has_turns:
        return None
    task, rule, limits = spec.config.task, settings.restart_rule(spec), settings.agent_limits(spec)
    if spec.has_agent:
        endpoint = settings.endpoint_settings(spec, model_path)
        agents = remote_agents(spec.config, settings.agent_settings(spec), endpoint, rule, events)
        return Conversations(agents, limits, record)
    messages = MessageSettings(task.template, spec.max_prompt_tokens, form_of(task))
    hosted = settings.environment_settings(spec)
    return Conversations(remote_environments(spec.config, hosted, messages, model_path, rule, events), limits)


def _services(conversations: Conversations | None) -> list[RestartableActor]:
    return [] if conversations is None else conversations.services


async def _open_export(config: Config, learner: LearnerGroup, transport: Transport) -> None:
    size = bucket_bytes(config.transport.bucket_mib, on_device=transport.on_device)
    await learner.open_export(transport, config.rollout.dtype, size)


async def _publisher(
    spec: RunSpec,
    learner: LearnerGroup,
    rollout: RolloutPool[RemoteWorker],
    transport: Transport,
    proof: ProofLimits,
) -> Publisher:
    await _open_export(spec.config, learner, transport)
    proof.mixture = is_mixture(tensor.name for tensor in learner.manifest.tensors)
    delivery = DeliverySettings(
        transport,
        processes_per_engine=engine_processes(spec.config.rollout),
        proof=proof,
        folder_is_version_0=spec.config.model.dtype in ("float32", spec.config.rollout.dtype),
        adapter=adapter_settings(spec.config),
        prepare_seconds=spec.config.transport.prepare_seconds,
        join_seconds=spec.config.transport.join_seconds,
        transfer_seconds=spec.config.transport.transfer_seconds,
    )
    publisher = Publisher(learner, rollout, delivery)
    await publisher.measure()
    rollout.admit = publisher.admit
    return publisher
