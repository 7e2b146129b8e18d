"""The composition root on Ray: a plan in, the five components out. The only place that makes actors.

Actor classes are plain classes; ``ray.remote`` is applied here, with the resources and the environment of each role.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import ray
import torch
from ray.actor import ActorProxy
from ray.util.placement_group import PlacementGroup, placement_group_table, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from actors.calls import call, call_all, call_each
from actors.inspection import inspect
from actors.learner_group import LearnerGroup
from actors.learner_worker import KEEP_BLOCKS, LearnerWorker
from actors.placement import Request, bundle, check_capacity, reserve
from actors.publisher import Publisher
from actors.remote_worker import RemoteWorker
from actors.rollout_worker import EngineSettings, RolloutWorker, engine_environment
from actors.target_builder import TargetBuilder
from actors.transports import TRANSPORTS, Transport
from actors.verifier_service import VerifierService
from lpo_ray.config.schema import Config, EngineKind, Inflight
from lpo_ray.errors import ConfigError
from lpo_ray.interfaces import Events, WeightTransport
from lpo_ray.plan import Plan
from lpo_ray.plugins import UnknownName, resolve
from lpo_ray.pool import RolloutPool
from lpo_ray.proof import probe_sequences
from lpo_ray.records import Anchor, Holder, Key, Process, PromptGroup, ScoredGroup, TargetGroup

T = TypeVar("T")
SERVICE_SECONDS = 120.0
"""deadline of the light services' start and of a target build"""
PLACEMENT_SECONDS = 120.0
AUTO = "auto"
"""transport.kind: by placement"""


@dataclass(slots=True)
class RemoteVerifier:
    """Verifier over the service actor."""

    handle: ActorProxy[VerifierService]
    process: Process
    deadline_seconds: float
    groups: dict[Key, float] = field(default_factory=dict)
    """being scored, and since when in unix seconds"""

    async def score(self, group: PromptGroup) -> ScoredGroup:
        """See interfaces.Verifier. Only the rewards come back."""
        what, seconds = f"score {group.prompt.prompt_id}", self.deadline_seconds
        self.groups[group.key] = time.time()
        try:
            rewards = await call(self.handle.score.remote(group), who="verifier service", what=what, seconds=seconds)
            return ScoredGroup(group, rewards)
        finally:
            self.groups.pop(group.key, None)

    def holders(self) -> list[Holder]:
        """The service, when it has groups to score."""
        return [Holder.of_groups("verifier service", self.groups, self.process)] if self.groups else []


@dataclass(slots=True)
class RemoteTargetBuilder:
    """TargetBuilder over its actor."""

    handle: ActorProxy[TargetBuilder]
    process: Process

    async def build(self, groups: Sequence[ScoredGroup], anchor: Anchor) -> list[TargetGroup]:
        """See interfaces.TargetBuilder."""
        return await call(
            self.handle.build.remote(groups, anchor), who="target builder", what="build", seconds=SERVICE_SECONDS
        )


@dataclass(slots=True)
class Cluster:
    """See interfaces.Components."""

    rollout: RolloutPool[RemoteWorker]
    verifier: RemoteVerifier
    target_builder: RemoteTargetBuilder
    learner: LearnerGroup
    transport: WeightTransport
    handles: list[ActorProxy]
    """of everything but the rollout workers, which the pool replaces"""
    placements: list[PlacementGroup]
    processes: dict[str, Process] = field(default_factory=dict)
    """that each actor started with, by name"""

    def holders(self, stage: str) -> list[Holder]:
        """See interfaces.Components."""
        if stage in ("sample", "evaluate", "verify"):
            sampling = self.rollout.holders() if stage != "verify" else []
            return sampling + (self.verifier.holders() if stage != "sample" else [])
        ranks = self.learner.holders()
        if stage == "publish":
            return ranks + self.rollout.receivers()
        if stage == "anchor":
            return ranks or [Holder("target builder", "builds targets", None, self.target_builder.process)]
        if stage == "project":
            return ranks or self.rollout.receivers()  # a new engine is given the weights before they change
        return ranks

    async def inspect(self, process: Process) -> str:
        """See interfaces.Components."""
        return await inspect(process)

    async def close(self) -> None:
        """See interfaces.Components."""
        service = call_each([self.verifier.handle.close.remote()], who=["verifier service"], what="close", seconds=10)
        await asyncio.gather(self.rollout.close(), service)  # it owns processes; what is left dies with the actor
        _release(self.handles, self.placements)


