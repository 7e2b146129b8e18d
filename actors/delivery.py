"""One delivery of weights to some engines: phases that are the same for every transport, the last of them a proof.

```
 prepare   engines stop decoding
 join      new ones, and those of a group that broke, meet the senders
 gather    ranks stage bucket 0
 transfer  for each bucket:  engines receive and load it  |  ranks send it, and stage the next one
           engines drop their KV cache and finish
 prove     engines: digest of every tensor that arrived, log-probs of the probe  |  learner: log-probs of the probe
           equal -> the version is released: the engine gives out groups again
```
Before the first of it, an engine is asked for the probe as it was loaded, and the learner was, too, before its weights
changed: that is the baseline of the proof's limits (``proof_limits.py``), and a new engine is held to it at any time.
One that was built without weights, since there is a baseline already, has nothing to be asked for before it is sent
some; it is proved by the first of them.
Version 0 is what the engines have loaded. There the proof needs no limits: answers must not change by a publish.
Each wait has a limit: one for a bucket, however many there are, and one on silence while engines end what they decode.
An engine that fails is left out; the others get the version.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import ray

from actors.learner.group import LearnerGroup
from actors.rollout.remote import RemoteWorker
from actors.rollout.worker import Delivery
from actors.runtime.remote_calls import INNER, call, call_each
from actors.transports.peer_groups import PeerGroups
from actors.transports.table import Transport
from lpo_ray.common.silence import Progress, Watch
from lpo_ray.errors import ComponentDied, LpoRayError, WeightsNotProved
from lpo_ray.policy.lora import AdapterSettings
from lpo_ray.policy.proof_limits import ProofLimits, is_mixture
from lpo_ray.policy.tensor_digest import DIGEST_OF_ZEROS
from lpo_ray.policy.weights_proof import (
    Agreement,
    as_answered,
    as_bundles,
    check_arrival,
    compare,
    largest_difference,
)
from lpo_ray.records import FloatArray, IntArray, WeightsVersion
from lpo_ray.rollout.member import Member as PoolMember

T = TypeVar("T")
R = TypeVar("R")
UNCHANGED = 1e-6
"""nats by which answers may change that the same weights gave twice"""
_NOT_THE_SAME = (
    "it has loaded the model's folder, as the learner had, and computes other log-probs of the probe from it"
)
_BASE = "its own weights have changed, which nobody sends"
_OTHER_BASE = "the model that it has read beside the adapter has digest {}, the learner's {}: copy the folder again"
Member = PoolMember[RemoteWorker]


@dataclass(frozen=True, slots=True)
class DeliverySettings:
    """Settings by which weights are delivered and proved: the same for every publish."""

    transport: Transport
    processes_per_engine: int
    proof: ProofLimits
    """probe of the run, and how far engines and learner may differ on it"""
    folder_is_version_0: bool
    """the learner sends at first what the engines have loaded, bit for bit"""
    prepare_seconds: float
    """for engines to stop decoding (without a token)"""
    join_seconds: float
    """for engines and ranks to meet"""
    transfer_seconds: float
    """for a bucket, and for the proof"""
    adapter: AdapterSettings | None = None
    """the adapter that alone is sent: the model beside it is loaded from its folder on each machine"""


class Broken(Exception):
    """The end of an attempt: a collective failed, or no engine is left."""

    def __init__(self, cause: LpoRayError | None = None) -> None:
        super().__init__(cause)
        self.cause = cause


@dataclass(slots=True)
class AsLoaded:
    """Answers to the probe with the weights of the model's folder."""

    learner: list[FloatArray] | None = None
    """None: it was not asked before its weights changed"""
    engines: dict[Member, list[FloatArray]] = field(default_factory=dict)
    base: str | None = None
    """digest of the model beside the learner's adapter; None: not asked for yet"""

    def agreement(self, member: Member) -> Agreement:
        """Compare an engine's answers with the learner's."""
        assert self.learner is not None
        return compare(as_answered(self.learner), self.engines[member])


