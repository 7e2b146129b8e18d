"""The composition root on Ray: a plan in, the five components out. The only place that makes actors.

Actor classes are plain classes; ``ray.remote`` is applied here, with the resources and the environment of each role.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import ray
from ray.actor import ActorProxy
from ray.exceptions import RayError
from ray.util.placement_group import PlacementGroup, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from actors.calls import call, call_all
from actors.learner_group import LearnerGroup
from actors.learner_worker import KEEP_BLOCKS, LearnerWorker
from actors.placement import Request, bundle, check_capacity, reserve
from actors.rollout_pool import Member, RolloutPool
from actors.rollout_worker import EngineSettings, RolloutWorker
from actors.target_builder import TargetBuilder
from actors.transports import TRANSPORTS
from actors.verifier_service import VerifierService
from lpo_ray.config.schema import Config, EngineKind
from lpo_ray.errors import ConfigError
from lpo_ray.interfaces import WeightTransport
from lpo_ray.model import probe_sequences
from lpo_ray.plan import Plan
from lpo_ray.plugins import UnknownName, resolve
from lpo_ray.records import Anchor, PromptGroup, ScoredGroup, TargetGroup
from lpo_ray.tokenizer import Tokenizer

T = TypeVar("T")
SERVICE_SECONDS = 120.0
"""deadline of the light services' start and of a target build"""
PLACEMENT_SECONDS = 120.0


@dataclass(slots=True)
class RemoteVerifier:
    """Verifier over the service actor."""

    handle: ActorProxy[VerifierService]
    deadline_seconds: float

    async def score(self, group: PromptGroup) -> ScoredGroup:
        """See interfaces.Verifier."""
        what = f"score {group.prompt.prompt_id}"
        return await call(
            self.handle.score.remote(group), who="verifier service", what=what, seconds=self.deadline_seconds
        )


@dataclass(slots=True)
class RemoteTargetBuilder:
    """TargetBuilder over its actor."""

    handle: ActorProxy[TargetBuilder]

    async def build(self, groups: Sequence[ScoredGroup], anchor: Anchor) -> list[TargetGroup]:
        """See interfaces.TargetBuilder."""
        return await call(
            self.handle.build.remote(groups, anchor), who="target builder", what="build", seconds=SERVICE_SECONDS
        )


@dataclass(slots=True)
class Cluster:
    """See interfaces.Components."""

    rollout: RolloutPool
    verifier: RemoteVerifier
    target_builder: RemoteTargetBuilder
    learner: LearnerGroup
    transport: WeightTransport
    handles: list[ActorProxy]
    placements: list[PlacementGroup]
    pids: dict[str, int] = field(default_factory=dict)
    """process id of each actor, by name"""

    async def close(self) -> None:
        """See interfaces.Components."""
        await _ask_to_close([self.verifier.handle, *(member.handle for member in self.rollout.members)])
        _release(self.handles, self.placements)


def check(config: Config) -> None:
    """What only this side knows to be wrong, before anything starts. Raises ConfigError."""
    try:
        resolve(config.transport.kind, TRANSPORTS, "transport.kind")
    except UnknownName as error:
        raise ConfigError(str(error)) from error


def connect(config: Config) -> None:
    """Join the cluster at cluster.address, or start one on this machine that ends with this process.

    The local cluster announces as many logical CPUs as the roles ask for: stages of a synchronous run take turns, so
    more roles than cores is the normal case on a small machine.
    """
    if config.cluster.address:
        ray.init(address=config.cluster.address, log_to_driver=False, logging_level=logging.WARNING)
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
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


