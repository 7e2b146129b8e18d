"""Who is left out of a publish, and what becomes of the others: the protocol with fakes in place of processes."""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import pytest

from actors.delivery import DeliverySettings
from actors.learner.worker import Staged
from actors.publisher import Publisher
from actors.rollout.worker import Delivery
from actors.transports.table import TRANSPORTS
from lpo_ray.common.silence import Progress
from lpo_ray.errors import ComponentFailed, DeadlineExceeded, LearnerLost, LpoRayError, WeightsNotProved
from lpo_ray.policy.lora import AdapterSettings
from lpo_ray.policy.proof_limits import ProofLimits
from lpo_ray.policy.tensor_digest import DIGEST_OF_ZEROS
from lpo_ray.policy.weights import Manifest, TensorMeta, make_manifest
from lpo_ray.records import FloatArray, Process, WeightsVersion
from lpo_ray.rollout.member import Member
from tests.support.member_pool import MemberPool
from tests.support.ray_fakes import NEVER, Reference, remote_worker

PROBE = [np.arange(3), np.arange(4)]
LOGPROBS = [np.zeros(2, np.float32), np.zeros(3, np.float32)]
MANIFEST = make_manifest([TensorMeta("a", (4,)), TensorMeta("b", (4,))], "float32", bucket_bytes=16, num_senders=1)
TOKENS = itertools.count()
DIGESTS = {"a": "1" * 32, "b": "2" * 32}


@dataclass
class Worker:
    """A rollout worker's handle. ``faults``: method -> what it answers, once for each entry."""

    name: str
    events: list[str]
    faults: dict[str, list[object]] = field(default_factory=dict)
    digests: dict[str, str] = field(default_factory=lambda: dict(DIGESTS))
    answers: list[FloatArray] = field(default_factory=lambda: [LOGPROBS[0], LOGPROBS[1][-1:]])
    as_loaded: list[FloatArray] = field(default_factory=lambda: [LOGPROBS[0], LOGPROBS[1][-1:]])
    seconds: dict[str, float] = field(default_factory=dict)
    """method -> how long it takes"""
    unfilled: list[str] = field(default_factory=list)
    """weights that a publish does not bring"""
    bare: list[FloatArray] | None = None
    """log-probs without its adapter"""
    base: str = "b" * 32
    """digest of the model beside its adapter"""
    decodes: bool = False
    """whether it says that it has sampled a token whenever it is asked"""

    def __getattr__(self, method: str) -> Worker.Method:
        return Worker.Method(self, method)

    @dataclass
    class Method:
        worker: Worker
        name: str

        def remote(self, *arguments: object) -> Reference:
            worker = self.worker
            if self.name == "progress":
                return Reference(Progress(next(TOKENS) if worker.decodes else 0))
            worker.events.append(f"{worker.name} {self.name}")
            if worker.faults.get(self.name):
                return Reference(worker.faults[self.name].pop(0))
            if self.name == "finish_update":
                return Reference(Delivery([worker.digests], worker.answers, 0, worker.unfilled, worker.bare))
            if self.name == "base_digest":
                return Reference(worker.base)
            if self.name == "answer":
                return Reference(worker.as_loaded)
            if self.name in worker.seconds:
                answer = Reference()
                asyncio.get_running_loop().call_later(worker.seconds[self.name], answer.answer, None)
                return answer
            return Reference(None)


class Learner:
    """A learner of one rank. ``faults``: of ``advance``, once for each entry."""

    manifest: Manifest = MANIFEST
    digests: Mapping[str, str] = DIGESTS

    def __init__(self, events: list[str]) -> None:
        self.weights_lock, self.published, self.generation = asyncio.Lock(), False, 1
        self.events, self.faults = events, list[LpoRayError]()

    async def offer(self, group: int, num_peers: int, keep: list[int], seconds: float) -> list[object]:
        self.kept = keep
        self.events.append(f"offer to {num_peers}")
        return [None]

    async def accept(self, seconds: float) -> None:
        self.events.append("accept")

    async def advance(self, sent: int | None, groups: list[int], seconds: float) -> list[Staged]:
        self.sent_to = groups
        self.events.append(f"advance {sent}")
        if sent is not None and self.faults:
            raise self.faults.pop(0)
        following = 0 if sent is None else sent + 1
        names = list(self.digests)
        return [Staged({names[following]: self.digests[names[following]]}, None)] if following < 2 else []

    async def probe(self, bundles: object, typical: float) -> list[FloatArray]:
        return LOGPROBS

    async def base_digest(self) -> str:
        self.events.append("base_digest")
        return "b" * 32

    async def digest(self) -> str:
        return self.manifest.digest(self.digests)


