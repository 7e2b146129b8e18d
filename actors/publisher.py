"""Publishing weights: the same two phases for every transport, each with a deadline, and a proof at the end.

```
 prepare   engines stop decoding; who is new, or all after a failure, joins the senders
 transfer  ranks stage bucket 0
           for each bucket:  engines receive and load it  |  ranks send it, and stage the next one
           engines drop their caches and finish
 prove     engines: digest of every tensor that arrived, log-probs of the probe  |  learner: log-probs of the probe
           equal -> the version is released: the engine gives out groups again
```
An engine that fails is left out and replaced by the pool; the others get the version. Where engines and ranks meet in a
collective, one that fails breaks it for all: the group is formed anew without it and the buckets are sent again.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TypeVar

import ray

from actors.learner.group import LearnerGroup
from actors.rollout.remote import RemoteWorker
from actors.rollout.worker import Delivery
from actors.runtime.remote_calls import INNER, call_each
from actors.transports.table import Transport
from lpo_ray.errors import ComponentDied, DeadlineExceeded, LearnerLost, LpoRayError, WeightsNotProved
from lpo_ray.policy.weights_proof import as_bundles, check_delivery
from lpo_ray.records import FloatArray, IntArray, Publication, WeightsVersion
from lpo_ray.rollout.member import Member as PoolMember
from lpo_ray.rollout.pool import RolloutPool

T = TypeVar("T")
R = TypeVar("R")
Member = PoolMember[RemoteWorker]


class _Broken(Exception):
    """A collective failed, or no engine is left; this attempt is over."""

    def __init__(self, cause: LpoRayError | None = None) -> None:
        super().__init__(cause)
        self.cause = cause


class Publisher:
    """WeightTransport over Ray, for every kind of transport. Make it after ``LearnerGroup.open_export``."""

    def __init__(
        self,
        learner: LearnerGroup,
        pool: RolloutPool[RemoteWorker],
        transport: Transport,
        *,
        probe: Sequence[IntArray],
        tolerance: float,
        processes_per_engine: int,
        prepare_seconds: float,
        transfer_seconds: float,
    ) -> None:
        """``tolerance``: largest log-prob difference on ``probe`` that is still rounding."""
        self._learner, self._pool, self._transport = learner, pool, transport
        self._probe, self._tolerance = list(probe), tolerance
        self._per_engine = processes_per_engine
        self._prepare_seconds, self._transfer_seconds = prepare_seconds, transfer_seconds
        self._joined: set[Member] = set()
        self._current: WeightsVersion | None = None
        self._generation = learner.generation
        pool.admit = self.admit

    async def publish(self, step: int) -> Publication:
        """See interfaces.WeightTransport."""
        started = time.monotonic()
        async with self._learner.weights_lock:
            self._current, attempt = await self._until_served(step)
            self._learner.published = True
        seconds, num_bytes = time.monotonic() - started, self._learner.manifest.num_bytes
        workers = self._pool.statuses()
        return Publication(self._current, num_bytes, seconds, workers, attempt.difference, attempt.phases)

    async def admit(self, member: Member) -> None:
        """Bring a new engine to the current version. Returns without it when the weights have changed since, or the
        learner is lost meanwhile: then weights are about to be published, to this engine too.
        """
        async with self._learner.weights_lock:
            if self._current is None or not self._learner.published or member.version == self._current:
                return
            delivery = _Attempt(self, [member], self._transfer_seconds)
            try:
                await delivery.run(self._current.step)
            except (LearnerLost, DeadlineExceeded):  # of an engine they are in delivery.lost
                self._joined.discard(member)
                return
            except _Broken as broken:
                delivery.lost.setdefault(member, broken.cause or ComponentDied(member.name, "it did not join"))
            self._take_out(delivery.lost)

    async def _until_served(self, step: int) -> tuple[WeightsVersion, _Attempt]:
        """Deliver until every engine that is up has the version, leaving out those that fail. LearnerLost when the
        learner's side fails again with all engines joined anew.
        """
        left, unexplained = self._transfer_seconds, 0
        if self._generation != self._learner.generation:  # these ranks have met nobody yet
            self._generation = self._learner.generation
            self._joined.clear()
        while True:
            members = await self._pool.started()
            if not members:
                return WeightsVersion(step, await self._learner.digest()), _Attempt(self, [], left)
            attempt = _Attempt(self, members, left)
            try:
                version = await attempt.run(step)
            except DeadlineExceeded as late:  # of an engine it is in attempt.lost
                raise LearnerLost(late.who, str(late)) from late
            except _Broken as broken:
                culprits = {m: e for m, e in attempt.lost.items() if isinstance(e, ComponentDied | DeadlineExceeded)}
                unexplained += not culprits
                self._joined.clear()
                if broken.cause is not None and unexplained > 1:
                    raise LearnerLost("the learner", str(broken.cause)) from None
                self._take_out(culprits if unexplained < 2 else attempt.lost)
                left = attempt.left if self._pool.members else self._transfer_seconds
                continue
            self._take_out(attempt.lost)
            return version, attempt

    def _take_out(self, lost: Mapping[Member, LpoRayError]) -> None:
        if lost and self._transport.rendezvous:
            self._joined.clear()  # a group with a member that is gone is of no use
        for member, error in lost.items():
            self._joined.discard(member)
            self._pool.take_out(member, error)


class _Attempt:
    """One delivery to some members. ``lost``: those that failed on the way, and with what."""

    def __init__(self, publisher: Publisher, members: Sequence[Member], seconds: float) -> None:
        self._publisher, self._members = publisher, list(members)
        self._learner = publisher._learner
        self._rendezvous = publisher._transport.rendezvous
        self.left = seconds
        """of the transfer, in seconds"""
        self._deadline = 0.0
        self.difference = 0.0
        self.phases: dict[str, float] = {}
        self.lost: dict[Member, LpoRayError] = {}

    async def run(self, step: int) -> WeightsVersion:
        """Raises _Broken when nothing was delivered, or what the learner raises when one of its ranks is gone."""
        started = time.monotonic()
        self._deadline = started + self._publisher._prepare_seconds
        await self._prepare()
        prepared = time.monotonic()
        self._deadline = prepared + self.left
        probe = self._publisher._probe
        try:
            digests = await self._transfer()
        finally:
            self.left = self._remaining()
        transferred = time.monotonic()
        version = WeightsVersion(step, self._learner.manifest.digest(digests))
        finishing = self._each(
            f"serve weights {version}", lambda m: m.worker.handle.finish_update.remote(str(step), probe)
        )
        delivered, expected = await self._both(finishing, self._learner.probe(as_bundles(probe)))
        self._prove(version, digests, delivered, expected)
        await self._each("release", lambda m: m.worker.handle.release.remote())
        self._publisher._pool.serve(self._members, version)
        now = time.monotonic()
        self.phases = {"prepare": prepared - started, "transfer": transferred - prepared, "prove": now - transferred}
        return version

    async def _prepare(self) -> None:
        publisher = self._publisher
        # Who is stopped or dead shows here, before anybody waits for it in a collective.
        await self._each("stop decoding", lambda m: m.worker.handle.begin_update.remote())
        everyone_anew = self._rendezvous and publisher._joined != set(self._members)
        fresh = [m for m in self._members if everyone_anew or m not in publisher._joined]
        if not fresh:
            return
        publisher._joined -= set(fresh)
        seconds = self._patience(fresh)
        offers = await self._learner.offer(len(fresh) * publisher._per_engine, seconds)
        plain = {
            "manifest": self._learner.manifest.to_plain(),
            "receiver": publisher._transport.receiver,
            "offers": offers[: self._learner.manifest.num_senders],
            "group_size": 1 + len(fresh) * publisher._per_engine,
            "seconds": INNER * seconds,
        }

        def join(member: Member) -> ray.ObjectRef[None]:
            rank = 1 + fresh.index(member) * publisher._per_engine
            return member.worker.handle.join_senders.remote({**plain, "host": member.process.host, "rank_offset": rank})

        await self._both(self._each("join the learner", join, of=fresh), self._learner.accept(seconds))
        publisher._joined = set(self._members) if self._rendezvous else publisher._joined | set(fresh)

    async def _transfer(self) -> dict[str, str]:
        """All buckets; returns the digests of what the ranks sent."""
        staged = await self._learner.advance(None, self._remaining())
        digests: dict[str, str] = {}
        for bucket in range(len(self._learner.manifest.buckets)):
            tickets = [part.ticket for part in staged]
            digests |= {name: digest for part in staged for name, digest in part.digests.items()}
            seconds = self._patience(self._members)

            def receive(
                member: Member, bucket: int = bucket, tickets: list[object] = tickets, seconds: float = seconds
            ) -> ray.ObjectRef[None]:
                return member.worker.handle.receive.remote(bucket, tickets, INNER * seconds)

            receiving = self._each(f"receive bucket {bucket}", receive)
            _, staged = await self._both(receiving, self._learner.advance(bucket, seconds))
        return digests

    def _prove(
        self,
        version: WeightsVersion,
        digests: dict[str, str],
        delivered: dict[Member, Delivery],
        expected: list[FloatArray],
    ) -> None:
        for member, delivery in delivered.items():
            found = check_delivery(digests, delivery.digests, expected, delivery.logprobs, delivery.cached_tokens)
            if found.why or found.difference > self._publisher._tolerance:
                why = found.why or "its log-probs of the probe are not the learner's"
                tolerance = self._publisher._tolerance
                self._drop(member, WeightsNotProved(member.name, str(version), found.difference, tolerance, why))
            else:
                self.difference = max(self.difference, found.difference)
        if not self._members:
            raise next(iter(self.lost.values()))

    async def _each(
        self,
        what: str,
        remote: Callable[[Member], ray.ObjectRef[T]],
        of: Sequence[Member] | None = None,
    ) -> dict[Member, T]:
        """Call all members (or ``of``); those that fail are lost."""
        asked = list(self._members if of is None else of)
        names = [member.name for member in asked]
        results = await call_each([remote(m) for m in asked], who=names, what=what, seconds=self._patience(asked))
        answers: dict[Member, T] = {}
        for member, result in zip(asked, results, strict=True):
            if isinstance(result, LpoRayError):
                self._drop(member, result)
            else:
                answers[member] = result
        if not self._members:
            raise _Broken
        return answers

    async def _both(self, engines: Awaitable[dict[Member, T]], learner: Awaitable[R]) -> tuple[dict[Member, T], R]:
        """Both sides at once, to the end of both: which one failed first says little about who is at fault."""
        lost = len(self.lost)
        answers, result = await asyncio.gather(engines, learner, return_exceptions=True)
        if isinstance(result, ComponentDied) or (isinstance(result, LpoRayError) and not self._rendezvous):
            raise result
        if isinstance(result, LpoRayError) or (self._rendezvous and len(self.lost) > lost):
            raise _Broken(result if isinstance(result, LpoRayError) else None)
        if isinstance(answers, BaseException):
            raise answers
        if isinstance(result, BaseException):
            raise result
        return answers, result

    def _drop(self, member: Member, error: LpoRayError) -> None:
        self.lost[member] = error
        self._members.remove(member)

    def _remaining(self) -> float:
        """Seconds of the phase that are left."""
        return max(self._deadline - time.monotonic(), 0.1)

    def _patience(self, asked: Sequence[Member]) -> float:
        """How long to wait for several: half of what is left, so that one that hangs leaves time for the others."""
        return self._remaining() / 2 if len(asked) > 1 else self._remaining()
