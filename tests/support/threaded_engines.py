"""A rank and engines on threads in place of processes: our senders, receivers and publisher, over NCCL or gloo."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import SimpleNamespace
from typing import TypeVar

import numpy as np
import pytest
import torch
from ray.exceptions import ActorDiedError
from torch import nn

import actors.transports.receiver
from actors.delivery import DeliverySettings
from actors.learner.group import Formation, LearnerGroup, LearnerRules
from actors.learner.worker import LearnerWorker
from actors.publisher import Publisher
from actors.rollout.vllm_extension import WorkerExtension
from actors.rollout.worker import Delivery
from actors.transports.gloo import GlooSender
from actors.transports.gpu_receivers import NcclReceiver
from actors.transports.host_receiver import HostReceiver
from actors.transports.nccl import NcclSender
from actors.transports.staging import Slots, Staging
from actors.transports.table import TRANSPORTS
from lpo_ray.common.restart_budget import RestartRule
from lpo_ray.common.silence import Progress
from lpo_ray.learner.packing import Packing
from lpo_ray.policy.proof_limits import ProofLimits
from lpo_ray.policy.weights import Manifest, TensorMeta, make_manifest
from lpo_ray.records import FloatArray, Process
from lpo_ray.rollout.member import Member
from tests.support.fake_nccl import FakeDevice, FakeNccl, set_device, synchronize
from tests.support.fakes import FakeEvents
from tests.support.member_pool import MemberPool
from tests.support.ray_fakes import Reference, remote_worker

T = TypeVar("T")
PROBE = [np.arange(3), np.arange(4)]
LOGPROBS = [np.zeros(2, np.float32), np.zeros(3, np.float32)]
METAS = [TensorMeta(f"t{number}", (4, 3 + number)) for number in range(6)]
SMALL = make_manifest(METAS, "float32", bucket_bytes=128, num_senders=1)
LEARNERS_GPU = 0
PREPARE, JOIN, TRANSFER = 4.0, 3.0, 3.0


class OwnThread:
    """A process's main thread."""

    def __init__(self, device: int) -> None:
        self._pool = ThreadPoolExecutor(1, f"main thread on device {device}", lambda: set_device(device))

    def call(self, work: Callable[[], T]) -> Future[T]:
        return self._pool.submit(work)


class Model(nn.Module):
    """A model that keeps what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.loaded: dict[str, torch.Tensor] = {}

    def load_weights(self, pairs) -> None:
        self.loaded |= {name: tensor.clone() for name, tensor in pairs}


class EngineProcess(OwnThread, WorkerExtension):
    """One process of an engine, with vLLM's worker reduced to what a transfer needs."""

    def __init__(self, rank: int, size: int, device: int, kind: str) -> None:
        super().__init__(device)
        parallel = SimpleNamespace(rank=rank, world_size=size, data_parallel_index=0)
        config = SimpleNamespace(parallel_config=parallel, model_config=None, lora_config=None)
        self.device, self.model = device, Model()
        receiver, place = (NcclReceiver, FakeDevice(device)) if kind == "nccl" else (HostReceiver, torch.device("cpu"))
        self.weight_transfer_engine = receiver(None, config, place, self.model)
        self.start_weight_update = self.weight_transfer_engine.start_weight_update
        self.finish_weight_update = self.weight_transfer_engine.finish_weight_update

    def begin(self) -> None:
        """Pause, which promises an idle device, and begin an update."""
        if self.weight_transfer_engine.device.type != "cpu":
            synchronize(self.device)
        self.restart_weight_update()


class Engine:
    """A rollout worker's handle: an engine of some processes. ``hangs_in``: methods that it never answers."""

    def __init__(self, devices: list[int], kind: str) -> None:
        self.processes = [EngineProcess(rank, len(devices), device, kind) for rank, device in enumerate(devices)]
        self.hangs_in: set[str] = set()
        self.dies_in: set[str] = set()
        self.dead = False
        self.calls: list[str] = []

    def __getattr__(self, method: str) -> SimpleNamespace:
        return SimpleNamespace(remote=lambda *arguments: self._answer(method, arguments))

    def _answer(self, method: str, arguments: tuple) -> Reference:
        self.calls.append(method)
        if method == "progress":
            return Reference(Progress(0))
        self.dead = self.dead or method in self.dies_in
        if self.dead:
            return Reference(ActorDiedError())
        reference = Reference()
        if method not in self.hangs_in:
            threading.Thread(target=self._work, args=(reference, method, arguments), daemon=True).start()
        return reference

    def _work(self, reference: Reference, method: str, arguments: tuple) -> None:
        works: dict[str, Callable[[EngineProcess], object]] = {
            "begin_update": lambda process: process.begin(),
            "join_senders": lambda process: process.weight_transfer_engine.init_transfer_engine(
                process.weight_transfer_engine.parse_init_info(arguments[0])
            ),
            "receive": lambda process: process.weight_transfer_engine.update_weights(
                dict(zip(("bucket", "tickets", "seconds"), arguments, strict=True))
            ),
            "finish_update": lambda process: process.finish_weight_update(),
            "answer": lambda process: None,
            "release": lambda process: None,
        }
        parts = [process.call(lambda p=process: works[method](p)) for process in self.processes]
        errors = [error for part in parts if (error := part.exception()) is not None]
        if errors:
            reference.answer(errors[0])
        elif method == "finish_update":
            digests = [process.received_digests() for process in self.processes]
            reference.answer(Delivery(digests, self.answers, 0))
        else:
            reference.answer(self.answers if method == "answer" else None)

    @property
    def answers(self) -> list[FloatArray]:
        return [LOGPROBS[0], LOGPROBS[1][-1:]]

    def serves(self, weights: dict[str, torch.Tensor]) -> bool:
        """Tell whether every process has been given exactly these."""
        return all(
            set(process.model.loaded) == set(weights)
            and all(torch.equal(process.model.loaded[name], weights[name]) for name in weights)
            for process in self.processes
        )


