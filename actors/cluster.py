"""The composition root on Ray: a plan in, the five components out. The only place that makes actors.

Actor classes are plain classes; ``ray.remote`` is applied here, with the resources and the environment of each role.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import os
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from pathlib import Path

import ray
import torch
from ray.actor import ActorProxy
from ray.util.placement_group import PlacementGroup
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from actors.attendant import Attendant
from actors.calls import call
from actors.inspection import inspect
from actors.join import join
from actors.learner_group import Formation, LearnerGroup, LearnerRules
from actors.learner_worker import LearnerWorker
from actors.malloc import KEEP_BLOCKS
from actors.placement import Request, bundle, check_room, nodes, reserve
from actors.publisher import Publisher
from actors.remote_worker import RemoteWorker
from actors.rollout_worker import EngineSettings, RolloutWorker, engine_environment
from actors.services import RemoteTargetBuilder, RemoteVerifier
from actors.supervised import Supervised
from actors.target_builder import TargetBuilder
from actors.transports import TRANSPORTS, Transport
from actors.verifier_service import VerifierService
from actors.verifier_settings import verifier_settings
from actors.watch import watch_nodes
from actors.worker_log import in_run
from lpo_ray.config.schema import Config, EngineKind, Inflight
from lpo_ray.errors import ConfigError
from lpo_ray.interfaces import Events, RolloutEngine, WeightTransport
from lpo_ray.plan import Plan
from lpo_ray.plugins import UnknownName, resolve
from lpo_ray.pool import Member, RolloutPool
from lpo_ray.proof import probe_sequences
from lpo_ray.records import Holder, Process, WeightsVersion
from lpo_ray.telemetry.log import LogLine

SERVICE_SECONDS = 120.0
"""that the verifier service has beside the deadlines of its responses"""
NODE_SHARE = 0.001
"""of the resource that each node has under its own name: enough to bind to it"""
AUTO = "auto"
"""transport.kind: by placement"""


@dataclass(slots=True)
class Cluster:
    """See interfaces.Components."""

    rollout: RolloutPool[RemoteWorker]
    verifier: RemoteVerifier
    target_builder: RemoteTargetBuilder
    learner: LearnerGroup
    transport: WeightTransport
    background: list[asyncio.Task[None]] = field(default_factory=list)
    """what looks after the cluster while the run goes on"""

    @property
    def processes(self) -> dict[str, Process]:
        """Of every actor, by name."""
        return {
            **dict(zip(self.learner.names, self.learner.processes, strict=False)),
            **{member.name: member.process for member in self.rollout.up()},
            self.verifier.service.name: self.verifier.service.process,
            self.target_builder.builder.name: self.target_builder.builder.process,
        }

    def lend(self) -> AbstractAsyncContextManager[RolloutEngine] | None:
        """See interfaces.Components."""
        return self.rollout.lend()

    def holders(self, stage: str) -> list[Holder]:
        """See interfaces.Components."""
        if stage in ("sample", "evaluate", "verify"):
            sampling = self.rollout.holders() if stage != "verify" else []
            return sampling + (self.verifier.holders() if stage != "sample" else [])
        ranks = self.learner.holders()
        if stage == "publish":
            return ranks + self.rollout.receivers()
        if stage == "anchor":
            return ranks or [self.target_builder.holder()]
        if stage == "project":
            return ranks or self.rollout.receivers()  # a new engine is given the weights before they change
        return ranks

    async def inspect(self, process: Process) -> str:
        """See interfaces.Components."""
        return await inspect(process)

    async def scale(self, role: str, count: int) -> str:
        """See interfaces.Components."""
        least = {"rollout": 0, "verifier": 1}
        if role not in least:
            raise ConfigError(f"{role}={count}; expected rollout=N or verifier=N: other roles have a fixed number")
        if count < least[role]:
            raise ConfigError(f"{role}={count}; expected {least[role]} or more")
        return self.rollout.scale(count) if role == "rollout" else await self.verifier.scale(count)

    async def close(self) -> None:
        """See interfaces.Components."""
        for task in self.background:
            task.cancel()
        await asyncio.gather(self.rollout.close(), self.verifier.close())
        self.target_builder.builder.kill()
        self.learner.kill()


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
        join(config.cluster.address, "cluster.address")
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_worker_niceness", "0")  # Ray's default is 15 for all; see actors.priority
    # Ray warns that it turned its token authentication on, which is what a cluster of our own should have.
    logging.getLogger("ray._private.authentication").setLevel(logging.ERROR)
    wanted = sum(b["CPU"] for request in _requests(config) for b in request.bundles) + 1
    ray.init(
        address="local",  # without it Ray joins whatever cluster it finds on this machine
        num_cpus=max(int(wanted + 0.999), os.cpu_count() or 1),
        include_dashboard=False,
        object_store_memory=int(config.cluster.object_store_gib * 2**30),
        log_to_driver=False,
        logging_level=logging.WARNING,
    )


def attendant(config: Config, note: Callable[[str], None], log: Callable[[LogLine], None]) -> Attendant:
    """For the run of ``config``, on the cluster that this process is connected to."""
    return Attendant(config.run.name, note, log)


def address() -> str:
    """Of the cluster that this process is connected to."""
    return ray.get_runtime_context().gcs_address


def disconnect() -> None:
    """Leave the cluster; a local one ends with all its processes."""
    ray.shutdown()


async def build_cluster(plan: Plan, model_path: str, events: Events) -> Cluster:
    """Start every actor of the run, in parallel, and wait until all are ready. On an error none stays behind."""
    config = plan.config
    requests = _requests(config)
    if not config.cluster.autoscaling:
        check_room(requests)
    transport = _transport_named(transport_kind(config, len(nodes()) + config.cluster.autoscaling))
    learner = _learner_group(plan, model_path, events)
    rollout = _rollout_pool(plan, model_path, transport, events)
    verifier = _verifier(plan, model_path, events)
    builder = _target_builder(plan, events)
    try:
        async with asyncio.TaskGroup() as starting:
            starting.create_task(learner.start())
            starting.create_task(rollout.start())
            starting.create_task(verifier.service.start())
            starting.create_task(builder.builder.start())
        publisher = await _publisher(plan, model_path, learner, rollout, transport)
    except BaseException:
        await rollout.close()
        verifier.service.kill()
        builder.builder.kill()
        learner.kill()
        raise
    watching = asyncio.get_running_loop().create_task(watch_nodes(rollout, events))
    return Cluster(rollout, verifier, builder, learner, publisher, [watching])


@contextlib.asynccontextmanager
async def open_learner(plan: Plan, model_path: str, events: Events) -> AsyncIterator[LearnerGroup]:
    """The learner's ranks alone, ended with the context."""
    learner = _learner_group(plan, model_path, events)
    check_room(_requests(plan.config)[:1])
    try:
        await learner.start()
        await _open_export(plan, learner, TRANSPORTS["object_store"])  # what is sent has a digest; nobody receives it
        yield learner
    finally:
        learner.kill()