@dataclass
class Stage:
    """Everything around one publisher."""

    workers: list[Worker]
    members: list[Member]
    pool: MemberPool
    learner: Learner
    publisher: Publisher
    events: list[str]


def stage(kind: str, count: int = 2, replace: bool = False) -> Stage:
    events: list[str] = []
    workers = [Worker(f"w{number}", events) for number in range(count)]
    process = Process(1, "node", "127.0.0.1", ())
    members = [
        Member(number, worker.name, remote_worker(worker.name, worker), process, None)
        for number, worker in enumerate(workers)
    ]

    def fresh(member: Member) -> Member:
        return Member(member.index, name := member.name + "'", remote_worker(name, Worker(name, events)), process, None)

    pool, learner = MemberPool(members, fresh if replace else None), Learner(events)
    settings = DeliverySettings(
        TRANSPORTS[kind], proof=ProofLimits(PROBE, None, {}, full=True, mixture=False), folder_is_version_0=True,
        processes_per_engine=1, prepare_seconds=0.2, join_seconds=0.2, transfer_seconds=0.8,
    )  # fmt: skip
    return Stage(workers, members, pool, learner, Publisher(learner, pool, settings), events)


KINDS = pytest.mark.parametrize("kind", ["shared_memory", "gloo"])


@KINDS
async def test_buckets_go_out_while_the_next_is_staged_and_release_comes_last(kind: str) -> None:
    at = stage(kind, count=1)
    publication = await at.publisher.publish(7)
    assert at.events == [
        "w0 begin_update", "offer to 1", "w0 join_senders", "accept", "advance None", "w0 receive", "advance 0",
        "w0 receive", "advance 1", "w0 finish_update", "w0 release",
    ]  # fmt: skip
    assert publication.version == WeightsVersion(7, MANIFEST.digest(DIGESTS)) == at.members[0].version
    assert publication.num_bytes == 32
    assert at.learner.published
    at.events.clear()
    await at.publisher.publish(8)
    assert "w0 join_senders" not in at.events


@KINDS
@pytest.mark.parametrize(
    ("method", "phase"),
    [("begin_update", "prepare"), ("join_senders", "join"), ("receive", "transfer"), ("release", "prove")],
)
async def test_what_a_phase_took_is_told_from_the_others(kind: str, method: str, phase: str) -> None:
    at = stage(kind, count=1)
    at.workers[0].seconds[method] = 0.1
    publication = await at.publisher.publish(1)
    assert list(publication.phases) == ["prepare", "join", "gather", "transfer", "prove"]
    assert [name for name, seconds in publication.phases.items() if seconds >= 0.1] == [phase]
    assert sum(publication.phases.values()) == pytest.approx(publication.seconds, abs=0.05)
    assert (await at.publisher.publish(2)).phases["join"] < 0.05  # it has joined


@KINDS
@pytest.mark.parametrize("method", ["begin_update", "join_senders", "receive", "finish_update"])
async def test_an_engine_that_does_not_answer_is_left_out_and_named(kind: str, method: str) -> None:
    at = stage(kind)
    at.workers[1].faults[method] = [NEVER]
    publication = await at.publisher.publish(1)
    assert at.members[0].version == publication.version
    assert at.members[1].version is None
    error = at.pool.out["w1"]
    assert isinstance(error, DeadlineExceeded)
    assert error.who == "w1"


async def test_without_a_collective_the_others_go_on_with_the_next_bucket() -> None:
    at = stage("shared_memory")
    at.workers[1].faults["receive"] = [NEVER]
    started = asyncio.get_running_loop().time()
    await at.publisher.publish(1)
    assert at.events.count("advance 0") == 1
    assert at.events.count("w0 receive") == 2
    # half of transfer_seconds went to the one that hangs
    assert 0.4 <= asyncio.get_running_loop().time() - started < 0.8


