"""Every transport that works without a GPU, on real engines and ZeRO-3 ranks: what arrives is what the learner has.

The ranks and the engine stay up and take one model after the other, since starting processes is what costs time.
"""

from __future__ import annotations

import asyncio
import itertools
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from actors.cluster import Cluster
from actors.delivery import DeliverySettings
from actors.learner.worker import LearnerWorker
from actors.publisher import Publisher
from actors.roles import rollout_spawner
from actors.rollout.worker import RolloutWorker
from actors.transports.table import TRANSPORTS
from lpo_ray.errors import WeightsNotProved
from lpo_ray.policy.proof_limits import ProofLimits, is_mixture, open_limits
from lpo_ray.policy.tensor_digest import tensor_digest
from lpo_ray.policy.weights import Bucket
from lpo_ray.policy.weights_proof import probe_sequences
from lpo_ray.run.settings import engine_settings, learner_settings
from lpo_ray.run.spec import RunSpec
from tests.support.clusters import on_cluster
from tests.support.fakes import FakeEvents
from tests.support.learner_ranks import restart
from tests.support.real_specs import plan_of
from tests.support.transported_models import (
    MODELS,
    VOCABULARY,
    Case,
    look,
    make_model,
    on_ranks,
    perturb,
    reference,
    rounding,
)

pytestmark = [pytest.mark.long, pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(600)]
KINDS = ("shared_memory", "gloo", "object_store")
DTYPES = ("bfloat16", "float32")
SMALL = ("rollout.kv_cache_gib=0.2", "supervision.max_restarts=0", "rollout.silence_seconds=60")


@dataclass
class Seen:
    cases: dict[tuple[str, bool, str, str], list[Case]] = field(default_factory=dict)
    faults: dict[str, WeightsNotProved] = field(default_factory=dict)
    digests: dict[str, list[str]] = field(default_factory=dict)
    cast: tuple[str, str] = ("", "")
    """of a float32 learner's weights for bfloat16 engines: the learner's digest, and transformers'"""
    corrupted: dict[str, tuple[str, float]] = field(default_factory=dict)
    """kind of tensor -> why an engine with one in a wrong layout was refused, and how many times the limit that was"""
    slots: list[float] = field(default_factory=list)
    """memory of each rank for its buckets, in units of two of the largest"""


class Reusable:
    """One cluster whose ranks and engine are given one model after the other."""

    def __init__(self, cluster: Cluster, spec: RunSpec, seen: Seen, folder: Path) -> None:
        self.cluster, self.spec, self.seen, self.folder = cluster, spec, seen, folder
        self.baseline = folder / "proof.json"
        """of the model that it has"""

    async def use(self, path: Path, dtype: str) -> None:
        learner = self.cluster.learner
        settings = replace(learner_settings(self.spec, str(path)), dtype=dtype)
        pool = self.cluster.rollout
        for member in pool.members:
            member.worker.kill()
        spec = plan_of(self.folder, path, *SMALL, f"rollout.dtype={dtype}")
        engine, places = engine_settings(spec, str(path)), self.cluster.layout.engines
        pool._spawn = rollout_spawner(spec.config, engine, TRANSPORTS["shared_memory"], places, FakeEvents())
        await asyncio.gather(pool.start(), restart(learner, settings))
        self.baseline = path / "proof.json"

    async def publisher(self, kind: str, dtype: str, bucket_bytes: int = 1 << 16) -> Publisher:
        cluster, transport = self.cluster, TRANSPORTS[kind]
        manifest = await cluster.learner.open_export(transport, dtype, bucket_bytes)
        fresh = ProofLimits(
            probe_sequences([np.random.default_rng(0).integers(0, VOCABULARY, size=200)], 256),
            None,
            arithmetic={},
            full=dtype == "float32",
            mixture=is_mixture(tensor.name for tensor in manifest.tensors),
        )
        settings = DeliverySettings(
            transport, proof=open_limits(self.baseline, fresh), folder_is_version_0=True, processes_per_engine=1,
            prepare_seconds=30, join_seconds=30, transfer_seconds=30,
        )  # fmt: skip
        publisher = Publisher(cluster.learner, cluster.rollout, settings)
        cluster.rollout.admit = publisher.admit
        return publisher