class Attempt:
    """One delivery to some members."""

    def __init__(
        self,
        learner: LearnerGroup,
        settings: DeliverySettings,
        members: Sequence[Member],
        groups: PeerGroups[Member],
        as_loaded: AsLoaded,
    ) -> None:
        """``groups`` and ``as_loaded`` are kept up to date here."""
        self._learner, self._settings, self._groups, self._as_loaded = learner, settings, groups, as_loaded
        self._rendezvous = settings.transport.rendezvous
        self.members = list(members)
        """those that have not failed"""
        self.lost: dict[Member, LpoRayError] = {}
        """those that have, and with what"""
        self._limit = 0.0
        """seconds that a wait of this phase may take"""
        self.agreement = Agreement(0.0, 0.0)
        """with the learner, of the members that are furthest from it"""
        self.phases: dict[str, float] = {}
        """phase -> seconds that it took, one after the other"""
        self._since = 0.0
        """end of the phase before"""

    async def run(self, step: int) -> WeightsVersion:
        """Deliver and prove. Raises Broken when nothing was delivered, or what the learner raises when it is lost."""
        self._since = time.monotonic()
        probe, limit = list(self._settings.proof.probe), self._settings.proof.between_ranks
        self._limit = self._settings.prepare_seconds
        if self._settings.adapter is not None:
            await self._compare_bases(self._groups.outside(self.members))
        if self._settings.folder_is_version_0 and (step == 0 or self._as_loaded.learner is not None):
            await self._ask_as_loaded(probe)
        # An engine that is stopped or dead shows here, before anybody waits for it in a collective.
        await self._stop_decoding()
        self._ended("prepare")
        await self._join()
        self._ended("join")
        self._limit = self._settings.transfer_seconds
        digests = await self._transfer()
        self._ended("transfer")
        version = WeightsVersion(step, self._learner.manifest.digest(digests))
        finishing = self._each(
            f"serve weights {version}", lambda m: m.worker.handle.finish_update.remote(str(step), probe)
        )
        delivered, expected = await self._both(finishing, self._learner.probe(as_bundles(probe), limit))
        self._prove(version, digests, delivered, expected)
        await self._each("release", lambda m: m.worker.handle.release.remote())
        self._ended("prove")
        return version

    def _ended(self, phase: str) -> None:
        now = time.monotonic()
        self.phases[phase], self._since = now - self._since, now

    async def _ask_as_loaded(self, probe: list[IntArray]) -> None:
        """Ask members that have not been sent anything yet for the probe, and hold them to what the learner answered
        when it had loaded the same folder.
        """
        loaded, proof = self._as_loaded, self._settings.proof
        fresh = [member for member in self.members if member not in loaded.engines and not member.worker.is_blank]
        if fresh:
            what = "answer the probe as loaded"
            loaded.engines |= await self._each(what, lambda m: m.worker.handle.answer.remote(probe), of=fresh)
        if loaded.learner is None:
            return
        asked = [member for member in self.members if member in loaded.engines]
        if proof.baseline is None:
            proof.measured(map(loaded.agreement, asked))
        for member in asked:
            if excess := proof.excess(loaded.agreement(member)):
                difference, limit, which = excess
                why = f"{_NOT_THE_SAME} ({which})"
                self._drop(member, WeightsNotProved(member.name, "0 (as loaded)", difference, limit, why))
        self._end_without_members()

    async def _join(self) -> None:
        """Have members that are in no group with the senders form one."""
        self._groups.split(self.members)
        fresh = self._groups.outside(self.members)
        if not fresh:
            return
        seconds, per_engine = self._settings.join_seconds, self._settings.processes_per_engine
        group, num_peers = self._groups.new_number(), len(fresh) * per_engine
        offers = await self._learner.offer(group, num_peers, self._groups.numbers, seconds)
        plain = {
            "manifest": self._learner.manifest.to_plain(),
            "receiver": self._settings.transport.receiver,
            "offers": offers[: self._learner.manifest.num_senders],
            "group_size": 1 + num_peers,
            "seconds": INNER * seconds,
        }

        def join(member: Member) -> ray.ObjectRef[None]:
            rank = 1 + fresh.index(member) * per_engine
            return member.worker.handle.join_senders.remote({**plain, "host": member.process.host, "rank_offset": rank})

        joining = self._each("join the learner", join, of=fresh, seconds=seconds)
        await self._both(joining, self._learner.accept(seconds))
        self._groups.add(group, set(fresh) & set(self.members))

    async def _compare_bases(self, fresh: Sequence[Member]) -> None:
        """Drop members that have read another model beside the adapter than the learner has. Raises WeightsNotProved
        when no other is left.
        """
        if not fresh:
            return
        if self._as_loaded.base is None:
            self._as_loaded.base = await self._learner.base_digest()
        expected = self._as_loaded.base
        bases = await self._each("digest its model", lambda m: m.worker.handle.base_digest.remote(), of=fresh)
        for member, base in bases.items():
            if base != expected:
                infinite, why = float("inf"), _OTHER_BASE.format(base[:12], expected[:12])
                self._drop(member, WeightsNotProved(member.name, "of the adapter", infinite, 0.0, why))
        self._end_without_members()

    async def _transfer(self) -> dict[str, str]:
        """Send all buckets; returns the digests of what the ranks sent."""
        groups = self._groups.within(self.members)
        staged = await self._learner.advance(None, groups, self._limit)
        self._ended("gather")
        digests: dict[str, str] = {}
        for bucket in range(len(self._learner.manifest.buckets)):
            tickets = [part.ticket for part in staged]
            digests |= {name: digest for part in staged for name, digest in part.digests.items()}
            seconds = self._patience(self.members)

            def receive(
                member: Member, bucket: int = bucket, tickets: list[object] = tickets, seconds: float = seconds
            ) -> ray.ObjectRef[None]:
                return member.worker.handle.receive.remote(bucket, tickets, INNER * seconds)

            receiving = self._each(f"receive bucket {bucket}", receive)
            _, staged = await self._both(receiving, self._learner.advance(bucket, groups, seconds))
        return digests

    def _prove(
        self,
        version: WeightsVersion,
        digests: dict[str, str],
        delivered: dict[Member, Delivery],
        expected: list[FloatArray],
    ) -> None:
        proof, proved = self._settings.proof, list[Agreement]()
        for member, delivery in delivered.items():
            found = compare(as_answered(expected), delivery.logprobs)
            before = self._as_loaded.engines.get(member) if version.step == 0 else None
            changed = 0.0 if before is None else largest_difference(before, delivery.logprobs)
            why = (
                _not_brought(delivery.unfilled)
                or check_arrival(digests, delivery.digests, delivery.cached_tokens)
                or self._adapter_fault(member, digests, delivery)
            )
            if why:
                difference, limit = found.largest, proof.limits(found.surprise).largest
                error = WeightsNotProved(member.name, str(version), difference, limit, why)
            elif excess := proof.excess(found):
                difference, limit, which = excess
                why = f"its log-probs of the probe are not the learner's ({which})"
                error = WeightsNotProved(member.name, str(version), difference, limit, why)
            elif changed > UNCHANGED:
                error = WeightsNotProved(member.name, str(version), changed, UNCHANGED, _changed_by(digests))
            else:
                proved.append(found)
                continue
            if began_blank(member):
                proof.reached_not()
            self._drop(member, error)
        self._end_without_members()
        proof.measured(proved)
        typical, largest = max(found.typical for found in proved), max(found.largest for found in proved)
        self.agreement = Agreement(typical, largest, proved[0].surprise)

    def _adapter_fault(self, member: Member, digests: dict[str, str], delivery: Delivery) -> str:
        """Say what is wrong with how an engine serves its adapter; empty: nothing, or there is none.

        The model without it must answer as the model that was loaded. With it, it must answer in another way, unless
        every lora_B is zero.
        """
        adapter = self._settings.adapter
        if adapter is None or delivery.bare is None:
            return ""
        loaded = self._as_loaded.engines.get(member) if adapter.path is None else None  # else it was asked with one
        moved = 0.0 if loaded is None else largest_difference(loaded[:-1], delivery.bare)
        if moved > UNCHANGED:
            return f"without its adapter it answers {moved:.2g} nats other than when it had loaded the model: {_BASE}"
        is_zero = all(digest == DIGEST_OF_ZEROS for name, digest in digests.items() if ".lora_B." in name)
        if not is_zero and not largest_difference(delivery.bare, delivery.logprobs[:-1]):
            return "it answers the same with its adapter and without: the adapter is not active"
        return ""

    def _end_without_members(self) -> None:
        """Raise what the first member failed with, when all have."""
        if not self.members:
            raise next(iter(self.lost.values()))

    async def _stop_decoding(self) -> None:
        """Have all members stop. Some end what they decode first, however long that takes: as long as one gets on with
        it, it is waited for.
        """

        async def stop(member: Member) -> LpoRayError | None:
            async def tokens() -> Progress | None:
                progress = await member.worker.progress()
                return None if progress is None else Progress(progress.done)

            watch = Watch(tokens, self._patience(asked), "transport.prepare_seconds")
            stopping = member.worker.handle.begin_update.remote()
            try:
                return await call(stopping, who=member.name, what="stop decoding", watch=watch)
            except LpoRayError as error:
                return error

        asked = list(self.members)
        self._without_failed(asked, await asyncio.gather(*map(stop, asked)))

    async def _each(
        self,
        what: str,
        remote: Callable[[Member], ray.ObjectRef[T]],
        of: Sequence[Member] | None = None,
        seconds: float | None = None,
    ) -> dict[Member, T]:
        """Call all members (or ``of``), and drop those that fail, or are late: by default after ``_patience``."""
        asked = list(self.members if of is None else of)
        names, limit = [member.name for member in asked], self._patience(asked) if seconds is None else seconds
        results = await call_each([remote(m) for m in asked], who=names, what=what, seconds=limit)
        return self._without_failed(asked, results)

    def _without_failed(self, asked: Sequence[Member], results: Sequence[T | LpoRayError]) -> dict[Member, T]:
        """Return the answers by member, and drop those that failed."""
        answers: dict[Member, T] = {}
        for member, result in zip(asked, results, strict=True):
            if isinstance(result, LpoRayError):
                self._drop(member, result)
            else:
                answers[member] = result
        if not self.members:
            raise Broken
        return answers

    async def _both(self, engines: Awaitable[dict[Member, T]], learner: Awaitable[R]) -> tuple[dict[Member, T], R]:
        """Wait for both sides, to the end of both: which one failed first says little about which is at fault."""
        lost = len(self.lost)
        answers, result = await asyncio.gather(engines, learner, return_exceptions=True)
        if isinstance(result, ComponentDied) or (isinstance(result, LpoRayError) and not self._rendezvous):
            raise result
        if isinstance(result, LpoRayError) or (self._rendezvous and len(self.lost) > lost):
            raise Broken(result if isinstance(result, LpoRayError) else None)
        if isinstance(answers, BaseException):
            raise answers
        if isinstance(result, BaseException):
            raise result
        return answers, result

    def _drop(self, member: Member, error: LpoRayError) -> None:
        self.lost[member] = error
        self.members.remove(member)

    def _patience(self, asked: Sequence[Member]) -> float:
        """Seconds to wait: half of them for several, so that one that hangs does not hold up the others for as long."""
        return self._limit / 2 if len(asked) > 1 else self._limit


def began_blank(member: Member) -> bool:
    """Whether the engine was built without weights, and has proved none yet."""
    return member.worker.is_blank and member.version is None


def _not_brought(names: Sequence[str]) -> str:
    """Say that an engine without weights of its own was not brought the ones of these ``names``; empty: of none."""
    if not names:
        return ""
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return (
        f"it was built without weights, and a publish brings none for {names[0]}{more}: from now on engines load the "
        "model's folder when they start"
    )


def _changed_by(names: Iterable[str]) -> str:
    """Say why an engine that was sent the weights it had may answer otherwise, by the ``names`` of the tensors."""
    suspects = "the experts of its mixture" if is_mixture(names) else "weights that it packs"
    return (
        "it was sent the weights that it had loaded from the model's folder, and its log-probs of the probe changed: a "
        f"publish does not renew all that it computes with ({suspects}, it may be)"
    )
