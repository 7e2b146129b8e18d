"""Adapters on the real stack: versions that are alive at once, faults on the way, an engine killed, another base.

One cluster with one engine, which takes adapters that ranks were given by noise; each version is beside PEFT's own.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import AutoPeftModelForCausalLM
from safetensors.torch import load_file, save_file

from actors.cluster import Cluster
from actors.learner.worker import LearnerWorker
from actors.rollout.worker import RolloutWorker
from lpo_ray.errors import GroupLost, LpoRayError
from lpo_ray.policy.weights import Bucket
from lpo_ray.records import PromptGroup, Publication, Sampling
from tests.support.builders import make_prompt
from tests.support.clusters import Standing, standing_cluster
from tests.support.real_specs import plan_of
from tests.support.transported_models import VOCABULARY, make_model, on_ranks

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(500)]
PROMPT, GROUP, FEEDERS = 40, 4, 3
TOLERANCE = 1e-3
LONG = Sampling(group_size=GROUP, temperature=1.0, max_tokens=180, seed=5)
SHORT = Sampling(group_size=GROUP, temperature=1.0, max_tokens=8, seed=6)
FAULTS = ("stale", "not active", "dropped")


@dataclass
class Seen:
    kind: str
    models: dict[int, torch.nn.Module] = field(default_factory=dict)
    """PEFT's model of each step"""
    publications: dict[int, Publication] = field(default_factory=dict)
    before: list[PromptGroup] = field(default_factory=list)
    """begun under step 1, running when step 2 was published"""
    running: int = 0
    """groups of these that had not ended when it was"""
    after: list[PromptGroup] = field(default_factory=list)
    faults: dict[str, str] = field(default_factory=dict)
    """fault -> what the publish said"""
    replaced: list[PromptGroup] = field(default_factory=list)
    """of the engine that replaced one that was killed"""
    restarts: int = 0
    other_base: str = ""
    """what was noted of an engine whose folder has another model than the learner read"""


def shake(worker: LearnerWorker, seed: int) -> None:
    """A random update of the adapter: the ranks' shards are those of one noise, as far as a shard is filled."""
    rank, policy = torch.distributed.get_rank(), worker._policy
    for name, parameter in policy.model.named_parameters():
        if not parameter.requires_grad:
            continue
        shard = parameter.ds_tensor
        generator = torch.Generator().manual_seed(seed * 1000 + len(name))
        noise = torch.randn(shard.numel() * policy.world_size, generator=generator) * 0.1
        shard.data.add_(noise[rank * shard.numel() :][: shard.numel()].view_as(shard).to(shard))


def prompts(count: int) -> Iterator[tuple[int, object]]:
    return ((number, make_prompt(number, length=PROMPT, vocabulary=VOCABULARY)) for number in range(count))


async def publish(cluster: Cluster, seen: Seen, folder: Path, step: int) -> None:
    if step:
        await on_ranks(cluster.learner, shake, step)
    saved = folder / f"step{step}"
    saved.mkdir()
    await cluster.learner.save(saved)
    seen.models[step] = AutoPeftModelForCausalLM.from_pretrained(saved / "policy", dtype=torch.float32).eval()
    seen.publications[step] = await cluster.transport.publish(step)


async def sample(cluster: Cluster, sampling: Sampling, attempt: int) -> list[PromptGroup]:
    return await asyncio.gather(*(cluster.rollout.sample(p, sampling, attempt) for _, p in prompts(FEEDERS)))


def inject(worker: RolloutWorker, fault: str) -> None:
    """Spoil what the next publish brings. The engine is in this process, so that its parts can be reached."""
    engine = worker._engine._engine
    vllm = engine.collective_rpc(lambda wrapper: wrapper.worker)[0]
    if fault == "dropped":
        views = Bucket.share_views
        Bucket.share_views = lambda *arguments: (p for p in views(*arguments) if "1.mlp.down_proj.lora_B" not in p[0])
        worker.heal = lambda: setattr(Bucket, "share_views", views)
    elif fault == "stale":
        serve, old = vllm._serve_adapter, dict(vllm.weight_transfer_engine.adapter)
        vllm._serve_adapter = lambda config, tensors, number, dropped: serve(config, old, number, dropped)
        worker.heal = lambda: vllm.__dict__.pop("_serve_adapter")
    elif fault == "not active":
        adapter = worker._engine.adapter
        adapter._request = lambda number: None
        worker.heal = lambda: adapter.__dict__.pop("_request")


def heal(worker: RolloutWorker) -> None:
    worker.heal()