def check(config: Config) -> None:
    """What only this side knows to be wrong, before anything starts. Raises ConfigError."""
    if config.transport.kind != AUTO:
        _transport_named(config.transport.kind)


def _transport_named(kind: str) -> Transport:
    """Row of TRANSPORTS, or what "module:function" returns. Raises ConfigError."""
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
        ray.init(address=config.cluster.address, log_to_driver=False, logging_level=logging.WARNING)
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_worker_niceness", "0")  # Ray's default is 15 for all; see actors.priority
    # Ray warns that it turned its token authentication on, which is what a cluster of our own should have.
    logging.getLogger("ray._private.authentication").setLevel(logging.ERROR)
    wanted = sum(b["CPU"] for request in _requests(config) for b in request.bundles) + 1
    ray.init(
        num_cpus=max(int(wanted + 0.999), os.cpu_count() or 1),
        include_dashboard=False,
        object_store_memory=int(config.cluster.object_store_gib * 2**30),
        log_to_driver=False,
        logging_level=logging.WARNING,
    )


def disconnect() -> None:
    """Leave the cluster; a local one ends with all its processes."""
    ray.shutdown()


async def build_cluster(plan: Plan, model_path: str, events: Events) -> Cluster:
    """Start every actor of the run, in parallel, and wait until all are ready. On an error none stays behind."""
    config = plan.config
    handles: list[ActorProxy] = []
    placements: list[PlacementGroup] = []
    rollout: RolloutPool[RemoteWorker] | None = None
    try:
        learner_request, rollout_request, *_ = requests = _requests(config)
        check_capacity(requests)
        placements += [await reserve(learner_request, PLACEMENT_SECONDS)]
        placements += [await reserve(rollout_request, PLACEMENT_SECONDS)]
        ranks = _learner_ranks(plan, model_path, placements[0])
        transport = _transport_named(transport_kind(config, _num_nodes(placements)))
        rollout = RolloutPool(
            _rollout_spawner(plan, model_path, placements[1], transport.receiver),
            config.rollout.num_workers,
            deadline_seconds=config.rollout.deadline_seconds,
            max_restarts=config.rollout.max_restarts,
            events=events,
        )
        verifier = config.verifier
        service = (
            ray.remote(VerifierService)
            .options(num_cpus=1, max_concurrency=10_000, runtime_env={"env_vars": _environment({})})
            .remote(
                model_path,
                verifier.num_processes,
                verifier.deadline_seconds,
                verifier.max_retries,
                trust_remote_code=config.model.trust_remote_code,
            )
        )
        builder = (
            ray.remote(TargetBuilder)
            .options(num_cpus=0, runtime_env={"env_vars": _environment({"OMP_NUM_THREADS": "1"})})
            .remote(plan.target_rule())
        )
        handles += [*ranks, service, builder]
        learner = _learner_group(plan, ranks)
        processes = await _start(learner, rollout, service, builder)
        publisher = await _publisher(plan, model_path, learner, rollout, transport)
    except BaseException:
        if rollout is not None:
            await rollout.close()
        _release(handles, placements)
        raise
    attempts = 1 + verifier.max_retries
    waves = -(-config.pipeline.groups_per_step * config.sampling.group_size // verifier.num_processes)
    deadline = SERVICE_SECONDS + verifier.deadline_seconds * attempts * waves
    return Cluster(
        rollout, RemoteVerifier(service, processes["verifier service"], deadline),
        RemoteTargetBuilder(builder, processes["target builder"]), learner, publisher, handles, placements, processes,
    )  # fmt: skip


@contextlib.asynccontextmanager
async def open_learner(plan: Plan, model_path: str) -> AsyncIterator[LearnerGroup]:
    """The learner's ranks alone, ended with the context."""
    handles: list[ActorProxy] = []
    placements: list[PlacementGroup] = []
    try:
        request, *_ = _requests(plan.config)
        check_capacity([request])
        placements += [await reserve(request, PLACEMENT_SECONDS)]
        handles += (ranks := _learner_ranks(plan, model_path, placements[0]))
        learner = _learner_group(plan, ranks)
        await learner.start()
        await _open_export(plan, learner, TRANSPORTS["object_store"])  # what is sent has a digest; nobody receives it
        yield learner
    finally:
        _release(handles, placements)


def _requests(config: Config) -> list[Request]:
    learner, rollout = config.learner, config.rollout
    return [
        Request("learner", [bundle(learner.cpus_per_rank, learner.gpus_per_rank)] * learner.world_size, "PACK"),
        Request("rollout", [bundle(rollout.cpus_per_worker, rollout.gpus_per_worker)] * rollout.num_workers, "SPREAD"),
        Request("verifier", [bundle(1, 0)], "PACK"),
    ]


def _environment(extra: dict[str, str]) -> dict[str, str]:
    return {"TOKENIZERS_PARALLELISM": "false", "RAY_USAGE_STATS_ENABLED": "0", **extra}


def _offline(model_path: str) -> dict[str, str]:
    """A local folder needs no hub, and must not wait for one."""
    return {"HF_HUB_OFFLINE": "1"} if Path(model_path).exists() else {}


def _learner_ranks(plan: Plan, model_path: str, group: PlacementGroup) -> list[ActorProxy[LearnerWorker]]:
    learner = plan.config.learner
    environment = {"OMP_NUM_THREADS": str(learner.threads), **_offline(model_path)}
    if not learner.gpus_per_rank:
        environment |= {"DS_ACCELERATOR": "cpu", **KEEP_BLOCKS}
    settings = plan.learner_settings(model_path)
    actor = ray.remote(LearnerWorker)
    return [
        actor.options(
            num_cpus=learner.cpus_per_rank,
            num_gpus=learner.gpus_per_rank,
            scheduling_strategy=PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=rank),
            runtime_env={"env_vars": _environment(environment)},
        ).remote(rank, learner.world_size, settings)
        for rank in range(learner.world_size)
    ]