@contextlib.asynccontextmanager
async def open_engines(
    plan: Plan, model_path: str, events: Events
) -> AsyncIterator[tuple[RolloutPool[RemoteWorker], RemoteVerifier]]:
    """The rollout workers and the verifier alone, ended with the context. Without a learner nothing is published: each
    engine serves what it has loaded from ``model_path``, wherever it runs.
    """
    config = plan.config
    if not config.cluster.autoscaling:
        check_room(_requests(config)[1:])
    rollout = _rollout_pool(plan, model_path, TRANSPORTS["object_store"], events)  # never used, and binds to no node
    verifier = _verifier(plan, model_path, events)
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
        await asyncio.gather(*(admit(member) for member in rollout.members))
        watching = asyncio.get_running_loop().create_task(watch_nodes(rollout, events))
        try:
            yield rollout, verifier
        finally:
            watching.cancel()
    finally:
        await asyncio.gather(rollout.close(), verifier.close())


def _requests(config: Config) -> list[Request]:
    learner, rollout = config.learner, config.rollout
    return [
        _learner_request(config, learner.world_size),
        Request(
            "rollout",
            [bundle(rollout.cpus_per_worker, rollout.gpus_per_worker)] * rollout.num_workers,
            "SPREAD",
            rollout.labels,
        ),
        Request("verifier", [bundle(1, 0)], "PACK", config.verifier.labels),
    ]


def _learner_request(config: Config, world_size: int) -> Request:
    learner = config.learner
    bundles = [bundle(learner.cpus_per_rank, learner.gpus_per_rank)] * world_size
    return Request("learner", bundles, "PACK", learner.labels)


def _environment(config: Config, extra: dict[str, str]) -> dict[str, str]:
    return {**in_run(config.run.name), "TOKENIZERS_PARALLELISM": "false", "RAY_USAGE_STATS_ENABLED": "0", **extra}


def _offline(model_path: str) -> dict[str, str]:
    """A local folder needs no hub, and must not wait for one."""
    return {"HF_HUB_OFFLINE": "1"} if Path(model_path).exists() else {}


