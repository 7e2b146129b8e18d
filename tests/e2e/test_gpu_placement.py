"""Which GPUs each role sees, on two nodes of a real Ray that were told they have two GPUs each. Only what is inside the
actors is made up: where they are put, and in what environment, is what a run does.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import pytest
import ray
from ray.cluster_utils import Cluster

from actors import roles
from actors.learner.group import LearnerGroup
from actors.roles import Layout, layout_of, learner_group, remote_target_builder, remote_verifier, rollout_spawner
from actors.rollout.remote import RemoteWorker
from actors.transports.table import TRANSPORTS
from lpo_ray.common.restart_budget import RestartRule
from lpo_ray.config import load_config
from lpo_ray.config.schema import Config
from lpo_ray.errors import LearnerLost, NoRoom
from lpo_ray.run.settings import engine_settings, learner_settings
from lpo_ray.run.spec import RunSpec
from tests.support.fakes import FakeEvents
from tests.support.real_specs import QUICKSTART
from tests.support.seen_gpus import Actor, Engine, Rank, Seen, Service

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(240)]
OBJECT_STORE = 80 * 2**20
RESTARTS = RestartRule(9, 100.0, 0.0)
SECONDS = 60.0


@pytest.fixture(scope="module")
def nodes() -> Iterator[Cluster]:
    """A cluster of two nodes; the head is one of them."""
    node = {"num_cpus": 16, "num_gpus": 2, "object_store_memory": OBJECT_STORE}
    cluster = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
    try:
        cluster.add_node(**node)
        ray.init(address=cluster.address, log_to_driver=False)
        yield cluster
    finally:
        ray.shutdown()
        cluster.shutdown()


@pytest.fixture(autouse=True)
def light(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_ins = {"LearnerWorker": Rank, "RolloutWorker": Engine, "VerifierService": Actor, "TargetBuilder": Actor}
    for name, stand_in in stand_ins.items():
        monkeypatch.setattr(roles, name, stand_in)


@dataclass
class Roles:
    """Ranks and engines of a configuration, made by the code that makes a run's."""

    config: Config
    layout: Layout
    learner: LearnerGroup
    engines: dict[str, RemoteWorker] = field(default_factory=dict)

    async def start_engine(self, number: int) -> None:
        engine, transport = engine_settings(spec_of(self.config), "/no/model"), TRANSPORTS["object_store"]
        spawn = rollout_spawner(self.config, engine, transport, self.layout.engines, FakeEvents())
        self.engines[f"engine {number}"] = worker = spawn(number, f"engine {number}")
        await worker.start(SECONDS)

    async def ranks(self) -> list[Seen]:
        return [await rank.seen.remote() for rank in self.learner.ranks]

    async def engine(self, number: int) -> Seen:
        return await self.engines[f"engine {number}"].handle.seen.remote()

    def end(self) -> None:
        for worker in self.engines.values():
            worker.kill()
        self.learner.kill()
        self.layout.close()


def spec_of(config: Config) -> RunSpec:
    return RunSpec(config, Path(), None, 256, "exact")


async def start(*overrides: str) -> Roles:
    """Start all ranks, then all engines."""
    config = load_config(QUICKSTART, [*overrides, "cluster.placement_seconds=60"])
    layout = layout_of(config, config.learner.world_size)
    settings = learner_settings(spec_of(config), "/no/model")
    started = Roles(config, layout, learner_group(config, settings, layout.ranks, RESTARTS, FakeEvents()))
    try:
        await started.learner.start()
        await asyncio.gather(*(started.start_engine(number) for number in range(config.rollout.num_workers)))
    except BaseException:
        started.end()
        raise
    return started


def in_order(seen: list[Seen]) -> bool:
    """Whether ranks are numbered by node, then by GPU, and none shares a GPU with another."""
    places = [(one.node, one.gpus) for one in seen]
    nodes = list(dict.fromkeys(node for node, _ in places))
    expected = sorted(set(places), key=lambda place: (nodes.index(place[0]), int(place[1] or -1)))
    return places == expected and [one.rank for one in seen] == list(range(len(seen)))