async def look(standing: Standing, seen: Seen, folder: Path) -> None:
    cluster = standing.cluster
    for step in (0, 1):
        await publish(cluster, seen, folder, step)
    long = [asyncio.create_task(cluster.rollout.sample(p, LONG, 1)) for _, p in prompts(FEEDERS)]
    await asyncio.sleep(0.2)  # for the engine to begin them
    await publish(cluster, seen, folder, 2)
    seen.running = sum(not task.done() for task in long)
    seen.after = await sample(cluster, SHORT, 2)
    seen.before = await asyncio.gather(*long)
    (member,) = cluster.pool.members
    for number, fault in enumerate(FAULTS if seen.kind == "inprocess" else ()):
        await member.worker.handle.__ray_call__.remote(inject, fault)
        await on_ranks(cluster.learner, shake, 10 + number)
        try:
            await cluster.transport.publish(10 + number)
        except LpoRayError as error:
            seen.faults[fault] = str(error)
        await member.worker.handle.__ray_call__.remote(heal)
    await publish(cluster, seen, folder, 20)
    os.kill(member.process.pid, signal.SIGKILL)
    with pytest.raises(GroupLost):  # those that the pool gave to the killed one
        await sample(cluster, SHORT, 3)
    seen.replaced = await sample(cluster, SHORT, 4)  # once the replacement has its adapter
    seen.restarts = cluster.pool.statuses()[0].restarts
    if seen.kind == "inprocess":
        seen.other_base = await with_another_base(standing)


async def with_another_base(standing: Standing) -> str:
    """Kill the engine once its folder has another model, until its replacement was refused; returns what was noted."""
    weights, (member,) = standing.policy / "model.safetensors", standing.cluster.pool.members
    kept = shutil.copy(weights, weights.with_suffix(".kept"))
    tensors = load_file(weights)
    tensors["model.norm.weight"][0] += 1e-6
    save_file(tensors, weights.with_suffix(".other"), metadata={"format": "pt"})
    os.replace(weights.with_suffix(".other"), weights)
    known = len(standing.told.notes)
    os.kill(member.process.pid, signal.SIGKILL)
    with pytest.raises(GroupLost):  # that it is dead shows by what it is asked
        await sample(standing.cluster, SHORT, 5)
    async with asyncio.timeout(120):
        while not (said := [text for text in map(str, standing.told.notes[known:]) if "has digest" in text]):
            await asyncio.sleep(0.2)
    os.replace(kept, weights)
    return said[0]


@pytest.fixture(scope="module", params=["inprocess", pytest.param("asynchronous", marks=pytest.mark.long)])
def seen(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, tiny_policy: Path) -> Seen:
    folder = tmp_path_factory.mktemp(request.param)
    policy = make_model(folder / "policy", "qwen3", True, tiny_policy)
    spec = plan_of(
        folder, policy, f"rollout.engine={request.param}", "model.lora.rank=4", "pipeline.inflight=keep_version",
        "pipeline.max_staleness=1", "learner.world_size=1", "rollout.kv_cache_gib=0.2", "rollout.silence_seconds=240",
        "supervision.backoff_seconds=0", "transport.bucket_mib=1",
    )  # fmt: skip
    found = Seen(request.param)
    with standing_cluster(spec, policy) as standing:
        standing.run(look(standing, found, folder))
    return found


@torch.no_grad()
def difference(model: torch.nn.Module, group: PromptGroup) -> float:
    """Largest, of the engine's log-probs of a group to those of a full forward."""
    worst = 0.0
    for response in group.responses:
        sequence = torch.from_numpy(np.concatenate([group.prompt.token_ids, response.token_ids]))
        scores = model(sequence[None]).logits[0, PROMPT - 1 : -1].log_softmax(-1)
        expected = scores.gather(1, sequence[PROMPT:, None])[:, 0].numpy()
        worst = max(worst, float(np.abs(expected - response.behaviour_logprobs).max()))
    return worst


def versions(groups: list[PromptGroup]) -> set[int]:
    return {version for group in groups for r in group.responses for version in r.versions.tolist()}


def test_what_runs_ends_with_its_adapter_and_what_begins_has_the_new_one(seen: Seen) -> None:
    assert seen.running == FEEDERS  # the publish waited for none of them
    assert (versions(seen.before), versions(seen.after)) == ({1}, {2})
    for group in seen.before:
        assert difference(seen.models[1], group) < TOLERANCE < difference(seen.models[2], group)
    for group in seen.after:
        assert difference(seen.models[2], group) < TOLERANCE < difference(seen.models[1], group)


def test_the_adapter_alone_travels(seen: Seen) -> None:
    sent = {publication.num_bytes for publication in seen.publications.values()}
    parameters = seen.models[1].named_parameters()
    assert sent == {sum(4 * parameter.numel() for name, parameter in parameters if ".lora_" in name)}
    assert len({publication.version.digest for publication in seen.publications.values()}) == len(seen.publications)


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("dropped", "1.mlp.down_proj.lora_B.weight did not arrive"),
        ("stale", "its log-probs of the probe are not the learner's"),
        ("not active", "the adapter is not active"),
    ],
)
def test_a_fault_is_named(seen: Seen, fault: str, said: str) -> None:
    if seen.kind != "inprocess":
        pytest.skip("the engine core is another process, where nothing is injected")
    assert said in seen.faults[fault]


def test_an_engine_that_is_replaced_serves_the_adapter_of_now(seen: Seen) -> None:
    assert seen.restarts >= 1
    assert versions(seen.replaced) == {20}
    assert max(difference(seen.models[20], group) for group in seen.replaced) < TOLERANCE


def test_an_engine_that_has_read_another_model_is_refused(seen: Seen) -> None:
    if seen.kind != "inprocess":
        pytest.skip("seen with the other kind")
    assert "the model that it has read beside the adapter has digest" in seen.other_base
