"""The ZeRO-3 ranks as one Learner. They live and die together: when one is lost all are ended and started again
(``reform``), on fewer machines if need be.
"""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import ray
from ray.actor import ActorProxy
from typing_extensions import override

from actors.learner.worker import Export, LearnerWorker, Staged
from actors.runtime.inspection import dismiss, end, inspect
from actors.runtime.remote_calls import INNER, call_all, call_each
from actors.runtime.start_watch import PROGRESS, StartWatch
from actors.transports.table import Transport
from lpo_ray.common.restart_budget import RestartBudget, RestartRule
from lpo_ray.common.silence import LOOKS, Progress, Watch
from lpo_ray.errors import (
    ComponentDied,
    ComponentFailed,
    DeadlineExceeded,
    LearnerLost,
    LpoRayError,
    NoRoom,
    WeightsNotProved,
)
from lpo_ray.interfaces import Events, Learner
from lpo_ray.learner.merge_ranks import merge_log_ratios, merge_reports
from lpo_ray.learner.packing import Packing, balance
from lpo_ray.policy.weights import Manifest
from lpo_ray.policy.weights_proof import compare
from lpo_ray.records import (
    Anchor,
    BusyWorker,
    FloatArray,
    Process,
    ScoredGroup,
    ScoringItem,
    StepReport,
    TrainBatch,
    for_one_rank,
)

S = TypeVar("S")
T = TypeVar("T")
LOST_PEER = ("gloo", "nccl", "connection closed by peer", "connection reset", "broken pipe", "socket", "disterror",
             "distbackenderror", "distnetworkerror", "diststoreerror")  # fmt: skip
"""signs, in the error of a rank, that its collective failed because another rank is gone"""
LAST_WORDS_SECONDS = 5.0
"""for finding a rank that died, after another has complained"""


@dataclass(frozen=True, slots=True)
class Formation:
    """Actors of all ranks, and what gives their places back."""

    ranks: list[ActorProxy[LearnerWorker]]
    leave: Callable[[], None]


@dataclass(frozen=True, slots=True)
class LearnerRules:
    """Number of ranks, how long they may take, and their restart budget."""

    world_size: int
    min_world_size: int
    packing: Packing
    silence_seconds: float
    """time in which they must get on with what they are asked for"""
    start_seconds: float
    """limit for their start, once there is room for them"""
    start_silence_seconds: float
    """time in which they must do something in it"""
    restarts: RestartRule
    shards_on_disk: bool = False
    """parameters are offloaded to NVMe"""