async def all_cases(host: Reusable, policy: Path) -> None:
    for dtype, (name, tied) in itertools.product(DTYPES, MODELS):  # the last is what faults and digests go on with
        path = make_model(host.folder / f"{name}-{tied}-{dtype}", name, tied, policy)
        await host.use(path, dtype)
        publisher = await host.publisher("shared_memory", dtype)
        await publisher.measure()
        await publisher.publish(0)  # which is exact in bfloat16 too
        for number, kind in enumerate(KINDS):
            publisher = await host.publisher(kind, dtype)
            cases = host.seen.cases[name, tied, dtype, kind] = []
            for update in range(3):
                step = 1 + 3 * number + update
                await on_ranks(host.cluster.learner, perturb, step)
                publication = await publisher.publish(step)
                model = await reference(host.cluster.learner, path / f"step{step}", dtype)
                cases.append(await look(host.cluster, model, publication))
        if (name, dtype) == ("qwen3_moe", "bfloat16"):
            await all_corruptions(host, await host.publisher("shared_memory", dtype), 10)


CORRUPTIONS = {
    "attention": ("layers.1.self_attn.q_proj", lambda tensor: tensor.roll(32, 0)),  # a head
    "router": ("layers.1.mlp.gate.weight", lambda tensor: tensor.roll(1, 0)),
    "experts": ("layers.1.mlp.experts.gate_up_proj", lambda tensor: tensor.roll(1, 0)),
    "experts' output": ("layers.1.mlp.experts.down_proj", lambda tensor: tensor.roll(1, 0)),
    "norm": ("layers.1.input_layernorm", lambda tensor: tensor + 1),  # which some models add themselves
    "embedding": ("embed_tokens", lambda tensor: tensor.roll(1, 0)),
    "head": ("lm_head", lambda tensor: tensor.roll(1, 0)),
}
"""kind of tensor -> part of its name, and what becomes of it in an engine's loader: its bytes in the wrong place"""


async def all_corruptions(host: Reusable, publisher: Publisher, step: int) -> None:
    """An engine whose loader spoils one tensor is refused, and one that does not is not, in turn."""
    member = host.cluster.rollout.members[0]
    for number, kind in enumerate(CORRUPTIONS):
        await member.worker.handle.__ray_call__.remote(inject, kind)
        with pytest.raises(WeightsNotProved) as caught:
            await publisher.publish(step + 2 * number)
        host.seen.corrupted[kind] = (caught.value.why, caught.value.difference / caught.value.tolerance)
        await member.worker.handle.__ray_call__.remote(heal)
        await publisher.publish(step + 2 * number + 1)


def corrupt(worker: LearnerWorker) -> None:
    """One bit of a bucket changes after its digest was taken."""
    sender, staging = worker._sender, worker._staging
    ticket = sender.ticket

    def corrupted(bucket: int) -> object:
        if bucket == 1 and staging._rank == 0:
            staging.slots.held(bucket).view(torch.uint8)[5] ^= 1
        return ticket(bucket)

    sender.ticket = corrupted


def inject(worker: RolloutWorker, fault: str) -> None:
    engine = worker._engine._engine
    model = engine.collective_rpc(lambda worker: worker.weight_transfer_engine)[0].model
    if fault == "stale cache":
        engine.reset_prefix_cache = lambda **_: True
    elif fault == "not received":
        views = Bucket.share_views
        Bucket.share_views = lambda *arguments: (p for p in views(*arguments) if "layers.1.mlp.down_proj" not in p[0])
        Bucket.healed = views
    elif fault in CORRUPTIONS:
        load_weights, (part, spoil) = model.load_weights, CORRUPTIONS[fault]
        model.load_weights = lambda pairs: load_weights((n, spoil(t) if part in n else t) for n, t in pairs)
    elif fault == "not loaded":
        load_weights = model.load_weights
        model.load_weights = lambda pairs: load_weights(p for p in pairs if "1.mlp.down_proj" not in p[0])


def heal(worker: RolloutWorker) -> None:
    engine = worker._engine._engine
    model = engine.collective_rpc(lambda worker: worker.weight_transfer_engine)[0].model
    engine.__dict__.pop("reset_prefix_cache", None)
    model.__dict__.pop("load_weights", None)
    Bucket.share_views = getattr(Bucket, "healed", Bucket.share_views)


async def all_faults(host: Reusable) -> None:
    learner, member = host.cluster.learner, host.cluster.rollout.members[0]
    for step, fault in enumerate(("not received", "not loaded", "stale cache", "corrupted bucket")):
        publisher = await host.publisher("shared_memory", "float32")
        await publisher.publish(2 * step)
        await member.worker.handle.__ray_call__.remote(inject, fault)
        if fault == "corrupted bucket":
            await on_ranks(learner, corrupt)
        await on_ranks(learner, perturb, 7 + step)
        with pytest.raises(WeightsNotProved) as caught:
            await publisher.publish(2 * step + 1)
        host.seen.faults[fault] = caught.value
        await member.worker.handle.__ray_call__.remote(heal)


