"""Each role's actors: where they run, in what environment, how often they are restarted.

Actor classes are plain classes; ``ray.remote`` is applied here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

import ray
from ray.actor import ActorClass, ActorProxy
from ray.util.placement_group import PlacementGroup
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from actors.control.log_shipping import in_run
from actors.learner.group import Formation, LearnerGroup, LearnerRules
from actors.learner.target_builder import RemoteTargetBuilder, TargetBuilder
from actors.learner.worker import LearnerWorker
from actors.rollout.remote import RemoteWorker
from actors.rollout.worker import EngineSettings, RolloutWorker, engine_environment
from actors.runtime.cpu_tuning import KEEP_BLOCKS
from actors.runtime.placement import Request, bundle, check_room, nodes, reserve
from actors.runtime.start_watch import PROGRESS, StartWatch
from actors.runtime.supervised import RestartableActor
from actors.transports.table import TRANSPORTS, Transport
from actors.verifier.remote import RemoteVerifier
from actors.verifier.service import ServiceSettings, VerifierService
from lpo_ray.common.restart_budget import RestartRule
from lpo_ray.common.step_schedule import StepSchedule
from lpo_ray.config.schema import Config, EngineKind
from lpo_ray.interfaces import Events
from lpo_ray.learner.settings import LearnerSettings
from lpo_ray.learner.targets import TargetRule
from lpo_ray.rollout.pool import PoolSettings, RolloutPool

A = TypeVar("A")
SERVICE_SECONDS = 120.0
"""in which the verifier service gives a verdict, beside the deadlines of the responses of a group"""
NODE_SHARE = 0.001
"""of the resource that each node has under its own name: enough to bind to it"""


def requests_of(config: Config) -> list[Request]:
    """Request room for the learner, the engines and the verifier, in this order; the target builder needs none."""
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
    """Environment of a process whose model is a local folder: it needs no hub, and must not wait for one."""
    return {"HF_HUB_OFFLINE": "1"} if Path(model_path).exists() else {}


def _watched(worker: type[A]) -> ActorClass[A]:
    """Make an actor class that can be asked for its effort while it starts."""
    return ray.remote(concurrency_groups={PROGRESS: 1})(worker)  # pyright: ignore[reportCallIssue] - not in its stubs


def _starts(config: Config) -> StartWatch:
    return StartWatch(config.supervision.start_silence_seconds)


def learner_group(config: Config, settings: LearnerSettings, restarts: RestartRule, events: Events) -> LearnerGroup:
    """Make the learner of all ranks, in one placement group; not started."""
    learner = config.learner
    offload = learner.zero.get("offload_param", {})
    rules = LearnerRules(
        learner.world_size,
        learner.world_size if learner.min_world_size is None else learner.min_world_size,
        settings.packing,
        learner.silence_seconds,
        config.supervision.start_seconds,
        config.supervision.start_silence_seconds,
        restarts,
        shards_on_disk=isinstance(offload, Mapping) and offload.get("device") == "nvme",
    )
    environment = {"OMP_NUM_THREADS": str(learner.threads), **_offline(settings.model_path)}
    if not learner.gpus_per_rank:
        environment |= {"DS_ACCELERATOR": "cpu", **KEEP_BLOCKS}
    actor = _watched(LearnerWorker)

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


def remote_verifier(
    config: Config, settings: ServiceSettings, model_path: str, restarts: RestartRule, events: Events
) -> RemoteVerifier:
    """Make the verifier service with its pool of processes; not started."""
    verifier = config.verifier
    actor = _watched(VerifierService).options(
        num_cpus=1,
        max_concurrency=10_000,
        runtime_env={"env_vars": _environment(config, {})},
        label_selector=dict(verifier.labels) or None,
    )

    def make(num_processes: int) -> ActorProxy[VerifierService]:
        pool = dataclasses.replace(settings.pool, num_processes=num_processes)
        resized = dataclasses.replace(settings, pool=pool)
        return actor.remote(model_path, resized, trust_remote_code=config.model.trust_remote_code)

    largest = max(config.sampling.group_size, config.evaluation.samples_per_prompt)
    silence_seconds = SERVICE_SECONDS + verifier.deadline_seconds * largest
    start_seconds = config.supervision.start_seconds
    return RemoteVerifier(
        make, verifier.num_processes, silence_seconds, _starts(config), start_seconds, restarts, events
    )


def remote_target_builder(
    config: Config, rules: StepSchedule[TargetRule], restarts: RestartRule, events: Events
) -> RemoteTargetBuilder:
    """Make the target builder; not started."""
    environment = _environment(config, {"OMP_NUM_THREADS": "1"})
    actor = _watched(TargetBuilder).options(num_cpus=0, runtime_env={"env_vars": environment})
    return RemoteTargetBuilder(
        RestartableActor(
            "target builder",
            lambda: actor.remote(rules),
            lambda builder: builder.start.remote(),
            restarts,
            events,
            _starts(config),
            config.supervision.start_seconds,
        )
    )


def rollout_pool(
    config: Config, settings: PoolSettings, model_path: str, context: int, transport: Transport, events: Events
) -> RolloutPool[RemoteWorker]:
    """Make the pool of the rollout workers that a run begins with; not started. Call it inside a running event loop."""
    spawn = rollout_spawner(config, model_path, context, transport, events)
    return RolloutPool(spawn, config.rollout.num_workers, settings=settings, events=events)


def rollout_spawner(
    config: Config, model_path: str, context: int, transport: Transport, events: Events
) -> Callable[[int, str], RemoteWorker]:
    """Return what makes a rollout worker, by number and name, for a model of ``context`` positions. Each worker has a
    placement group of its own, so that it can come and go.
    """
    rollout = config.rollout
    on_gpu = rollout.gpus_per_worker > 0
    asynchronous = rollout.engine is EngineKind.asynchronous or (rollout.engine is EngineKind.auto and on_gpu)
    settings = EngineSettings(
        model_path=model_path,
        dtype=rollout.dtype,
        max_model_len=context,
        max_num_seqs=rollout.max_num_seqs,
        tensor_parallel_size=rollout.tensor_parallel_size,
        gpu_memory_utilization=rollout.gpu_memory_utilization,
        enforce_eager=rollout.enforce_eager,
        asynchronous=asynchronous,
        on_cpu=not on_gpu,
        kv_cache_bytes=int(rollout.kv_cache_gib * 2**30),
        receiver=transport.receiver,
        inflight=config.pipeline.inflight,
        trust_remote_code=config.model.trust_remote_code,
    )
    environment = {**engine_environment(settings, rollout.threads), **_offline(model_path)}
    actor, starts = _watched(RolloutWorker), _starts(config)
    request = requests_of(config)[1]
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
                runtime_env={"env_vars": _environment(config, environment)},
            ).remote(name, settings)

        def note(text: str) -> None:
            events.note(f"{name}: {text}")

        return RemoteWorker(name, request, make, note, starts, config.cluster.placement_seconds)

    return spawn