async def test_an_engine_lost_while_it_prepares_does_not_break_the_group_of_the_others() -> None:
    at = stage("gloo")
    at.workers[1].faults["begin_update"] = [NEVER]
    await at.publisher.publish(1)
    assert [event for event in at.events if event.startswith("offer")] == ["offer to 1"]
    assert at.events.count("advance None") == 1


async def test_a_collective_that_breaks_is_formed_anew_without_the_dead() -> None:
    at = stage("gloo")
    at.workers[1].faults["receive"] = [NEVER]
    at.workers[0].faults["receive"] = [RuntimeError("connection closed by peer")]
    at.learner.faults = [ComponentFailed("learner rank 0", "send bucket 0", "TimeoutError")]
    await at.publisher.publish(1)
    assert list(at.pool.out) == ["w1"]
    assert [event for event in at.events if event.startswith("offer")] == ["offer to 2", "offer to 1"]
    assert at.members[0].version is not None


async def test_a_collective_that_breaks_twice_with_everybody_alive_is_the_learners_fault() -> None:
    at = stage("gloo")
    at.learner.faults = [ComponentFailed("learner rank 0", f"send {n}", "TimeoutError") for n in range(2)]
    with pytest.raises(LearnerLost, match="learner rank 0"):
        await at.publisher.publish(1)
    assert not at.pool.out


async def test_a_learner_that_hangs_is_lost_where_no_collective_explains_it() -> None:
    at = stage("shared_memory")
    at.learner.faults = [DeadlineExceeded("learner rank 1", "send bucket 0", 1.0)]
    with pytest.raises(LearnerLost, match="learner rank 1 did not finish 'send bucket 0'"):
        await at.publisher.publish(1)
    assert not at.pool.out


@KINDS
async def test_an_engine_with_other_bytes_is_replaced_the_others_serve(kind: str) -> None:
    at = stage(kind)
    at.workers[1].digests["b"] = "3" * 32
    await at.publisher.publish(1)
    error = at.pool.out["w1"]
    assert isinstance(error, WeightsNotProved)
    assert "the bytes of b" in str(error)
    assert "w1 release" not in at.events
    assert "w0 release" in at.events


async def test_when_no_engine_proves_the_weights_the_run_ends() -> None:
    at = stage("shared_memory")
    for worker in at.workers:
        worker.answers = [LOGPROBS[0] + 0.1, LOGPROBS[1][-1:]]
    with pytest.raises(WeightsNotProved, match="its log-probs of the probe are not the learner's"):
        await at.publisher.publish(1)
    assert not [event for event in at.events if event.endswith("release")]
    assert not at.learner.published


async def test_when_every_engine_is_gone_the_publish_waits_for_a_new_one() -> None:
    at = stage("shared_memory", count=1, replace=True)
    at.workers[0].faults["receive"] = [NEVER]
    publication = await at.publisher.publish(1)
    (fresh,) = at.pool.members
    assert (fresh.name, fresh.version) == ("w0'", publication.version)
    assert at.events.index("w0' join_senders") < at.events.index("w0' receive")


async def test_a_newcomer_gets_the_current_version_or_waits_for_the_next() -> None:
    at = stage("shared_memory")
    newcomer = at.pool.members.pop()
    await at.publisher.admit(newcomer)
    assert newcomer.version is None  # nothing was published yet
    publication = await at.publisher.publish(4)
    await at.publisher.admit(newcomer)
    assert newcomer.version == publication.version
    newcomer.version, at.learner.published = None, False  # a projection has changed the weights
    await at.publisher.admit(newcomer)
    assert newcomer.version is None
    at.pool.members.append(newcomer)
    assert newcomer.version is None
    assert (await at.publisher.publish(5)).version == newcomer.version


@KINDS
async def test_at_version_0_an_engine_that_answers_otherwise_than_before_is_refused(kind: str) -> None:
    """Within the tolerance, which in half precision is wide: it was sent the weights that it had."""
    at = stage(kind)
    at.workers[1].as_loaded = [LOGPROBS[0], LOGPROBS[1][-1:] + 1e-5]
    publication = await at.publisher.publish(0)
    assert at.members[0].version == publication.version
    error = at.pool.out["w1"]
    assert isinstance(error, WeightsNotProved)
    assert "it was sent the weights that it had loaded from the model's folder" in str(error)
    assert (error.difference, error.tolerance) == (pytest.approx(1e-5), 1e-6)
    assert at.events.index("w1 answer") < at.events.index("w1 begin_update")
    assert "w1 release" not in at.events


