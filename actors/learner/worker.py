"""One ZeRO-3 rank as an actor. Every method is a collective over all ranks, unless it says otherwise."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch
from ray.util import get_node_ip_address
from torch.distributed import TCPStore

from actors.control.log_shipping import log, ship_log
from actors.learner.store_barrier import StoreBarrier
from actors.runtime.cpu_tuning import give_back_unless_spare
from actors.runtime.inspection import current_process
from actors.runtime.rendezvous import join_store, listen, meeting_address, open_store
from actors.runtime.start_watch import Startable
from actors.transports.sender import Sender
from actors.transports.staging import Staging, make_slots
from actors.transports.table import Transport
from lpo_ray.common.files import PARTIAL, sync
from lpo_ray.common.plugins import resolve
from lpo_ray.learner.settings import LearnerSettings
from lpo_ray.learner.updates import log_ratios_to_engine, run_updates
from lpo_ray.policy.base_files import base_digest
from lpo_ray.policy.saving import save_policy
from lpo_ray.policy.scoring import Scorer, response_logprobs
from lpo_ray.policy.tensor_file import DiskTensors
from lpo_ray.policy.tokenizer import Tokenizer
from lpo_ray.policy.weights import Manifest, TensorMeta, is_published, make_manifest
from lpo_ray.records import (
    AnchorPiece,
    FloatArray,
    MicroBatch,
    Process,
    ScoredGroup,
    ScoringItem,
    TrainBatch,
    UpdateReport,
)


@dataclass(frozen=True, slots=True)
class Export:
    """Settings by which ranks send weights."""

    transport: Transport
    dtype: str
    """dtype of the engines, to which what is sent is cast"""
    bucket_bytes: int
    share_memory: bool
    """whether the ranks gather in memory that they share: all are on one host"""


@dataclass(frozen=True, slots=True)
class Staged:
    """A bucket that is ready to be sent, as one rank sees it."""

    digests: dict[str, str]
    """digests of the tensors in its share"""
    ticket: object
    """what engines need to find the share"""


def bytes_under(folder: Path) -> int:
    """Add up the sizes of the files in a folder that is being filled. A folder that is not there is empty."""
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):  # renamed meanwhile
                total += os.stat(os.path.join(place, name)).st_size
    return total


def _interface_of(address: str) -> str | None:
    """Find the network interface that has ``address``."""
    found = psutil.net_if_addrs().items()
    return next((name for name, entries in found if any(entry.address == address for entry in entries)), None)


GATHERED = f"{PARTIAL}weights"
"""file in which rank 0 gathers the weights while it writes a checkpoint"""
OF_A_RANK = re.compile(r"rank_(\d+)\.safetensors")


def sync_own_files(folder: Path, rank: int) -> None:
    """Put on disk what rank ``rank`` wrote into ``folder``: everything but the files that name another rank."""
    for path in (*folder.rglob("*"), folder):
        named = OF_A_RANK.fullmatch(path.name)
        if path.name != GATHERED and (named is None or int(named[1]) == rank):
            with suppress(FileNotFoundError):  # another rank's, which it removed again
                sync(path)


class LearnerWorker(Startable):
    """One rank: a plain class that ``roles.py`` makes an actor, with one call at a time: collectives stay in step."""

    def __init__(self, rank: int, world_size: int, settings: LearnerSettings) -> None:
        self._rank, self._world_size, self._settings = rank, world_size, settings
        self._listener: socket.socket | None = None
        self._done = 0
        """passes, updates, pieces of weights so far"""
        self._writing: Path | None = None
        """folder that it fills now"""
        self._barrier: StoreBarrier | None = None
        self._sender: Sender | None = None

    def progress(self) -> tuple[int, int]:
        """Say how far this rank is: what it has done, and the bytes of the checkpoint that it writes. Not a collective;
        runs beside the other calls, and tells ranks that wait for this one, too.
        """
        done = self._done, 0 if self._writing is None else bytes_under(self._writing)
        if self._barrier is not None:
            self._barrier.beat(done)
        return done

    def _count(self) -> None:
        self._done += 1

    def address(self) -> tuple[str, int]:
        """Listen where the other ranks can meet this one; only their host or network reaches it. Not a collective."""
        host = meeting_address()
        self._listener = listen(host)
        return host, self._listener.getsockname()[1]

    def start(self, host: str, port: int, seconds: float) -> Process:
        """Join the other ranks at ``host:port``, within ``seconds``, and load the policy."""
        from actors.learner.zero3 import Zero3Policy, Zero3Scorer, join_group, load_sharded
        from lpo_ray.policy.dry_check import check_numbers
        from lpo_ray.policy.lora_layers import BaseScorer

        ship_log("learner", f"learner rank {self._rank}")
        settings = self._settings
        os.environ.update(
            RANK=str(self._rank),
            LOCAL_RANK="0",
            WORLD_SIZE=str(self._world_size),
            MASTER_ADDR=host,
            MASTER_PORT=str(port),
        )
        if interface := _interface_of(get_node_ip_address()):
            os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)  # else it goes by what the host's name resolves to
        if not torch.distributed.is_initialized():  # ranks may be started again, with another model
            store = self._meet(host, port, seconds)
            self._barrier = StoreBarrier(store, self._rank, self._world_size, settings.silence_seconds)
            join_group(store, self._rank, self._world_size, on_gpu=settings.on_gpu)
        torch.set_num_threads(settings.threads or self._share_of_cores())
        self._tokenizer = Tokenizer.load(settings.model_path, trust_remote_code=settings.trust_remote_code)
        self._policy = Zero3Policy(
            load_sharded(settings.model_path, settings, self._count, settings.adapter),
            settings.optimiser,
            gradient_checkpointing=settings.gradient_checkpointing,
        )
        check_numbers(self._policy, self._policy.model)
        self._reference: Scorer | None = None
        if settings.objective.at(0).reference_kl and settings.reference_is_base:
            self._reference = BaseScorer(self._policy, self._policy.model)
        elif settings.objective.at(0).reference_kl:
            self._reference = Zero3Scorer(load_sharded(settings.reference_path, settings, self._count))
            check_numbers(self._reference, self._reference.model)
        process = current_process()
        log.info("is up on %s, one of %d ranks, reached at %s", process.host, self._world_size, host)
        return process

    def _share_of_cores(self) -> int:
        """Divide this host's cores among the ranks on it. A collective."""
        hosts: list[object] = [None] * self._world_size
        torch.distributed.all_gather_object(hosts, host := socket.gethostname())
        return max(1, len(os.sched_getaffinity(0)) // hosts.count(host))

    def _meet(self, host: str, port: int, seconds: float) -> TCPStore:
        listener, self._listener = self._listener, None
        assert listener is not None
        if self._rank == 0:
            return open_store(host, listener, self._world_size, seconds=seconds)
        listener.close()
        return join_store(host, port, self._world_size, seconds=seconds)

    def log_ratios(self, share: Sequence[MicroBatch[ScoredGroup]]) -> list[AnchorPiece]:
        """Compute the anchor of this rank's share of the pieces."""
        return log_ratios_to_engine(self._policy, share, self._settings.objective.at(0))

    def project(self, batch: TrainBatch) -> list[UpdateReport]:
        """Run all updates of a step. ``batch``: as ``for_rank`` makes it."""
        objective = self._settings.objective.at(batch.step)
        reports = run_updates(self._policy, batch.updates, self._rank, objective, batch.learning_rate, self._reference)
        if self._policy.model.device.type == "cpu":
            give_back_unless_spare()
        return reports

    def logprobs(
        self, forwards: Sequence[Sequence[ScoringItem]], turns: int, temperature: float
    ) -> list[list[FloatArray]]:
        """Compute the log-probs of each response's tokens, for each of this rank's ``forwards``. ``turns``: forwards of
        the rank that has the most; all run as many, since all gather the weights.
        """
        found = [response_logprobs(self._policy, bundles, temperature) for bundles in forwards]
        for _ in range(turns - len(forwards)):
            response_logprobs(self._policy, (), temperature)
        return found

    def probe(self, bundles: Sequence[ScoringItem], without_adapter: bool = False) -> list[FloatArray]:
        """Compute the log-probs of each response's tokens, the same on every rank. ``without_adapter``: those of the
        model that the adapter is beside.
        """
        if not without_adapter:
            return response_logprobs(self._policy, bundles)
        from lpo_ray.policy.lora_layers import BaseScorer

        return response_logprobs(BaseScorer(self._policy, self._policy.model), bundles)

    def base_digest(self) -> str:
        """Compute the digest of the model in its files, which is not sent, on the rank whose values all have. Not a
        collective.
        """
        return base_digest(self._settings.model_path) if self._rank == 0 else ""

    def open_export(self, export: Export) -> Manifest:
        """Prepare to send weights. May be called again, for another transport."""
        metas = [TensorMeta(n, s) for n, s in self._policy.shapes().items() if is_published(n, self._policy.model)]
        transport = export.transport
        senders = self._world_size if transport.every_rank_sends else 1
        manifest = make_manifest(metas, export.dtype, bucket_bytes=export.bucket_bytes, num_senders=senders)
        slots = make_slots(
            manifest,
            self._policy.device,
            share_memory=export.share_memory,
            whole=transport.whole_buckets,
            on_device=transport.on_device,
        )
        self._staging = Staging(self._policy, manifest, slots)
        if self._sender is not None:
            self._sender.close()
        self._sender = resolve(transport.sender, {}, "transport.kind")(self._staging, get_node_ip_address())
        return manifest

    def offer(self, group: int, num_peers: int, keep: Sequence[int]) -> object:
        """Return what engines need to reach this rank as a new ``group``, and end all but those to ``keep``. Not a
        collective.
        """
        return self._opened().offer(group, num_peers, keep)

    def accept(self, seconds: float) -> None:
        """Wait until the engines have joined this rank. Not a collective of the ranks."""
        self._opened().accept(seconds)

    def advance(self, sent: int | None, groups: Sequence[int], seconds: float) -> Staged | None:
        """Send the staged bucket ``sent`` to ``groups`` while the next one is staged; None: stage the first. None after
        the last. Raises TimeoutError when the engines do not take a bucket in time.

        Both are begun here: collectives of two groups that several threads issue on one device may lock each other.
        """
        following, sender = 0 if sent is None else sent + 1, self._opened()
        wait = None if sent is None else sender.send(sent, groups, seconds)
        staged = None
        if following < len(self._staging.manifest.buckets):
            staged = Staged(self._staging.stage(following), sender.ticket(following))
        if wait is not None:
            wait()
        return staged

    def _opened(self) -> Sender:
        assert self._sender is not None
        return self._sender

    def digests(self) -> dict[str, str]:
        """Compute the digests of the tensors that this rank would send."""
        return self._staging.digests()

    def save(self, folder: Path) -> None:
        """Write ``folder/shards`` from all ranks, and from rank 0 ``folder/policy`` in Hugging Face format, or of an
        adapter in PEFT's. All of it is on disk when this returns.
        """
        assert self._barrier is not None
        self._writing = folder
        weights: DiskTensors | None = None
        try:
            self._policy.save(folder)
            if self._rank == 0:
                weights = DiskTensors(folder / GATHERED, self._policy.shapes(), self._policy.model.dtype)
            self._barrier.wait("writing shards")  # before the collectives: no rank waits in one for another's disk
            self._policy.gather(weights)
            if weights is not None:
                save_policy(folder / "policy", self._policy.model, self._settings.adapter, weights.tensors)
                self._tokenizer.save(folder / "policy")
                weights.close()
            sync_own_files(folder, self._rank)  # where they were written: another host's sync does not reach them
            self._barrier.wait("saving")
        finally:
            self._writing = None
            if weights is not None:
                weights.close()

    def restore(self, folder: Path, written_by: int) -> None:
        """Continue from ``save`` by ``written_by`` ranks."""
        assert self._barrier is not None
        self._policy.restore(folder, written_by, self._barrier.wait)