class Policy:
    """A policy of one rank."""

    def __init__(self, manifest: Manifest) -> None:
        self.manifest = manifest
        self.change()

    def change(self) -> None:
        dtype = self.manifest.torch_dtype
        self.weights = {meta.name: torch.randn(meta.shape).to(dtype) for meta in self.manifest.tensors}

    def gather_into(self, names, views, dtype: torch.dtype = torch.float32) -> None:
        for name in names:
            views[name].copy_(self.weights[name])

    def write_shards(self, views) -> None:
        raise NotImplementedError


class GpuSlots(Slots):
    """Slots that say they are on the learner's GPU."""

    @property
    def device(self) -> torch.device:
        return FakeDevice(LEARNERS_GPU)  # type: ignore[return-value]


class Rank:
    """The learner's one rank as an actor."""

    def __init__(self, policy: Policy, kind: str = "nccl") -> None:
        self.worker = LearnerWorker(0, 1, None)  # type: ignore[arg-type]
        self.manifest = policy.manifest
        elements = torch.empty(2, self.manifest.slot_numel, dtype=self.manifest.torch_dtype)
        slots, sender = (GpuSlots, NcclSender) if kind == "nccl" else (Slots, GlooSender)
        self.worker._staging = Staging(policy, self.manifest, slots(self.manifest, 0, elements))
        self.worker._sender = sender(self.worker._staging, "127.0.0.1")
        self.thread = OwnThread(LEARNERS_GPU)
        self.hangs_in: set[str] = set()
        self.calls: list[str] = []

    def __getattr__(self, method: str) -> SimpleNamespace:
        return SimpleNamespace(remote=lambda *arguments: self._answer(method, arguments))

    def _answer(self, method: str, arguments: tuple) -> Reference:
        self.calls.append(method)
        if method == "probe":
            return Reference(LOGPROBS)
        reference = Reference()
        if method not in self.hangs_in:
            work = self.thread.call(lambda: getattr(self.worker, method)(*arguments))
            work.add_done_callback(lambda done: reference.answer(done.exception() or done.result()))
        return reference


class Site:
    """A learner of one rank and some engines, on one fake GPU for each process."""

    def __init__(self, nccl: FakeNccl | None, engines: int, processes: int = 1, manifest: Manifest = SMALL) -> None:
        """``nccl``: None for gloo, which is real."""
        self.nccl, self.policy, self.pool, self._processes = nccl, Policy(manifest), MemberPool(), processes
        self._kind = "gloo" if nccl is None else "nccl"
        self.rank = Rank(self.policy, self._kind)
        self.learner = LearnerGroup(
            None,  # type: ignore[arg-type]
            LearnerRules(1, 1, Packing(1, 100, False), 30.0, 30.0, 30.0, RestartRule(0, 100.0, 0.0)),
            FakeEvents(),
        )
        self.reform(self.rank)
        settings = DeliverySettings(
            TRANSPORTS[self._kind], processes_per_engine=processes, folder_is_version_0=False,
            proof=ProofLimits(PROBE, None, {}, full=True, mixture=False),
            prepare_seconds=PREPARE, transfer_seconds=TRANSFER,
            join_seconds=JOIN,
        )  # fmt: skip
        self.publisher = Publisher(self.learner, self.pool, settings)
        self.engines: list[Engine] = []
        for _ in range(engines):
            self.add()

    def reform(self, rank: Rank) -> None:
        """Begin with another process of the learner."""
        self.rank = rank
        self.learner._formation = Formation([rank], SimpleNamespace())
        self.learner._manifest = rank.manifest
        self.learner.generation += 1

    def add(self) -> Member:
        """Start an engine."""
        number = len(self.engines)
        first = 1 + number * self._processes
        self.engines.append(Engine(list(range(first, first + self._processes)), self._kind))
        process = Process(1, "node", "127.0.0.1", ())
        name = f"w{number}"
        self.pool.members.append(Member(number, name, remote_worker(name, self.engines[-1]), process, None))
        return self.pool.members[-1]

    def end_process(self, engine: Engine) -> None:
        """Let the system take back what an engine's processes hold, as it does when they end."""
        for comm in list(self.nccl.live) if self.nccl else ():
            if comm.device in [process.device for process in engine.processes]:
                self.nccl.ncclCommAbort(comm)

    async def publish(self, step: int) -> None:
        """Change the weights, publish them, and check that engines that are up serve them."""
        self.policy.change()
        self.learner.published = False
        publication = await self.publisher.publish(step)
        for member in self.pool.members:
            assert member.version == publication.version
            assert self.engines[member.index].serves(self.policy.weights)


def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out vLLM's layerwise reload, which needs a model of its own."""
    monkeypatch.setattr(actors.transports.receiver, "initialize_layerwise_reload", lambda model: None)
    monkeypatch.setattr(actors.transports.receiver, "finalize_layerwise_reload", lambda model, config: None)