async def test_what_an_engine_has_loaded_is_asked_once_and_for_version_0_only() -> None:
    at = stage("gloo")
    at.workers[1].faults["receive"] = [RuntimeError("connection closed by peer")]
    at.learner.faults = [ComponentFailed("learner rank 0", "send bucket 0", "TimeoutError")]
    await at.publisher.publish(0)  # which takes two attempts
    newcomer = stage("gloo", count=1).members[0]
    at.pool.members.append(newcomer)
    await at.publisher.admit(newcomer)
    assert [event for event in at.events if event.endswith("answer")] == ["w0 answer", "w1 answer"]
    assert newcomer.worker.handle.events.count("w0 answer") == 1
    for member in at.members:
        member.worker.handle.as_loaded = [LOGPROBS[0] + 1, LOGPROBS[1]]
    await at.publisher.publish(1)
    assert not at.pool.out


async def test_an_engine_in_wider_numbers_than_the_learners_has_loaded_something_else() -> None:
    at = stage("shared_memory")
    at.publisher._settings = dataclasses.replace(at.publisher._settings, folder_is_version_0=False)
    at.workers[1].as_loaded = [LOGPROBS[0] + 1e-4, LOGPROBS[1][-1:]]
    await at.publisher.publish(0)
    assert not at.pool.out
    assert "w1 answer" not in at.events


def blank(at: Stage, number: int) -> Worker:
    """Have an engine be one that was built without weights."""
    at.members[number].worker.is_blank = True
    return at.workers[number]


async def test_an_engine_without_weights_is_not_asked_as_loaded_and_serves_what_it_is_brought() -> None:
    at = stage("shared_memory")
    blank(at, 1).as_loaded = [LOGPROBS[0] * np.nan, LOGPROBS[1][-1:]]
    await at.publisher.measure()
    publication = await at.publisher.publish(0)
    assert not at.pool.out
    assert "w1 answer" not in at.events
    assert [member.version for member in at.members] == [publication.version] * 2
    assert at.publisher._settings.proof.proves_blank


@pytest.mark.parametrize("fault", ["a weight is not brought", "its log-probs are others"])
async def test_weights_that_a_publish_does_not_bring_make_engines_load_them(fault: str) -> None:
    at = stage("shared_memory")
    worker = blank(at, 1)
    if fault == "a weight is not brought":
        worker.unfilled = ["lm_head.bias", "norm.bias"]
    else:
        worker.answers = [LOGPROBS[0] * np.nan, LOGPROBS[1][-1:]]
    await at.publisher.publish(3)
    assert set(at.pool.out) == {"w1"}
    assert isinstance(at.pool.out["w1"], WeightsNotProved)
    assert "w1 release" not in at.events
    assert not at.publisher._settings.proof.proves_blank
    if fault == "a weight is not brought":
        expected = "a publish brings none for lm_head.bias and 1 more: from now on engines load the model's folder"
        assert expected in str(at.pool.out["w1"])


async def test_a_run_that_continues_with_engines_without_weights_goes_on_when_none_can_be_proved() -> None:
    at = stage("shared_memory", replace=True)
    for number in range(2):
        blank(at, number).unfilled = ["lm_head.bias"]
    publication = await at.publisher.publish(3)
    assert set(at.pool.out) == {"w0", "w1"}
    assert [(member.name, member.version) for member in at.pool.members] == [
        ("w0'", publication.version), ("w1'", publication.version)
    ]  # fmt: skip


async def test_experts_that_a_publish_spoils_are_named() -> None:
    at = stage("shared_memory", count=1)
    at.learner.manifest = make_manifest(
        [TensorMeta("experts.w", (4,)), TensorMeta("b", (4,))], "float32", bucket_bytes=16, num_senders=1
    )
    at.learner.digests = at.workers[0].digests = {"experts.w": "1" * 32, "b": "2" * 32}
    at.workers[0].as_loaded = [LOGPROBS[0] + 0.02, LOGPROBS[1][-1:]]
    with pytest.raises(WeightsNotProved, match="the experts of its mixture"):
        await at.publisher.publish(0)


