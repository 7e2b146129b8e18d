"""A fake NCCL on fake GPUs, below the library's border: vLLM's own communicator and transfer run on top of it.

What is imitated is what hurts. A thread begins with device 0 as its current one. A collective is put on a stream and
runs there until all members are in it, for ever if need be; only ``ncclCommAbort`` ends it. Whatever waits for a stream
or a device waits for it too. Two members of a group on one device are refused. Tensors are in host memory.
"""

from __future__ import annotations

import ctypes
import itertools
import queue
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest
import torch
from vllm.distributed.device_communicators import pynccl
from vllm.distributed.device_communicators.pynccl_wrapper import ncclUniqueId
from vllm.distributed.weight_transfer import packed_tensor

PATIENCE = 20.0
"""seconds after which a wait for a stream counts as one without end"""
current = threading.local()
"""device: index of this thread's device; streams: what ``torch.cuda.stream`` has made current, innermost last"""


class FakeDevice:
    """A GPU in whose memory every tensor of the host seems to be."""

    type = "cuda"

    def __init__(self, index: int) -> None:
        self.index = index

    def __eq__(self, other: object) -> bool:
        return other.index == self.index if isinstance(other, FakeDevice) else other == torch.device("cpu")

    def __hash__(self) -> int:
        return hash(self.index)

    def __repr__(self) -> str:
        return f"fake cuda:{self.index}"


class FakeStream:
    """A queue of work with a thread that does it in order."""

    every: list[FakeStream]

    def __init__(self, device: object = None) -> None:
        self.device, self.cuda_stream = index_of(device), len(FakeStream.every) + 1
        FakeStream.every.append(self)
        self._work: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        while True:
            self._work.get()()

    def put(self, work: Callable[[], None]) -> None:
        self._work.put(work)

    def record_event(self) -> FakeEvent:
        event = FakeEvent()
        self.put(event.done.set)
        return event

    def wait_stream(self, other: FakeStream) -> None:
        self.put(other.record_event().done.wait)

    def synchronize(self) -> None:
        if not self.record_event().done.wait(PATIENCE):
            raise StuckDevice(f"something runs for ever on device {self.device}")


class StuckDevice(Exception):
    """End of a wait that would have had none."""


@dataclass
class FakeEvent:
    done: threading.Event = field(default_factory=threading.Event)

    def query(self) -> bool:
        return self.done.is_set()

    def synchronize(self) -> None:
        if not self.done.wait(PATIENCE):
            raise StuckDevice("an event never comes")


def index_of(device: object) -> int:
    if device is None:
        return getattr(current, "device", 0)
    return device if isinstance(device, int) else device.index


def synchronize(device: object = None) -> None:
    """Wait for all that was put on any stream of the device."""
    for stream in [stream for stream in FakeStream.every if stream.device == index_of(device)]:
        stream.synchronize()


def set_device(device: object) -> None:
    current.device = index_of(device)


@contextmanager
def device_index(device: int | None) -> Iterator[None]:
    before = index_of(None)
    set_device(device)
    yield
    set_device(before)


@contextmanager
def stream_context(stream: FakeStream) -> Iterator[None]:
    current.streams = [*getattr(current, "streams", []), stream]
    yield
    current.streams = current.streams[:-1]


@dataclass
class Comm:
    """One member's communicator."""

    group: Group
    rank: int
    device: int
    aborted: threading.Event = field(default_factory=threading.Event)
    collectives: Iterator[int] = field(default_factory=itertools.count)


class Group:
    """Members that know each other by a unique id."""

    def __init__(self, size: int) -> None:
        self.size, self.members = size, dict[int, Comm]()
        self.all_here = threading.Event()
        self._arrived: dict[int, dict[int, int]] = {}
        """number of a collective -> rank -> address of its data"""
        self._left: dict[int, int] = {}
        self._changed = threading.Condition()

    def meet(self, comm: Comm, number: int, address: int, root: int | None, size: int) -> None:
        """Take part in a collective: returns when all members are in it, or this one is aborted."""
        with self._changed:
            here = self._arrived.setdefault(number, {})
            here[comm.rank] = address
            self._changed.notify_all()
            while len(here) < self.size and not comm.aborted.is_set():
                self._changed.wait(0.01)
            if not comm.aborted.is_set() and root is not None and root != comm.rank:
                ctypes.memmove(address, here[root], size)
            self._left[number] = self._left.get(number, 0) + 1
            self._changed.notify_all()
            # The sender's data must stay as it is until everybody has it.
            while self._left[number] < self.size and not comm.aborted.is_set():
                self._changed.wait(0.01)