async def all_digests(host: Reusable) -> None:
    """The same weights through every transport and other bucket sizes."""
    for kind, bucket_bytes in itertools.product(KINDS, (1 << 12, 1 << 16, 1 << 24)):
        publication = await (await host.publisher(kind, "float32", bucket_bytes)).publish(1)
        host.seen.digests.setdefault(publication.version.digest, []).append(f"{kind} {bucket_bytes}")
    host.seen.digests.setdefault(await host.cluster.learner.digest(), []).append("learner alone")
    learner = host.cluster.learner
    manifest = await learner.open_export(TRANSPORTS["object_store"], "bfloat16", 1 << 16)
    weights = (await reference(learner, host.folder / "saved", "bfloat16")).state_dict()
    host.seen.cast = (await learner.digest(), manifest.digest({n: tensor_digest(w) for n, w in weights.items()}))
    for rank in learner.ranks:
        size = await rank.__ray_call__.remote(lambda worker: worker._staging.slots._elements.nbytes)
        host.seen.slots.append(size / (2 * manifest.slot_numel * 2))
    learner._rules = replace(learner._rules, shards_on_disk=True)  # then DeepSpeed gathers, as it does between hosts
    for kind in ("gloo", "object_store"):
        publication = await (await host.publisher(kind, "float32", 1 << 16)).publish(1)
        host.seen.digests.setdefault(publication.version.digest, []).append(f"{kind} gathered by DeepSpeed")


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory, tiny_policy: Path) -> Seen:
    folder = tmp_path_factory.mktemp("transports")
    spec = plan_of(folder, tiny_policy, *SMALL)
    found = Seen()

    async def use(cluster: Cluster) -> None:
        host = Reusable(cluster, spec, found, folder)
        await all_cases(host, tiny_policy)
        await all_faults(host)
        await all_digests(host)

    on_cluster(spec, tiny_policy, use)
    return found


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("name", "tied"), MODELS)
def test_after_each_of_three_updates_the_engine_is_transformers(
    seen: Seen, name: str, tied: bool, dtype: str, kind: str
) -> None:
    cases = seen.cases[name, tied, dtype, kind]
    assert len(cases) == 3
    for case in cases:
        assert case.greedy
        assert case.difference < rounding(name, dtype)
        proof = case.publication.proof
        assert 0 < proof["typical"] < 2.5 * proof["baseline"]  # 3 times are refused
        assert proof["typical_limit"] < (1e-4 if dtype == "float32" else 2e-2)
        assert case.versions == {case.publication.version.step}
    assert len({case.publication.version.digest for case in cases}) == 3


def test_one_flipped_bit_names_its_tensor(seen: Seen) -> None:
    error = seen.faults["corrupted bucket"]
    assert error.engine == "rollout worker 0"
    assert "the bytes of model.layers.0." in error.why
    assert "(1 tensors differ)" in error.why


def test_a_tensor_that_does_not_arrive_is_named(seen: Seen) -> None:
    assert seen.faults["not received"].why.startswith("model.layers.1.mlp.down_proj.weight did not arrive (1 of ")


def test_a_tensor_that_arrives_and_is_not_loaded_shows_in_the_probe(seen: Seen) -> None:
    error = seen.faults["not loaded"]
    assert error.why.startswith("its log-probs of the probe are not the learner's (the typical difference; with equal ")
    assert error.difference > 1e-3


@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_one_tensor_in_a_wrong_layout_shows_in_bfloat16(seen: Seen, kind: str) -> None:
    why, times = seen.corrupted[kind]
    assert "its log-probs of the probe are not the learner's" in why
    assert times > 1


def test_a_stale_prefix_cache_is_found(seen: Seen) -> None:
    error = seen.faults["stale cache"]
    assert error.why == "32 tokens of the probe came from a prefix cache older than these weights"
    assert error.difference > 1e-3  # and the log-prob read through it is wrong


def test_a_version_does_not_depend_on_transport_buckets_or_who_gathers(seen: Seen) -> None:
    assert [len(ways) for ways in seen.digests.values()] == [12]


def test_what_is_sent_is_cast_to_the_engines_dtype_by_the_sender(seen: Seen) -> None:
    sent, expected = seen.cast
    assert sent == expected


def test_a_rank_has_memory_for_two_buckets(seen: Seen) -> None:
    assert seen.slots == [1.0, 1.0]  # and it is the same memory
