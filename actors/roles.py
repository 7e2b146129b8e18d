"""Each role's actors: where they run, in what environment, how often they are restarted.

Actor classes are plain classes; ``ray.remote`` is applied here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import ray
from ray.actor import ActorClass, ActorProxy
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from actors.agents.endpoint import ENVIRONMENT as ENDPOINT_ENVIRONMENT
from actors.agents.endpoint import EndpointService
from actors.agents.programs import AgentService
from actors.agents.remote import RemoteEnvironments
from actors.agents.remote_agents import RemoteAgents, RemoteEndpoint, RemotePrograms
from actors.agents.service import EnvironmentService, MessageSettings
from actors.control.log_shipping import in_run
from actors.learner.group import Formation, LearnerGroup, LearnerRules
from actors.learner.target_builder import RemoteTargetBuilder, TargetBuilder
from actors.learner.worker import LearnerWorker
from actors.rollout.remote import RemoteWorker
from actors.rollout.worker import RolloutWorker, engine_environment
from actors.runtime.cpu_tuning import KEEP_BLOCKS
from actors.runtime.placement import Request, bundle, check_room
from actors.runtime.seats import OwnGroups, Places, Seat, SharedGpus, gpus_of, visible
from actors.runtime.start_watch import PROGRESS, StartWatch
from actors.runtime.supervised import RestartableActor
from actors.transports.table import Transport
from actors.verifier.remote import RemoteVerifier
from actors.verifier.service import ServiceSettings, VerifierService
from lpo_ray.agents.conversations import EnvironmentSettings
from lpo_ray.agents.endpoint.doorway import Doorway
from lpo_ray.agents.endpoint.settings import EndpointSettings
from lpo_ray.agents.programs.program import AgentSettings
from lpo_ray.common.restart_budget import RestartRule
from lpo_ray.common.step_schedule import StepSchedule
from lpo_ray.config.conversations import has_agent, is_conversation
from lpo_ray.config.engine import engine_processes, shares_gpus
from lpo_ray.config.schema import Config
from lpo_ray.interfaces import Events
from lpo_ray.learner.settings import LearnerSettings, offload_device
from lpo_ray.learner.targets import TargetRule
from lpo_ray.rollout.engine_settings import EngineSettings
from lpo_ray.rollout.pool import PoolSettings, RolloutPool

A = TypeVar("A")
SERVICE_SECONDS = 120.0
"""in which the verifier service gives a verdict, beside the deadlines of the responses of a group, and in which the
environment service says that it is there"""
NODE_SHARE = 0.001
"""of the resource that each node has under its own name: enough to bind to it"""


@dataclass(frozen=True, slots=True)
class Layout:
    """Where ranks and engines run."""

    ranks: Places
    engines: Places
    shared: SharedGpus | None
    """GPUs that a rank and an engine share; None: each has its own, or none"""

    def most_engines(self) -> int | None:
        """Count the engines that there is a place for; None: as many as the cluster holds."""
        return None if self.shared is None else self.shared.engines.most()

    def close(self) -> None:
        """Give back what outlives ranks and engines."""
        if self.shared is not None:
            self.shared.remove()


def layout_of(config: Config, num_ranks: int, *, on_node: str | None = None) -> Layout:
    """Lay out ``num_ranks`` ranks and the engines; 0: engines alone. ``on_node``: address of the node that engines must
    be on.
    """
    seconds = config.cluster.placement_seconds
    if shares_gpus(config):
        count = num_ranks or config.rollout.num_workers * engine_processes(config.rollout)
        shared = SharedGpus(_shared_request(config, count), engine_processes(config.rollout), seconds)
        return Layout(shared.ranks, shared.engines, shared)
    engine = _engines_request(config, 1)
    if on_node is not None:
        engine = dataclasses.replace(engine, bundles=[{**engine.bundles[0], f"node:{on_node}": NODE_SHARE}])
    return Layout(OwnGroups(_ranks_request(config, 1), seconds), OwnGroups(engine, seconds), None)


def requests_of(config: Config, *, ranks: bool = True, engines: bool = True) -> list[Request]:
    """Request room for the ranks, the engines, the verifier, the environments or agents, and their endpoint, in this
    order; the target builder needs none.
    """
    rollout = config.rollout
    verifier = [Request("verifier", [bundle(1, 0)], "PACK", config.verifier.labels)] if engines else []
    if engines and is_conversation(config.task):
        verifier.append(Request("environments", [bundle(1, 0)], "PACK", {}))
    if engines and has_agent(config.task):
        verifier.append(Request("endpoint", [bundle(1, 0)], "PACK", {}))
    if shares_gpus(config):
        count = config.learner.world_size if ranks else rollout.num_workers * engine_processes(config.rollout)
        return [_shared_request(config, count), *verifier]
    return [
        *([_ranks_request(config, config.learner.world_size)] if ranks else []),
        *([_engines_request(config, rollout.num_workers)] if engines else []),
        *verifier,
    ]


def _ranks_request(config: Config, count: int) -> Request:
    learner = config.learner
    if shares_gpus(config):
        return _shared_request(config, count)
    return Request("learner", [bundle(learner.cpus_per_rank, learner.gpus_per_rank)] * count, "PACK", learner.labels)


def _engines_request(config: Config, count: int) -> Request:
    rollout = config.rollout
    each = bundle(rollout.cpus_per_worker, rollout.gpus_per_worker)
    return Request("rollout", [each] * count, "SPREAD", rollout.labels)


def _shared_request(config: Config, count: int) -> Request:
    """Request one whole GPU for each rank and its part of an engine."""
    learner, rollout = config.learner, config.rollout
    each = bundle(learner.cpus_per_rank + rollout.cpus_per_worker / engine_processes(config.rollout), 1)
    return Request("learner and rollout, who share GPUs,", [each] * count, "PACK", {**rollout.labels, **learner.labels})


def _environment(config: Config, extra: dict[str, str], seats: Sequence[Seat] = ()) -> dict[str, str]:
    """Environment of an actor, which sees the GPUs of its seats and no others."""
    return {
        **in_run(config.run.name), "TOKENIZERS_PARALLELISM": "false", "RAY_USAGE_STATS_ENABLED": "0", **extra,
        **visible(gpus_of(seats)),
    }  # fmt: skip


def _offline(model_path: str) -> dict[str, str]:
    """Environment of a process whose model is a local folder: it needs no hub, and must not wait for one."""
    return {"HF_HUB_OFFLINE": "1"} if Path(model_path).exists() else {}


def _watched(worker: type[A]) -> ActorClass[A]:
    """Make an actor class that can be asked for its effort while it starts."""
    return ray.remote(concurrency_groups={PROGRESS: 1})(worker)  # pyright: ignore[reportCallIssue] - not in its stubs


def _starts(config: Config) -> StartWatch:
    return StartWatch(config.supervision.start_silence_seconds)


def learner_group(
    config: Config, settings: LearnerSettings, places: Places, restarts: RestartRule, events: Events
) -> LearnerGroup:
    """Make the learner of all ranks; not started."""
    learner = config.learner
    rules = LearnerRules(
        learner.world_size,
        learner.world_size if learner.min_world_size is None else learner.min_world_size,
        settings.packing,
        learner.silence_seconds,
        config.supervision.start_seconds,
        config.supervision.start_silence_seconds,
        restarts,
        shards_on_disk=offload_device(learner.deepspeed, "offload_param") == "nvme",
    )
    environment = {"OMP_NUM_THREADS": str(settings.threads or 1), **_offline(settings.model_path)}
    environment |= {"DS_ACCELERATOR": "cuda"} if settings.on_gpu else {"DS_ACCELERATOR": "cpu", **KEEP_BLOCKS}
    actor = _watched(LearnerWorker)

    async def form(world_size: int) -> Formation:
        if not config.cluster.autoscaling:
            check_room([_ranks_request(config, world_size)])
        seats = await places.take("the learner", world_size, events.note)
        ranks = [
            actor.options(
                num_cpus=learner.cpus_per_rank,
                num_gpus=learner.gpus_per_rank,
                scheduling_strategy=seat.strategy,
                runtime_env={"env_vars": _environment(config, environment, [seat])},
            ).remote(rank, world_size, settings)
            for rank, seat in enumerate(seats)
        ]
        return Formation(ranks, lambda: places.give_back(seats))

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


def remote_environments(
    config: Config,
    settings: EnvironmentSettings,
    messages: MessageSettings,
    model_path: str,
    restarts: RestartRule,
    events: Events,
) -> RemoteEnvironments:
    """Make the environment service with its child processes; not started."""
    actor = _watched(EnvironmentService).options(
        num_cpus=1,
        max_concurrency=100_000,
        runtime_env={"env_vars": _environment(config, _offline(model_path))},
    )

    def make(processes: int) -> ActorProxy[EnvironmentService]:
        hosted = dataclasses.replace(settings.hosted, processes=processes)
        resized = dataclasses.replace(settings, hosted=hosted)
        return actor.remote(model_path, resized, messages, trust_remote_code=config.model.trust_remote_code)

    return RemoteEnvironments(
        make, config.environment.processes, SERVICE_SECONDS, _starts(config), config.supervision.start_seconds,
        restarts, events,
    )  # fmt: skip


def remote_agents(
    config: Config, settings: AgentSettings, endpoint: EndpointSettings, restarts: RestartRule, events: Events
) -> RemoteAgents:
    """Make the endpoint and the service of the agents' programs, both on this node, since its loopback interface is
    where the endpoint listens; not started.
    """
    doorway = Doorway(endpoint.host, endpoint.port)
    endpoint = dataclasses.replace(endpoint, doorway=doorway.path)
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    starts, start_seconds = _starts(config), config.supervision.start_seconds
    shared = {"num_cpus": 1, "max_concurrency": 100_000, "scheduling_strategy": here}
    offline = _offline(endpoint.model_path)
    asked = _watched(EndpointService).options(
        **shared, runtime_env={"env_vars": _environment(config, {**ENDPOINT_ENVIRONMENT, **offline})}
    )
    run = _watched(AgentService).options(**shared, runtime_env={"env_vars": _environment(config, {})})

    def make(processes: int) -> ActorProxy[AgentService]:
        return run.remote(settings.with_processes(processes))

    asking = RemoteEndpoint(lambda: asked.remote(endpoint), SERVICE_SECONDS, starts, start_seconds, restarts, events)
    asking.url = f"http://{endpoint.host}:{doorway.port}"
    programs = RemotePrograms(
        make, config.environment.processes, SERVICE_SECONDS, starts, start_seconds, restarts, events
    )
    return RemoteAgents(asking, programs, doorway)


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
    config: Config,
    settings: PoolSettings,
    engine: EngineSettings,
    transport: Transport,
    places: Places,
    events: Events,
    *,
    blank: Callable[[], bool],
) -> RolloutPool[RemoteWorker]:
    """Make the pool of the rollout workers that a run begins with; not started. Call it inside a running event loop."""
    spawn = rollout_spawner(config, engine, transport, places, events, blank=blank)
    return RolloutPool(spawn, config.rollout.num_workers, settings=settings, events=events)


def rollout_spawner(
    config: Config,
    settings: EngineSettings,
    transport: Transport,
    places: Places,
    events: Events,
    *,
    blank: Callable[[], bool] = lambda: False,
) -> Callable[[int, str], RemoteWorker]:
    """Return what makes a rollout worker, by number and name. Each worker has a place of its own, so that it can come
    and go. ``blank``: whether the next engine is built without weights.
    """
    rollout = config.rollout
    environment = {**engine_environment(settings, rollout.threads), **_offline(settings.model_path)}
    actor, starts = _watched(RolloutWorker), _starts(config)
    num_seats = engine_processes(config.rollout) if shares_gpus(config) else 1

    def spawn(index: int, name: str) -> RemoteWorker:
        engine = dataclasses.replace(settings, blank=blank())

        def make(seats: list[Seat]) -> ActorProxy[RolloutWorker]:
            return actor.options(
                num_cpus=rollout.cpus_per_worker / num_seats,
                num_gpus=rollout.gpus_per_worker,
                max_concurrency=100_000,
                scheduling_strategy=seats[0].strategy,
                runtime_env={"env_vars": _environment(config, environment, seats)},
            ).remote(name, engine, transport.receiver)

        def note(text: str) -> None:
            events.note(f"{name}: {text}")

        return RemoteWorker(name, places, num_seats, make, note, starts, is_blank=engine.blank)

    return spawn