def _learner_group(plan: Plan, ranks: list[ActorProxy[LearnerWorker]]) -> LearnerGroup:
    learner = plan.config.learner
    offload = learner.zero.get("offload_param", {})
    on_disk = isinstance(offload, Mapping) and offload.get("device") == "nvme"
    return LearnerGroup(ranks, plan.packing(), learner.deadline_seconds, shards_on_disk=on_disk)


def _rollout_spawner(
    plan: Plan, model_path: str, group: PlacementGroup, receiver: str
) -> Callable[[int, str], RemoteWorker]:
    """Makes the actor of a rollout worker, by number and name, in the worker's own bundle."""
    rollout = plan.config.rollout
    on_gpu = rollout.gpus_per_worker > 0
    asynchronous = rollout.engine is EngineKind.asynchronous or (rollout.engine is EngineKind.auto and on_gpu)
    settings = EngineSettings(
        model_path=model_path,
        dtype=rollout.dtype,
        max_model_len=plan.context,
        max_num_seqs=rollout.max_num_seqs,
        tensor_parallel_size=rollout.tensor_parallel_size,
        gpu_memory_utilization=rollout.gpu_memory_utilization,
        enforce_eager=rollout.enforce_eager,
        asynchronous=asynchronous,
        on_cpu=not on_gpu,
        kv_cache_bytes=int(rollout.kv_cache_gib * 2**30),
        receiver=receiver,
        inflight=plan.config.pipeline.inflight,
        trust_remote_code=plan.config.model.trust_remote_code,
    )
    environment = {**engine_environment(settings, rollout.threads), **_offline(model_path)}
    actor = ray.remote(RolloutWorker)

    def spawn(index: int, name: str) -> RemoteWorker:
        handle = actor.options(
            num_cpus=rollout.cpus_per_worker,
            num_gpus=rollout.gpus_per_worker,
            max_concurrency=100_000,
            scheduling_strategy=PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=index),
            runtime_env={"env_vars": _environment(environment)},
        ).remote(name, settings)
        return RemoteWorker(name, handle)

    return spawn