class LearnerGroup(Learner):
    """Learner over Ray: each method calls all ranks at once and waits for all of them."""

    def __init__(self, form: Callable[[int], Awaitable[Formation]], rules: LearnerRules, events: Events) -> None:
        """``form``: finds room for so many ranks and makes their actors; raises NoRoom."""
        self._form, self._rules, self._events = form, rules, events
        self._budget = RestartBudget(rules.restarts)
        self._formation: Formation | None = None
        self.generation = 0
        """how often the ranks were started"""
        self.world_size = rules.world_size
        self.processes: list[Process] = []
        self._manifest: Manifest | None = None
        self._export: tuple[Transport, str, int] | None = None
        self.weights_lock = asyncio.Lock()
        """held while the weights change, and while they are being published"""
        self.published = False
        """every engine that serves has these weights; false from the moment they may change"""
        self._calls: list[tuple[str, float]] = []
        """calls that not all ranks have answered, oldest first, and since when in unix seconds"""
        self._watch = Watch(self._progress, rules.silence_seconds, "learner.silence_seconds")
        self._starts = StartWatch(rules.start_silence_seconds)
        self._done: dict[str, object] = {}
        """rank -> how far it was when it said so last"""

    @property
    def manifest(self) -> Manifest:
        """Layout of what the ranks send, once ``open_export`` has made it."""
        assert self._manifest is not None
        return self._manifest

    @property
    def ranks(self) -> list[ActorProxy[LearnerWorker]]:
        """Actors of the ranks, in their order."""
        return [] if self._formation is None else self._formation.ranks

    @property
    def names(self) -> list[str]:
        """Names of the ranks, in their order."""
        return [f"learner rank {rank}" for rank in range(self.world_size)]

    @override
    async def log_ratios(self, groups: Sequence[ScoredGroup]) -> Anchor:
        # Groups are balanced over the ranks, and merged in their own order.
        packing = dataclasses.replace(self._rules.packing, world_size=self.world_size)
        shares = await asyncio.to_thread(balance, groups, packing)
        sent = await self._sent(lambda rank: for_one_rank(shares[rank]))
        parts = await self._all("log_ratios", lambda rank: self.ranks[rank].log_ratios.remote(sent[rank]))
        return merge_log_ratios(groups, [found for part in parts for found in part])

    @override
    async def project(self, batch: TrainBatch) -> StepReport:
        sent = await self._sent(batch.for_rank)
        async with self.weights_lock:
            self.published = False
            return merge_reports(await self._all("project", lambda rank: self.ranks[rank].project.remote(sent[rank])))

    @override
    async def logprobs(self, forwards: Sequence[Sequence[ScoringItem]], temperature: float) -> list[FloatArray]:
        # Forwards are dealt out to the ranks in turn.
        size = self.world_size
        turns = -(-len(forwards) // size)
        by_rank = await self._all(
            "logprobs", lambda rank: self.ranks[rank].logprobs.remote(forwards[rank::size], turns, temperature)
        )
        return [row for number in range(len(forwards)) for row in by_rank[number % size][number // size]]

    async def probe(
        self, bundles: Sequence[ScoringItem], typical: float = 0.0, *, without_adapter: bool = False
    ) -> list[FloatArray]:
        """Compute the log-probs that every engine must agree with, [T-1] for each bundle. All ranks gather the same
        weights, so they must find the same but for ``typical`` nats of rounding, as devices of several kinds do.
        ``without_adapter``: those of the model that the adapter is beside. Raises WeightsNotProved if one does not.
        """
        by_rank = await self._all(
            "compute the probe", lambda rank: self.ranks[rank].probe.remote(bundles, without_adapter)
        )
        for rank, other in enumerate(by_rank[1:], start=1):
            found = compare(by_rank[0], other).typical if other else 0.0
            if not found <= typical:
                why = "its log-probs of the probe are not rank 0's: the ranks gather different weights"
                raise WeightsNotProved(self.names[rank], "current", found, typical, why)
        return by_rank[0]

    async def base_digest(self) -> str:
        """Compute the digest of the model beside the adapter, as rank 0 has read it: all ranks have its values."""
        found = await self._all("digest the model's files", lambda rank: self.ranks[rank].base_digest.remote())
        return found[0]

    @override
    async def digest(self) -> str:
        parts = await self._all("digest its weights", lambda rank: self.ranks[rank].digests.remote())
        return self.manifest.digest({name: digest for part in parts for name, digest in part.items()})

    async def open_export(self, transport: Transport, dtype: str, bucket_bytes: int) -> Manifest:
        """Prepare the ranks to send their weights in ``dtype``. May be called again, for another transport."""
        self._export = (transport, dtype, bucket_bytes)
        nodes = {process.node_id for process in self.processes}
        share_memory = not transport.on_device and len(nodes) == 1 and not self._rules.shards_on_disk
        export = Export(transport, dtype, bucket_bytes, share_memory)
        what = "prepare to send its weights"
        self._manifest, *_ = await self._all(what, lambda rank: self.ranks[rank].open_export.remote(export))
        return self.manifest

    async def offer(self, group: int, num_peers: int, keep: Sequence[int], seconds: float) -> list[object]:
        """Return what engines need to reach each rank as a new ``group``; ``num_peers`` engine processes will. Groups
        that are not to ``keep`` are ended.
        """
        return await self._all(
            "offer its weights", lambda rank: self.ranks[rank].offer.remote(group, num_peers, keep), seconds,
            alone=False,
        )  # fmt: skip

    async def accept(self, seconds: float) -> None:
        """Wait until the engines have joined every rank."""
        what = "wait for the engines to join"
        await self._all(what, lambda rank: self.ranks[rank].accept.remote(INNER * seconds), seconds, alone=False)

    async def advance(self, sent: int | None, groups: Sequence[int], seconds: float) -> list[Staged]:
        """Send the staged bucket ``sent`` to ``groups`` while the next is staged (None: stage the first). Empty after
        the last.
        """
        what = "stage the first bucket" if sent is None else f"send bucket {sent}"
        parts = await self._all(
            what, lambda rank: self.ranks[rank].advance.remote(sent, groups, INNER * seconds), seconds, alone=False
        )
        return [part for part in parts if part is not None]

    @override
    async def save(self, folder: Path) -> None:
        # The folder must be visible to every rank.
        await self._all("save", lambda rank: self.ranks[rank].save.remote(folder.absolute()))

    @override
    async def restore(self, folder: Path, written_by: int) -> None:
        async with self.weights_lock:
            self.published = False
            await self._all("restore", lambda rank: self.ranks[rank].restore.remote(folder.absolute(), written_by))

    def busy(self) -> list[BusyWorker]:
        """List the ranks with the call that they work on; none when nothing is asked of them."""
        if not self._calls:
            return []
        (what, since), *_ = self._calls  # a rank takes its calls in order
        return [
            BusyWorker(name, what, since, process) for name, process in zip(self.names, self.processes, strict=False)
        ]

    @override
    async def reform(self, lost: LearnerLost) -> None:
        texts = await asyncio.gather(*(inspect(process) for process in self.processes))
        evidence = "\n".join(f"{name}: {text}" for name, text in zip(self.names, texts, strict=False))
        self._events.note(f"the learner's ranks are started again: {lost}\n{evidence}")
        async with self.weights_lock:
            self.published = False
            self.kill()
            pause = self._budget.spend()
            if pause is None:
                raise ComponentDied(lost.who, f"{lost.cause}; the learner's {self._budget} are spent (supervision)")
            await asyncio.sleep(pause)
            await self._start_where_there_is_room()
            if self._export is not None:
                await self.open_export(*self._export)

    async def close(self) -> None:
        """End all ranks, and give their places back."""
        await dismiss(self.ranks, self.processes)
        self.kill()

    def kill(self) -> None:
        """Kill all ranks immediately, including stopped ones (SIGSTOP)."""
        for process in self.processes:
            end(process)
        self.processes = []
        self._done = {}
        if self._formation is None:
            return
        for rank in self._formation.ranks:
            ray.kill(rank)  # pyright: ignore[reportArgumentType] - an ActorProxy is an ActorHandle at run time
        self._formation.leave()
        self._formation = None

    async def _start_where_there_is_room(self) -> None:
        rules = self._rules
        for size in range(rules.world_size, rules.min_world_size - 1, -1):
            try:
                return await self.start(size)
            except NoRoom as error:
                if size == rules.min_world_size:
                    raise
                self._events.note(f"{error}; trying {size - 1} learner ranks (learner.min_world_size)")
        return None

    async def start(self, world_size: int | None = None) -> None:
        """Find room for the ranks (all of them if no number is given), make them, and ``load``. Raises NoRoom."""
        size = self._rules.world_size if world_size is None else world_size
        self._formation = await self._form(size)
        self.world_size = size
        await self.load()

    async def load(self) -> None:
        """Form the process group of the ranks, and load the policy."""
        self.generation += 1
        seconds = self._rules.start_seconds
        (host, port), *_ = await self._all("address", lambda rank: self.ranks[rank].address.remote(), seconds)
        references = [rank.start.remote(host, port, seconds) for rank in self.ranks]
        starting = self._starts.start(references, self.ranks, who=self.names, what="start", seconds=seconds)
        self.processes = await self._answers("start", references, starting)

    async def _sent(self, share: Callable[[int], S]) -> list[ray.ObjectRef[S]]:
        """Put each rank's share into the object store, in a thread: it copies gigabytes, and nothing waits for it."""
        return [await asyncio.to_thread(lambda n: ray.put(share(n)), rank) for rank in range(self.world_size)]

    async def _all(
        self, what: str, remote: Callable[[int], ray.ObjectRef[T]], seconds: float | None = None, *, alone: bool = True
    ) -> list[T]:
        """Call all ranks. ``seconds``: at most; None: as long as they get on with something. ``alone``: only ranks take
        part, so one that is late, or blames its peers, is lost.
        """
        references = [remote(rank) for rank in range(self.world_size)]
        watch = self._watch if seconds is None else None
        answers = call_all(references, who=self.names, what=what, seconds=seconds, watch=watch)
        return await self._answers(what, references, answers, alone=alone)

    async def _answers(
        self, what: str, references: Sequence[ray.ObjectRef[T]], answers: Awaitable[list[T]], *, alone: bool = True
    ) -> list[T]:
        """Await what the ranks answer to ``references``. Raises LearnerLost, or the error of one that does not fail
        alone, with what is seen of its process.
        """
        self._calls.append(asked := (what, time.time()))
        try:
            return await answers
        except DeadlineExceeded as late:
            processes = dict(zip(self.names, self.processes, strict=False))  # none before the start is done
            found = [processes[name] for name in late.who.split(", ") if name in processes]
            account = late.with_evidence([await inspect(process) for process in found])
            if alone:
                raise LearnerLost(late.who, str(account)) from late
            raise account from late
        except ComponentDied as died:
            raise LearnerLost(died.who, died.cause) from died
        except ComponentFailed as failed:
            raise await self._why_failed(failed, references, what, alone=alone) from failed
        finally:
            self._calls.remove(asked)

    async def _progress(self) -> Progress | None:
        """Ask the ranks how far they are. They work together: while one gets on, none is silent."""
        references = [rank.progress.options(concurrency_group=PROGRESS).remote() for rank in self.ranks]
        seconds = self._watch.seconds / LOOKS
        answers = await call_each(references, who=self.names, what="say how far it is", seconds=seconds)
        self._done |= {name: n for name, n in zip(self.names, answers, strict=True) if not isinstance(n, LpoRayError)}
        return Progress(tuple(self._done.values()))

    async def _why_failed(
        self, failed: ComponentFailed, references: Sequence[ray.ObjectRef[T]], what: str, *, alone: bool
    ) -> LpoRayError:
        """Find the error to raise. A rank that complains about its peers is not at fault if another one has died."""
        if not any(sign in failed.cause.lower() for sign in LOST_PEER):
            return failed
        results = await call_each(references, who=self.names, what=what, seconds=LAST_WORDS_SECONDS)
        died = next((result for result in results if isinstance(result, ComponentDied)), None)
        if died is not None:
            return LearnerLost(died.who, died.cause)
        return LearnerLost(failed.who, str(failed)) if alone else failed
