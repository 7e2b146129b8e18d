"""The ZeRO-3 ranks as one Learner."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
import ray
from ray.actor import ActorProxy

from actors.calls import call_all
from actors.learner_worker import LearnerWorker
from lpo_ray.errors import WeightsNotProved
from lpo_ray.merging import merge_log_ratios, merge_reports
from lpo_ray.packing import Packing, balance
from lpo_ray.records import Anchor, FloatArray, IntArray, ScoredGroup, StepReport, TrainBatch

T = TypeVar("T")


class LearnerGroup:
    """Learner over Ray: each method calls all ranks at once and waits for all of them."""

    def __init__(self, ranks: Sequence[ActorProxy[LearnerWorker]], packing: Packing, deadline_seconds: float) -> None:
        self.ranks = list(ranks)
        self.world_size = len(self.ranks)
        self._packing, self._deadline = packing, deadline_seconds

    async def log_ratios(self, groups: Sequence[ScoredGroup]) -> Anchor:
        """See interfaces.Learner. Groups are balanced over the ranks and returned in their own order."""
        shares = ray.put(balance(groups, self._packing))
        parts = await self._all("log_ratios", lambda rank: self.ranks[rank].log_ratios.remote(shares))
        return merge_log_ratios(groups, [found for part in parts for found in part])

    async def project(self, batch: TrainBatch) -> StepReport:
        """See interfaces.Learner. The batch is put into the object store once and read by every rank."""
        reference = ray.put(batch)
        return merge_reports(await self._all("project", lambda rank: self.ranks[rank].project.remote(reference)))

    async def logprobs(self, sequences: Sequence[IntArray]) -> list[FloatArray]:
        """See interfaces.Learner. All ranks gather the same weights, so all must compute the same."""
        by_rank = await self._all("logprobs", lambda rank: self.ranks[rank].logprobs.remote(sequences))
        for rank, other in enumerate(by_rank[1:], start=1):
            if not all(np.array_equal(a, b) for a, b in zip(by_rank[0], other, strict=True)):
                raise WeightsNotProved(f"learner rank {rank}", "current", float("nan"), 0.0, "it differs from rank 0")
        return by_rank[0]

    async def weights(self) -> tuple[bytes, str]:
        """See interfaces.Learner."""
        parts = await self._all("gather weights", lambda rank: self.ranks[rank].weights.remote())
        gathered = parts[0]
        assert gathered is not None
        return gathered

    async def shard_digests(self) -> list[dict[str, float]]:
        """Norms of each rank's shards."""
        return await self._all("shard_digests", lambda rank: self.ranks[rank].shard_digests.remote())

    async def save(self, folder: Path) -> None:
        """See interfaces.Learner. The folder must be visible to every rank."""
        await self._all("save", lambda rank: self.ranks[rank].save.remote(folder.absolute()))

    async def restore(self, folder: Path, written_by: int) -> None:
        """See interfaces.Learner."""
        await self._all("restore", lambda rank: self.ranks[rank].restore.remote(folder.absolute(), written_by))

    async def start(self) -> list[int]:
        """Form the process group and load the policy; returns the ranks' process ids."""
        (host, port), *_ = await self._all("address", lambda rank: self.ranks[rank].address.remote())
        return await self._all("start", lambda rank: self.ranks[rank].start.remote(host, port))

    async def _all(self, what: str, remote: Callable[[int], ray.ObjectRef[T]]) -> list[T]:
        return await call_all(
            [remote(rank) for rank in range(self.world_size)],
            who=[f"learner rank {rank}" for rank in range(self.world_size)],
            what=what,
            seconds=self._deadline,
        )