async def _start(
    learner: LearnerGroup,
    rollout: RolloutPool[RemoteWorker],
    service: ActorProxy[VerifierService],
    builder: ActorProxy[TargetBuilder],
) -> dict[str, Process]:
    light = ["verifier service", "target builder"]
    async with asyncio.TaskGroup() as starting:
        starting.create_task(learner.start())
        starting.create_task(rollout.start())
        services = starting.create_task(
            call_all([service.start.remote(), builder.start.remote()], who=light, what="start", seconds=SERVICE_SECONDS)
        )
    return {
        **dict(zip(learner.names, learner.processes, strict=True)),
        **{member.name: member.process for member in rollout.members},
        **dict(zip(light, services.result(), strict=True)),
    }


def transport_kind(config: Config, num_nodes: int) -> str:
    """transport.kind, or for auto the fastest that ``num_nodes``, on which learner and engines are, allow. Raises
    ConfigError when the one that was named cannot work there.
    """
    kind, gpus = config.transport.kind, (config.learner.gpus_per_rank, config.rollout.gpus_per_worker)
    if kind == "shared_memory" and num_nodes > 1:
        raise ConfigError(
            f"transport.kind=shared_memory, but learner and engines are on {num_nodes} nodes; expected one: set "
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


def _num_nodes(placements: Sequence[PlacementGroup]) -> int:
    tables = [placement_group_table(group)["bundles_to_node_id"] for group in placements]
    return len({node for table in tables for node in table.values()})


async def _open_export(plan: Plan, learner: LearnerGroup, transport: Transport) -> None:
    config = plan.config
    await learner.open_export(transport, config.rollout.dtype, config.transport.bucket_mib * 2**20)


async def _publisher(
    plan: Plan, model_path: str, learner: LearnerGroup, rollout: RolloutPool[RemoteWorker], transport: Transport
) -> Publisher:
    await _open_export(plan, learner, transport)
    return Publisher(
        learner,
        rollout,
        transport,
        probe=probe_sequences(len(plan.tokenizer(model_path)), plan.context),
        tolerance=plan.tolerance,
        processes_per_engine=plan.config.rollout.tensor_parallel_size,
        prepare_seconds=_prepare_seconds(plan.config),
        transfer_seconds=plan.config.transport.transfer_seconds,
    )


def _prepare_seconds(config: Config) -> float:
    """Engines that decode to the end what they have begun may take as long for it as a group may take. The publisher
    waits for one engine as long as it is told, and for several half as long.
    """
    if config.pipeline.inflight is not Inflight.finish:
        return config.transport.prepare_seconds
    return config.transport.prepare_seconds + config.rollout.deadline_seconds * min(config.rollout.num_workers, 2)


def _release(handles: list[ActorProxy], placements: list[PlacementGroup]) -> None:
    for handle in handles:
        ray.kill(handle)  # pyright: ignore[reportArgumentType] - an ActorProxy is an ActorHandle at run time
    for group in placements:
        remove_placement_group(group)
