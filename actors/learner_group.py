"""The ZeRO-3 ranks as one Learner."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
import ray
from ray.actor import ActorProxy

from actors.calls import INNER, call_all
from actors.inspection import inspect
from actors.learner_worker import Export, LearnerWorker, Staged
from actors.transports import Transport
from lpo_ray.errors import DeadlineExceeded, WeightsNotProved
from lpo_ray.merging import merge_log_ratios, merge_reports
from lpo_ray.packing import Packing, balance
from lpo_ray.records import Anchor, FloatArray, Holder, IntArray, Process, ScoredGroup, StepReport, TrainBatch
from lpo_ray.weights import Manifest

T = TypeVar("T")


class LearnerGroup:
    """Learner over Ray: each method calls all ranks at once and waits for all of them."""

    def __init__(
        self,
        ranks: Sequence[ActorProxy[LearnerWorker]],
        packing: Packing,
        deadline_seconds: float,
        *,
        shards_on_disk: bool = False,
    ) -> None:
        """``shards_on_disk``: parameters are offloaded to NVMe."""
        self.ranks = list(ranks)
        self.world_size = len(self.ranks)
        self.names = [f"learner rank {rank}" for rank in range(self.world_size)]
        self.processes: list[Process] = []
        self.manifest: Manifest
        self.weights_lock = asyncio.Lock()
        """held while the weights change, and while they are being published"""
        self.published = False
        """every engine that serves has these weights; false from the moment they may change"""
        self._calls: list[tuple[str, float]] = []
        """what the ranks are asked for and have not all answered, oldest first, and since when in unix seconds"""
        self._packing, self._deadline, self._shards_on_disk = packing, deadline_seconds, shards_on_disk

    async def log_ratios(self, groups: Sequence[ScoredGroup]) -> Anchor:
        """See interfaces.Learner. Groups are balanced over the ranks and returned in their own order."""
        shares = ray.put(balance(groups, self._packing))
        parts = await self._all("log_ratios", lambda rank: self.ranks[rank].log_ratios.remote(shares))
        return merge_log_ratios(groups, [found for part in parts for found in part])

    async def project(self, batch: TrainBatch) -> StepReport:
        """See interfaces.Learner. The batch is put into the object store once and read by every rank."""
        reference = ray.put(batch)
        async with self.weights_lock:
            self.published = False
            return merge_reports(await self._all("project", lambda rank: self.ranks[rank].project.remote(reference)))

    async def logprobs(self, sequences: Sequence[IntArray]) -> list[FloatArray]:
        """See interfaces.Learner. All ranks gather the same weights, so all must compute the same."""
        by_rank = await self._all("logprobs", lambda rank: self.ranks[rank].logprobs.remote(sequences))
        for rank, other in enumerate(by_rank[1:], start=1):
            if not all(np.array_equal(a, b) for a, b in zip(by_rank[0], other, strict=True)):
                raise WeightsNotProved(self.names[rank], "current", float("nan"), 0.0, "it differs from rank 0")
        return by_rank[0]

    async def digest(self) -> str:
        """See interfaces.Learner."""
        parts = await self._all("digest its weights", lambda rank: self.ranks[rank].digests.remote())
        return self.manifest.digest({name: digest for part in parts for name, digest in part.items()})

    async def open_export(self, transport: Transport, dtype: str, bucket_bytes: int) -> Manifest:
        """Prepare the ranks to send their weights in ``dtype``. May be called again, for another transport."""
        nodes = {process.node_id for process in self.processes}
        share_memory = not transport.on_device and len(nodes) == 1 and not self._shards_on_disk
        export = Export(transport, dtype, bucket_bytes, share_memory)
        what = "prepare to send its weights"
        self.manifest, *_ = await self._all(what, lambda rank: self.ranks[rank].open_export.remote(export))
        return self.manifest

    async def offer(self, num_peers: int, seconds: float) -> list[object]:
        """What engines need to reach each rank."""
        return await self._all("offer its weights", lambda rank: self.ranks[rank].offer.remote(num_peers), seconds)

    async def accept(self, seconds: float) -> None:
        """Return when the engines have joined every rank."""
        what = "wait for the engines to join"
        await self._all(what, lambda rank: self.ranks[rank].accept.remote(INNER * seconds), seconds)

    async def advance(self, sent: int | None, seconds: float) -> list[Staged]:
        """Send the staged bucket ``sent`` while the next is staged; see LearnerWorker. Empty after the last."""
        what = "stage the first bucket" if sent is None else f"send bucket {sent}"
        parts = await self._all(what, lambda rank: self.ranks[rank].advance.remote(sent, INNER * seconds), seconds)
        return [part for part in parts if part is not None]

    async def shard_digests(self) -> list[dict[str, float]]:
        """Norms of each rank's shards."""
        return await self._all("shard_digests", lambda rank: self.ranks[rank].shard_digests.remote())

    async def save(self, folder: Path) -> None:
        """See interfaces.Learner. The folder must be visible to every rank."""
        await self._all("save", lambda rank: self.ranks[rank].save.remote(folder.absolute()))

    async def restore(self, folder: Path, written_by: int) -> None:
        """See interfaces.Learner."""
        async with self.weights_lock:
            self.published = False
            await self._all("restore", lambda rank: self.ranks[rank].restore.remote(folder.absolute(), written_by))

    def holders(self) -> list[Holder]:
        """The ranks, with the call that they work on; none when nothing is asked of them."""
        if not self._calls:
            return []
        (what, since), *_ = self._calls  # a rank takes its calls in order
        return [Holder(name, what, since, process) for name, process in zip(self.names, self.processes, strict=False)]

    async def start(self) -> None:
        """Form the process group and load the policy."""
        (host, port), *_ = await self._all("address", lambda rank: self.ranks[rank].address.remote())
        self.processes = await self._all("start", lambda rank: self.ranks[rank].start.remote(host, port))

    async def _all(self, what: str, remote: Callable[[int], ray.ObjectRef[T]], seconds: float | None = None) -> list[T]:
        references = [remote(rank) for rank in range(self.world_size)]
        self._calls.append(asked := (what, time.time()))
        try:
            return await call_all(references, who=self.names, what=what, seconds=seconds or self._deadline)
        except DeadlineExceeded as late:
            processes = dict(zip(self.names, self.processes, strict=False))  # none before the start is done
            found = [processes[name] for name in late.who.split(", ") if name in processes]
            raise late.with_evidence([await inspect(process) for process in found]) from late
        finally:
            self._calls.remove(asked)