async def build_cluster(plan: Plan, model_path: str) -> Cluster:
    """Start every actor of the run, in parallel, and wait until all are ready. On an error none stays behind."""
    config = plan.config
    handles: list[ActorProxy] = []
    placements: list[PlacementGroup] = []
    try:
        learner_request, rollout_request, *_ = requests = _requests(config)
        check_capacity(requests)
        placements += [await reserve(learner_request, PLACEMENT_SECONDS)]
        placements += [await reserve(rollout_request, PLACEMENT_SECONDS)]
        ranks = _learner_ranks(plan, model_path, placements[0])
        members = _rollout_workers(plan, model_path, placements[1])
        verifier = config.verifier
        service = (
            ray.remote(VerifierService)
            .options(num_cpus=1, max_concurrency=10_000, runtime_env={"env_vars": _environment({})})
            .remote(model_path, verifier.num_processes, verifier.deadline_seconds, verifier.max_retries)
        )
        builder = (
            ray.remote(TargetBuilder)
            .options(num_cpus=0, runtime_env={"env_vars": _environment({"OMP_NUM_THREADS": "1"})})
            .remote(plan.target_rule())
        )
        handles += [*ranks, *(member.handle for member in members), service, builder]
        learner = LearnerGroup(ranks, plan.packing(), config.learner.deadline_seconds)
        rollout = RolloutPool(members, config.rollout.deadline_seconds)
        pids = await _start(learner, rollout, service, builder, config)
        transport = _transport(plan, model_path, learner, rollout)
    except BaseException:
        _release(handles, placements)
        raise
    attempts = 1 + verifier.max_retries
    waves = -(-config.pipeline.groups_per_step * config.sampling.group_size // verifier.num_processes)
    deadline = SERVICE_SECONDS + verifier.deadline_seconds * attempts * waves
    return Cluster(
        rollout, RemoteVerifier(service, deadline), RemoteTargetBuilder(builder), learner, transport, handles,
        placements, pids,
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
        learner = LearnerGroup(ranks, plan.packing(), plan.config.learner.deadline_seconds)
        await learner.start()
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


def _rollout_workers(plan: Plan, model_path: str, group: PlacementGroup) -> list[Member]:
    rollout = plan.config.rollout
    on_gpu = rollout.gpus_per_worker > 0
    asynchronous = rollout.engine is EngineKind.asynchronous or (rollout.engine is EngineKind.auto and on_gpu)
    environment = {"VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "WARNING", **_offline(model_path)}
    if not asynchronous:
        environment["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    if not on_gpu:
        environment |= {
            "VLLM_CPU_KVCACHE_SPACE": f"{rollout.kv_cache_gib:g}",
            "OMP_NUM_THREADS": str(rollout.threads),
            # Compiling the first log-prob batch costs seconds, and there is no Triton for CPUs.
            "TORCHDYNAMO_DISABLE": "1",
        }
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
    )
    actor = ray.remote(RolloutWorker)
    members = []
    for index in range(rollout.num_workers):
        name = f"rollout worker {index}"
        handle = actor.options(
            num_cpus=rollout.cpus_per_worker,
            num_gpus=rollout.gpus_per_worker,
            max_concurrency=100_000,
            scheduling_strategy=PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=index),
            runtime_env={"env_vars": _environment(environment)},
        ).remote(name, settings)
        members.append(Member(name, handle))
    return members


async def _start(
    learner: LearnerGroup,
    rollout: RolloutPool,
    service: ActorProxy[VerifierService],
    builder: ActorProxy[TargetBuilder],
    config: Config,
) -> dict[str, int]:
    members = rollout.members
    names = [member.name for member in members]
    light = ["verifier service", "target builder"]
    async with asyncio.TaskGroup() as starting:
        ranks = starting.create_task(learner.start())
        engines = starting.create_task(
            call_all(
                [member.handle.start.remote() for member in members],
                who=names,
                what="start its engine",
                seconds=config.rollout.deadline_seconds,
            )
        )
        services = starting.create_task(
            call_all([service.start.remote(), builder.start.remote()], who=light, what="start", seconds=SERVICE_SECONDS)
        )
    return {
        **{f"learner rank {rank}": pid for rank, pid in enumerate(ranks.result())},
        **dict(zip(names, engines.result(), strict=True)),
        **dict(zip(light, services.result(), strict=True)),
    }


def _transport(plan: Plan, model_path: str, learner: LearnerGroup, rollout: RolloutPool) -> WeightTransport:
    settings = plan.config.transport
    kind = resolve(settings.kind, TRANSPORTS, "transport.kind")
    probe = probe_sequences(len(Tokenizer.load(model_path)), plan.context)
    return kind(learner, rollout, probe, plan.tolerance, settings.deadline_seconds)


async def _ask_to_close(handles: list[ActorProxy[VerifierService] | ActorProxy[RolloutWorker]]) -> None:
    """Give actors that own processes ten seconds to end them; what is left is killed with the actor."""
    await asyncio.wait([asyncio.ensure_future(_closed(handle)) for handle in handles], timeout=10)


async def _closed(handle: ActorProxy[VerifierService] | ActorProxy[RolloutWorker]) -> None:
    try:
        await handle.close.remote()
    except RayError:
        return  # it is gone already, which is what was wanted


def _release(handles: list[ActorProxy], placements: list[PlacementGroup]) -> None:
    for handle in handles:
        ray.kill(handle)  # pyright: ignore[reportArgumentType] - an ActorProxy is an ActorHandle at run time
    for group in placements:
        remove_placement_group(group)