async def test_the_limit_is_for_a_bucket_and_not_for_all() -> None:
    """Each takes most of the limit of one: together they take more."""
    at = stage("shared_memory", count=1)
    worker = at.workers[0]
    worker.seconds = {"receive": 0.5}
    started = asyncio.get_running_loop().time()
    publication = await at.publisher.publish(1)
    assert asyncio.get_running_loop().time() - started > 0.8
    assert at.members[0].version == publication.version


async def test_engines_that_end_what_they_decode_are_waited_for_while_tokens_come() -> None:
    """The first takes many times prepare_seconds; the second is stopped, and found within half of it."""
    at = stage("shared_memory")
    at.workers[0].seconds, at.workers[0].decodes = {"begin_update": 1.0}, True
    at.workers[1].faults["begin_update"] = [NEVER]
    publication = await at.publisher.publish(1)
    assert at.members[0].version == publication.version
    assert at.members[1].version is None
    assert "'stop decoding', and got on with nothing for 0.1 s (transport.prepare_seconds)" in str(at.pool.out["w1"])


async def test_the_baseline_is_measured_before_any_weights_change_and_holds_for_newcomers() -> None:
    at = stage("shared_memory")
    noise = np.float32(1e-4)
    for worker in at.workers:
        worker.as_loaded = worker.answers = [LOGPROBS[0] + noise, LOGPROBS[1][-1:] + noise]
    await at.publisher.measure()
    assert at.events == ["w0 answer", "w1 answer"]
    publication = await at.publisher.publish(7)
    assert at.events.count("w0 answer") == 1  # it is not asked again
    assert publication.difference == pytest.approx(1e-4)
    assert publication.proof == pytest.approx({"typical": 1e-4, "baseline": 1e-4, "typical_limit": 3e-4, "limit": 1e-3})
    good, bad = stage("shared_memory", count=2).members
    bad.worker.handle.as_loaded = [LOGPROBS[0] + 9 * noise, LOGPROBS[1][-1:]]
    for newcomer in (good, bad):
        at.pool.members.append(newcomer)
    await at.publisher.admit(good)
    assert good.version == publication.version
    with pytest.raises(WeightsNotProved) as caught:
        await at.publisher.admit(bad)
    assert str(caught.value) == (
        "w1 does not serve weights version 0 (as loaded): it has loaded the model's folder, as the learner had, and "
        "computes other log-probs of the probe from it (the typical difference; with equal weights typical was 0.0001, "
        "largest 0.0001) (log-prob difference 0.000636 nats, tolerated 0.0003). Its samples would come from other "
        "weights than the learner's"
    )
    assert "w1 begin_update" not in bad.worker.handle.events


async def test_an_engine_that_loads_something_else_is_left_out_before_it_is_sent_anything() -> None:
    at = stage("gloo")
    at.workers[0].as_loaded = [LOGPROBS[0] + 5e-4, LOGPROBS[1][-1:]]
    await at.publisher.measure()
    publication = await at.publisher.publish(0)
    assert isinstance(at.pool.out["w0"], WeightsNotProved)
    assert "w0 begin_update" not in at.events
    assert at.members[1].version == publication.version


async def test_an_engine_that_dies_while_the_baseline_is_measured_is_found_at_the_publish() -> None:
    at = stage("shared_memory")
    at.workers[0].faults["answer"] = [RuntimeError("gone"), RuntimeError("gone")]
    await at.publisher.measure()
    assert at.publisher._settings.proof.baseline is not None
    await at.publisher.publish(0)
    assert list(at.pool.out) == ["w0"]


async def test_without_a_look_at_equal_weights_the_first_delivery_is_the_baseline() -> None:
    """As when the learner computes in narrower numbers than the engines: what these have loaded is something else."""
    at = stage("shared_memory")
    at.publisher._settings = dataclasses.replace(at.publisher._settings, folder_is_version_0=False)
    at.workers[1].answers = [LOGPROBS[0] + 9e-4, LOGPROBS[1][-1:]]
    await at.publisher.measure()
    assert at.events == []
    await at.publisher.publish(3)  # both are within what float32 may round
    await at.publisher.publish(4)
    assert list(at.pool.out) == ["w1"]
    assert "with equal weights typical was 0, largest 0" in str(at.pool.out["w1"])