async def test_whole_gpus_are_nobody_elses_and_an_engine_in_parts_sees_all_of_its_own(nodes: Cluster) -> None:
    run = await start(
        "learner.world_size=2", "learner.gpus_per_rank=1", "rollout.gpus_per_worker=2",
        "rollout.tensor_parallel_size=2",
    )  # fmt: skip
    try:
        ranks, engine = await run.ranks(), await run.engine(0)
        assert in_order(ranks)
        assert [rank.gpus for rank in ranks] == ["0", "1"]
        assert {rank.accelerator for rank in ranks} == {"cuda"}
        assert engine.gpus == "0,1"
        assert {engine.node} | {rank.node for rank in ranks} == {node["NodeID"] for node in ray.nodes()}
    finally:
        run.end()


async def test_roles_without_gpus_see_none_on_a_machine_that_has_them(nodes: Cluster) -> None:
    run = await start("learner.world_size=1")
    verifier = remote_verifier(run.config, Service(), "/no/model", RESTARTS, FakeEvents())
    builder = remote_target_builder(run.config, SimpleNamespace(), RESTARTS, FakeEvents()).builder
    try:
        others = [await actor.handle.seen.remote() for actor in (verifier.service, builder)]
        assert [one.gpus for one in [*await run.ranks(), await run.engine(0), *others]] == ["", "", "", ""]
        assert (await run.ranks())[0].accelerator == "cpu"
    finally:
        builder.kill()
        verifier.service.kill()
        run.end()


async def test_a_rank_and_an_engine_share_each_gpu_and_find_it_again(nodes: Cluster) -> None:
    run = await start("learner.gpus_per_rank=0.5", "rollout.gpus_per_worker=0.5", "rollout.num_workers=2")
    try:
        ranks = await run.ranks()
        engines = [await run.engine(number) for number in (0, 1)]
        assert in_order(ranks)
        assert sorted((one.node, one.gpus) for one in engines) == sorted((one.node, one.gpus) for one in ranks)
        assert run.layout.shared is not None
        run.layout.shared._seconds = 0.0
        with pytest.raises(NoRoom, match="engine 2 needs the GPU of 1 rank on one node, without an engine"):
            await run.start_engine(2)
        run.layout.shared._seconds = SECONDS
        assert run.layout.most_engines() == 2
        run.engines["engine 1"].kill()
        await run.start_engine(1)
        assert await run.engine(1) == engines[1]
        await run.learner.reform(LearnerLost("learner rank 1", "killed"))
        assert await run.ranks() == ranks
        assert await run.engine(0) == engines[0]
        run.engines["engine 0"].kill()
        await run.start_engine(3)  # another one, as after `scale`, takes the place that is free
        assert await run.engine(3) == engines[0]
    finally:
        run.end()


async def test_engines_in_parts_share_the_gpus_of_ranks_on_their_node_and_outlive_the_other(nodes: Cluster) -> None:
    run = await start(
        "learner.world_size=4", "learner.min_world_size=2", "learner.gpus_per_rank=0.4", "rollout.gpus_per_worker=0.6",
        "rollout.tensor_parallel_size=2", "rollout.num_workers=2",
    )  # fmt: skip
    try:
        ranks = await run.ranks()
        assert in_order(ranks)
        assert [rank.gpus for rank in ranks] == ["0", "1", "0", "1"]
        engines = [await run.engine(number) for number in (0, 1)]
        assert [engine.gpus for engine in engines] == ["0,1", "0,1"]
        assert {engine.node for engine in engines} == {rank.node for rank in ranks}
        lost = next(iter(nodes.worker_nodes))
        nodes.remove_node(lost)
        while len([node for node in ray.nodes() if node["Alive"]]) > 1:
            await asyncio.sleep(0.1)
        await run.learner.reform(LearnerLost("learner rank 3", "its node is gone"))
        left = await run.ranks()
        assert [rank.gpus for rank in left] == ["0", "1"]
        assert lost.node_id not in {rank.node for rank in left}
        assert run.layout.most_engines() == 1
    finally:
        run.end()
