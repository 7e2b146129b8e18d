"""Weights published to every engine that is up, and to each that comes later.

An engine that fails in a delivery is left out and replaced by the pool. Where engines and ranks meet in a collective,
one that fails breaks it for its group: that is formed again without it, and the weights are delivered again.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from typing_extensions import override

from actors.delivery import AsLoaded, Attempt, Broken, DeliverySettings, Member, began_blank
from actors.learner.group import LearnerGroup
from actors.rollout.remote import RemoteWorker
from actors.runtime.remote_calls import call_each
from actors.transports.peer_groups import PeerGroups
from lpo_ray.errors import ComponentDied, DeadlineExceeded, LearnerLost, LpoRayError, WeightsNotProved
from lpo_ray.interfaces import WeightTransport
from lpo_ray.policy.weights_proof import (
    as_bundles,
)
from lpo_ray.records import Publication, WeightsVersion
from lpo_ray.rollout.pool import RolloutPool


class Publisher(WeightTransport):
    """WeightTransport over Ray, for every kind of transport. The pool that it publishes to takes ``admit`` from it."""

    def __init__(self, learner: LearnerGroup, pool: RolloutPool[RemoteWorker], settings: DeliverySettings) -> None:
        self._learner, self._pool, self._settings = learner, pool, settings
        self._groups = PeerGroups[Member](collective=settings.transport.rendezvous)
        """members that have joined the senders, and can be sent to"""
        self._as_loaded = AsLoaded()
        self._current: WeightsVersion | None = None
        self._generation = learner.generation

    @override
    async def publish(self, step: int) -> Publication:
        started = time.monotonic()
        async with self._learner.weights_lock:
            self._current, attempt = await self._until_served(step)
            self._learner.published = True
        seconds, num_bytes = time.monotonic() - started, self._learner.manifest.num_bytes
        workers = self._pool.statuses()
        found = attempt.agreement
        figures = self._settings.proof.figures(found)
        return Publication(self._current, num_bytes, seconds, workers, found.largest, attempt.phases, figures)

    async def measure(self) -> None:
        """Measure the baseline of the proof, before any weights change: learner and engines have loaded one folder."""
        if not self._settings.folder_is_version_0:
            return  # then the first delivery shows what equal weights are worth
        proof, seconds = self._settings.proof, self._settings.prepare_seconds
        async with self._learner.weights_lock:
            self._as_loaded.learner = await self._learner.probe(as_bundles(proof.probe), proof.between_ranks)
            members = [member for member in await self._pool.started() if not member.worker.is_blank]
            asked = [member.worker.handle.answer.remote(list(proof.probe)) for member in members]
            names = [member.name for member in members]
            answers = await call_each(asked, who=names, what="answer the probe as loaded", seconds=seconds)
        found = zip(members, answers, strict=True)  # an engine that fails here fails again when it is published to
        self._as_loaded.engines |= {m: answer for m, answer in found if not isinstance(answer, LpoRayError)}
        proof.measured(map(self._as_loaded.agreement, self._as_loaded.engines))

    async def admit(self, member: Member) -> None:
        """Bring a new engine to the current version. Does nothing when the weights have changed since, or the learner
        is lost meanwhile: then weights are about to be published, to this engine too.
        """
        async with self._learner.weights_lock:
            if self._current is None or not self._learner.published or member.version == self._current:
                return
            attempt = self._attempt([member])
            try:
                await self._served(attempt, self._current.step)
            except (LearnerLost, DeadlineExceeded):  # of an engine they are in attempt.lost
                self._groups.forget([member])
                return
            except Broken as broken:
                attempt.lost.setdefault(member, broken.cause or ComponentDied(member.name, "it did not join"))
            self._take_out(attempt.lost)

    def _attempt(self, members: Sequence[Member]) -> Attempt:
        return Attempt(self._learner, self._settings, members, self._groups, self._as_loaded)

    async def _served(self, attempt: Attempt, step: int) -> WeightsVersion:
        version = await attempt.run(step)
        self._pool.serve(attempt.members, version)
        return version

    async def _until_served(self, step: int) -> tuple[WeightsVersion, Attempt]:
        """Deliver until every engine that is up has the version, leaving out those that fail. Raises LearnerLost when
        the learner's side fails again after all engines have joined again.
        """
        unexplained = 0
        if self._generation != self._learner.generation:  # no engine has joined these ranks yet
            self._generation = self._learner.generation
            self._groups.clear()
        while True:
            members = await self._pool.started()
            if not members:
                return WeightsVersion(step, await self._learner.digest()), self._attempt([])
            self._groups.only_of(members)
            attempt = self._attempt(members)
            try:
                version = await self._served(attempt, step)
            except DeadlineExceeded as late:  # of an engine it is in attempt.lost
                raise LearnerLost(late.who, str(late)) from late
            except WeightsNotProved:  # of all
                if not all(map(began_blank, attempt.lost)):
                    raise
                self._take_out(attempt.lost)  # those that replace them load the model's folder
                continue
            except Broken as broken:
                culprits = {m: e for m, e in attempt.lost.items() if isinstance(e, ComponentDied | DeadlineExceeded)}
                unexplained += not culprits
                if not culprits:
                    self._groups.clear()
                self._groups.forget(attempt.lost)
                if broken.cause is not None and unexplained > 1:
                    raise LearnerLost("the learner", str(broken.cause)) from None
                self._take_out(culprits if unexplained < 2 else attempt.lost)
                continue
            self._take_out(attempt.lost)
            return version, attempt

    def _take_out(self, lost: Mapping[Member, LpoRayError]) -> None:
        self._groups.forget(lost)
        for member, error in lost.items():
            self._as_loaded.engines.pop(member, None)
            self._pool.take_out(member, error)