async def test_a_tolerance_is_of_the_largest_difference_as_loaded_too() -> None:
    at = stage("shared_memory")
    at.publisher._settings.proof.tolerance = 0.5
    at.workers[0].as_loaded = at.workers[0].answers = [LOGPROBS[0] + 0.4, LOGPROBS[1][-1:]]
    at.workers[1].as_loaded = at.workers[1].answers = [LOGPROBS[0] + 0.6, LOGPROBS[1][-1:]]
    await at.publisher.measure()
    await at.publisher.publish(0)
    assert list(at.pool.out) == ["w1"]
    assert "tolerated 0.5" in str(at.pool.out["w1"])


ADAPTER_MANIFEST = make_manifest(
    [TensorMeta("q.lora_A.weight", (4,)), TensorMeta("q.lora_B.weight", (4,))],
    "float32",
    bucket_bytes=16,
    num_senders=1,
)
ADAPTER_DIGESTS = {"q.lora_A.weight": "1" * 32, "q.lora_B.weight": "2" * 32}


def adapter_stage(count: int = 2, replace: bool = False) -> Stage:
    """Engines that serve an adapter, by which the log-probs of the probe are 1 nat from those of the model alone."""
    at = stage("shared_memory", count, replace)
    at.publisher._settings = dataclasses.replace(at.publisher._settings, adapter=AdapterSettings(1, 1, ("q",)))
    at.learner.manifest, at.learner.digests = ADAPTER_MANIFEST, ADAPTER_DIGESTS
    for worker in at.workers:
        worker.digests, worker.bare = dict(ADAPTER_DIGESTS), [LOGPROBS[0] + 1]
    return at


async def test_an_adapter_that_is_loaded_and_not_active_is_named() -> None:
    at = adapter_stage()
    at.workers[1].bare = at.workers[1].answers[:-1]
    await at.publisher.publish(1)
    assert list(at.pool.out) == ["w1"]
    assert "the same with its adapter and without: the adapter is not active" in str(at.pool.out["w1"])


async def test_an_adapter_that_is_zero_may_change_nothing() -> None:
    at = adapter_stage()
    zero = {**ADAPTER_DIGESTS, "q.lora_B.weight": DIGEST_OF_ZEROS}
    at.learner.digests = zero
    for worker in at.workers:
        worker.digests, worker.bare = dict(zero), worker.answers[:-1]
    await at.publisher.publish(0)
    assert not at.pool.out


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ({"q.lora_B.weight": None}, "q.lora_B.weight did not arrive"),
        ({"q.lora_B.weight": "3" * 32}, "bytes of q.lora_B"),
    ],
)
async def test_a_tensor_of_the_adapter_that_is_dropped_or_stale_is_named(
    fault: dict[str, str | None], said: str
) -> None:
    at = adapter_stage()
    at.workers[1].digests = {n: d for n, d in {**ADAPTER_DIGESTS, **fault}.items() if d is not None}
    await at.publisher.publish(1)
    assert list(at.pool.out) == ["w1"]
    assert said in str(at.pool.out["w1"])


async def test_a_model_beside_the_adapter_that_is_another_is_named_before_anything_is_sent() -> None:
    at = adapter_stage()
    at.workers[1].base = "c" * 32
    await at.publisher.publish(1)
    assert list(at.pool.out) == ["w1"]
    assert "has digest cccccccccccc, the learner's bbbbbbbbbbbb" in str(at.pool.out["w1"])
    assert "w1 begin_update" not in at.events
    at.events.clear()
    await at.publisher.publish(2)
    assert not [event for event in at.events if "base_digest" in event]  # once for each engine that joins


async def test_a_model_beside_the_adapter_that_changes_is_named() -> None:
    at = adapter_stage()
    await at.publisher.measure()
    for worker in at.workers:
        worker.bare = [worker.as_loaded[0].copy()]
        worker.answers = [worker.as_loaded[0], worker.as_loaded[1]]
    at.workers[1].bare = [at.workers[1].as_loaded[0] + 1e-3]
    at.learner.digests = {**ADAPTER_DIGESTS, "q.lora_B.weight": DIGEST_OF_ZEROS}
    for worker in at.workers:
        worker.digests = dict(at.learner.digests)
    await at.publisher.publish(1)
    assert list(at.pool.out) == ["w1"]
    assert "its own weights have changed, which nobody sends" in str(at.pool.out["w1"])