def _learner_group(plan: Plan, model_path: str, events: Events) -> LearnerGroup:
    config, learner = plan.config, plan.config.learner
    offload = learner.zero.get("offload_param", {})
    rules = LearnerRules(
        learner.world_size,
        learner.world_size if learner.min_world_size is None else learner.min_world_size,
        plan.packing(),
        learner.deadline_seconds,
        plan.restart_rule(),
        shards_on_disk=isinstance(offload, Mapping) and offload.get("device") == "nvme",
    )
    environment = {"OMP_NUM_THREADS": str(learner.threads), **_offline(model_path)}
    if not learner.gpus_per_rank:
        environment |= {"DS_ACCELERATOR": "cpu", **KEEP_BLOCKS}
    settings, actor = plan.learner_settings(model_path), ray.remote(LearnerWorker)

    async def form(world_size: int) -> Formation:
        request = _learner_request(config, world_size)
        if not config.cluster.autoscaling:
            check_room([request])
        group = await reserve(request, config.cluster.placement_seconds, events.note)
        ranks = [
            actor.options(
                num_cpus=learner.cpus_per_rank,
                num_gpus=learner.gpus_per_rank,
                scheduling_strategy=PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=rank),
                runtime_env={"env_vars": _environment(config, environment)},
            ).remote(rank, world_size, settings)
            for rank in range(world_size)
        ]
        return Formation(ranks, group)

    return LearnerGroup(form, rules, events)


def _verifier(plan: Plan, model_path: str, events: Events) -> RemoteVerifier:
    config, verifier = plan.config, plan.config.verifier
    actor = ray.remote(VerifierService).options(
        num_cpus=1,
        max_concurrency=10_000,
        runtime_env={"env_vars": _environment(config, {})},
        label_selector=dict(verifier.labels) or None,
    )

    def make(num_processes: int) -> ActorProxy[VerifierService]:
        settings = verifier_settings(plan, num_processes)
        return actor.remote(model_path, settings, trust_remote_code=config.model.trust_remote_code)

    def deadline_of(num_processes: int) -> float:
        waves = -(-config.pipeline.groups_per_step * config.sampling.group_size // num_processes)
        return SERVICE_SECONDS + verifier.deadline_seconds * (1 + verifier.max_retries) * waves

    return RemoteVerifier(make, verifier.num_processes, deadline_of, plan.restart_rule(), events)


def _target_builder(plan: Plan, events: Events) -> RemoteTargetBuilder:
    environment = _environment(plan.config, {"OMP_NUM_THREADS": "1"})
    actor = ray.remote(TargetBuilder).options(num_cpus=0, runtime_env={"env_vars": environment})
    rule = plan.target_rule()
    return RemoteTargetBuilder(
        Supervised(
            "target builder",
            lambda: actor.remote(rule),
            lambda builder: builder.start.remote(),
            plan.restart_rule(),
            events,
        )
    )


def _rollout_pool(plan: Plan, model_path: str, transport: Transport, events: Events) -> RolloutPool[RemoteWorker]:
    spawn = _rollout_spawner(plan, model_path, transport, events)
    return RolloutPool(spawn, plan.config.rollout.num_workers, settings=plan.pool_settings(), events=events)


def _rollout_spawner(
    plan: Plan, model_path: str, transport: Transport, events: Events
) -> Callable[[int, str], RemoteWorker]:
    """Makes a rollout worker, by number and name. Each has a placement group of its own, so that it can come and go."""
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
        receiver=transport.receiver,
        inflight=plan.config.pipeline.inflight,
        trust_remote_code=plan.config.model.trust_remote_code,
    )
    environment = {**engine_environment(settings, rollout.threads), **_offline(model_path)}
    actor = ray.remote(RolloutWorker)
    request = _requests(plan.config)[1]
    place = dict(request.bundles[0])
    if transport is TRANSPORTS["shared_memory"]:
        place[f"node:{nodes()[0].name}"] = NODE_SHARE  # the learner's: the cluster has one, but more may join
    request = dataclasses.replace(request, bundles=[place])

    def spawn(index: int, name: str) -> RemoteWorker:
        def make(group: PlacementGroup) -> ActorProxy[RolloutWorker]:
            return actor.options(
                num_cpus=rollout.cpus_per_worker,
                num_gpus=rollout.gpus_per_worker,
                max_concurrency=100_000,
                scheduling_strategy=PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=0),
                runtime_env={"env_vars": _environment(plan.config, environment)},
            ).remote(name, settings)

        def note(text: str) -> None:
            events.note(f"{name}: {text}")

        return RemoteWorker(name, request, make, note, plan.config.cluster.placement_seconds)

    return spawn


def transport_kind(config: Config, num_nodes: int) -> str:
    """transport.kind, or for auto the fastest that works on all ``num_nodes`` of the cluster, since engines may join
    anywhere. Raises ConfigError when the one that was named cannot work there.
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