class FakeNccl:
    """The library. One of it stands for all processes."""

    def __init__(self) -> None:
        self._groups: dict[bytes, Group] = {}
        self._lock = threading.Lock()
        self.live: list[Comm] = []
        """communicators that hold memory on a device"""
        self.made = 0
        self.issued: list[tuple[int, int, str]] = []
        """device, thread and kind of each collective"""
        self.joining_hangs: set[int] = set()
        """devices whose process hangs before it joins"""

    def ncclGetRawVersion(self) -> int:
        return 22907

    def ncclGetVersion(self) -> str:
        return "2.29.7"

    def ncclGetUniqueId(self) -> ncclUniqueId:
        return self.unique_id_from_bytes(secrets.token_bytes(128))

    def unique_id_from_bytes(self, data: bytes) -> ncclUniqueId:
        found = ncclUniqueId()
        ctypes.memmove(ctypes.addressof(found.internal), data, 128)
        return found

    def ncclCommInitRank(self, size: int, unique_id: ncclUniqueId, rank: int) -> Comm:
        device = index_of(None)
        while device in self.joining_hangs:
            time.sleep(0.01)
        with self._lock:
            group = self._groups.setdefault(bytes(unique_id), Group(size))
            comm = group.members[rank] = Comm(group, rank, device)
            if len(group.members) == size:
                group.all_here.set()
        group.all_here.wait()  # for ever, as NCCL does
        devices = [member.device for member in group.members.values()]
        if len(set(devices)) < len(devices):
            raise RuntimeError(f"NCCL error: Duplicate GPU detected: {sorted(devices)}")
        with self._lock:
            self.live.append(comm)
            self.made += 1
        return comm

    def ncclAllReduce(self, send, recv, count, dtype, op, comm, stream) -> None:
        self._put(comm, stream, recv, None, 0, "all_reduce")  # vLLM's has one element, which nobody reads

    def ncclBroadcast(self, send, recv, count, dtype, root, comm, stream) -> None:
        self._put(comm, stream, recv, root, count, "broadcast")

    def ncclCommAbort(self, comm: Comm) -> None:
        comm.aborted.set()
        with self._lock:
            if comm not in self.live:
                raise RuntimeError("aborted twice: NCCL would crash")
            self.live.remove(comm)

    def _put(self, comm: Comm, stream, address, root: int | None, size: int, kind: str) -> None:
        assert comm.device == index_of(None) or kind == "broadcast", "a collective on another device's communicator"
        self.issued.append((comm.device, threading.get_ident(), kind))
        number = next(comm.collectives)
        place = address.value or 0
        FakeStream.every[stream.value - 1].put(lambda: comm.group.meet(comm, number, place, root, size))


class _Torch:
    """The module torch as vLLM sees it, with fake devices."""

    class _Devices(type):
        def __instancecheck__(cls, value: object) -> bool:
            return isinstance(value, torch.device | FakeDevice)

    class device(metaclass=_Devices):
        def __new__(cls, name: str) -> FakeDevice:
            return FakeDevice(int(name.partition(":")[2] or 0))

    def __getattr__(self, name: str) -> object:
        return getattr(torch, name)

    @staticmethod
    def zeros(*size: int, device: object) -> torch.Tensor:
        return torch.zeros(*size)

    @staticmethod
    def empty(*size: int, dtype: torch.dtype, device: object) -> torch.Tensor:
        return torch.empty(*size, dtype=dtype)


def install(monkeypatch: pytest.MonkeyPatch) -> FakeNccl:
    """Put the fake in place for a test."""
    nccl = FakeNccl()
    FakeStream.every = []
    defaults: dict[int, FakeStream] = {}

    def current_stream(device: object = None) -> FakeStream:
        if device is None and getattr(current, "streams", None):
            return current.streams[-1]
        index = index_of(device)
        if index not in defaults:
            defaults[index] = FakeStream(index)
        return defaults[index]

    def unpacked(*arguments: object) -> object:
        current_stream().synchronize()  # what is done on the host here comes after the stream's work on a GPU
        return unpack(*arguments)

    unpack = packed_tensor.unpack_tensor
    for place, name, value in (
        (packed_tensor, "unpack_tensor", unpacked),
        (pynccl, "NCCLLibrary", lambda path=None: nccl), (pynccl, "torch", _Torch()),
        (packed_tensor, "torch", _Torch()),
        (pynccl, "current_stream", current_stream), (torch.cuda, "current_stream", current_stream),
        (torch.cuda, "Stream", FakeStream), (torch.cuda, "stream", stream_context),
        (torch.accelerator, "current_device_index", lambda: index_of(None)),
        (torch.accelerator, "set_device_index", set_device), (torch.accelerator, "device_index", device_index),
        (torch.accelerator, "synchronize", synchronize),
    ):  # fmt: skip
        monkeypatch.setattr(place, name, value)
    packed_tensor._get_streams.cache_clear()
    return nccl
