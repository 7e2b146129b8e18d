"""Weights through Ray's object store: works wherever Ray does, across hosts too.

prepare: all ranks gather, rank 0 serialises once. transfer: one put, every engine reads it and loads it between two
decoding steps. prove: each engine returns the digest of the bytes it loaded, and its log-probs of the probe sequences
must be the learner's.
"""

from __future__ import annotations

from collections.abc import Sequence

import ray

from actors.calls import call_all
from actors.learner_group import LearnerGroup
from actors.rollout_pool import RolloutPool
from lpo_ray.errors import WeightsNotProved
from lpo_ray.model import largest_difference
from lpo_ray.records import IntArray, WeightsVersion


class ObjectStoreTransport:
    """WeightTransport over the object store."""

    def __init__(
        self,
        learner: LearnerGroup,
        pool: RolloutPool,
        probe: Sequence[IntArray],
        tolerance: float,
        deadline_seconds: float,
    ) -> None:
        """``tolerance``: largest log-prob difference on ``probe`` that is still rounding."""
        self._learner, self._pool, self._probe = learner, pool, list(probe)
        self._tolerance, self._deadline = tolerance, deadline_seconds

    async def publish(self, step: int) -> WeightsVersion:
        """See interfaces.WeightTransport."""
        payload, digest = await self._learner.weights()
        version = WeightsVersion(step, digest)
        members = self._pool.members
        names = [member.name for member in members]
        reference = ray.put(payload)
        received = await call_all(
            [member.handle.update_weights.remote(reference, step) for member in members],
            who=names,
            what=f"load weights {version}",
            seconds=self._deadline,
        )
        expected = await self._learner.logprobs(self._probe)
        served = await call_all(
            [member.handle.logprobs.remote(self._probe) for member in members],
            who=names,
            what=f"answer the probe of weights {version}",
            seconds=self._deadline,
        )
        for name, arrived, logprobs in zip(names, received, served, strict=True):
            difference = largest_difference(expected, logprobs)
            if arrived != digest:
                why = f"the bytes that arrived have digest {arrived[:12]}"
                raise WeightsNotProved(name, str(version), difference, self._tolerance, why)
            if difference > self._tolerance:
                raise WeightsNotProved(
                    name, str(version), difference, self._tolerance, "its log-probs of the probe are not the learner's"
                )
        return version
