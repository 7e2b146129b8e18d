"""A pool of processes that verify text written by a model, each response under a hard deadline.

Responses to a prompt go to a process together, as many as take CHUNK_SECONDS at the verifier's speed so far: a call
costs as much as several quick verdicts. A chunk that misses the deadline, or whose process dies, is retried one by one,
so the response that did it is known and the others lose only time. A call that takes far longer than others do
continues in a spare process, at the lowest priority, and its slot goes to others.
"""

from __future__ import annotations

import asyncio
import ctypes
import logging
import math
import multiprocessing
import os
import resource
import signal
import time
from collections.abc import Callable, Sequence
from concurrent.futures import TimeoutError as FutureTimeout
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from types import FrameType
from typing import TypeVar

from pebble import ProcessExpired, ProcessPool

from lpo_ray.verdict import Verdict
from lpo_ray.verifiers.calling.call import loaded_version, verify, version_of
from lpo_ray.verifiers.calling.case import Case

CHUNK_SECONDS = 0.05
"""time that a chunk of responses should take"""
OVERDUE_SECONDS, OVERDUE_TIMES = 0.25, 10
"""a call gives up its slot after so long, and after so many times what it should take"""
POOLS = 5
"""pools that may break under one call"""
LOOK_SECONDS = 1.0
"""between two checks of whether the pool of a call still works"""
SHOWN = 300
"""characters of a response that a warning shows"""
_WORN = 86
"""exit code of a process that makes way for a fresh one, before it takes up a task"""
_PR_SET_PDEATHSIG = 1
_has_judged = False
logger = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class ProcessPoolSettings:
    """Settings of the pool; the keys of the verifier section describe them."""

    num_processes: int
    deadline_seconds: float
    slow_seconds: float
    recycle_after: int
    memory_mib: int


class VerdictPool:
    """Verdicts of functions, in a pool of processes. Lives in one event loop."""

    def __init__(self, settings: ProcessPoolSettings) -> None:
        self._settings, self._num_processes = settings, settings.num_processes
        self._seconds: dict[str, float] = {}
        """verifier -> seconds of one verdict, lately"""
        # forkserver: a clean parent without this process's threads, from which a replacement forks in milliseconds
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["lpo_ray.verifiers.calling.call"])
        self._pool, self._slots = self._make_pool(self._num_processes), asyncio.Semaphore(self._num_processes)
        self._is_closed = False
        self.given = 0
        """calls that have ended so far, well or not"""
        self._closing: list[asyncio.Task[None]] = []

    async def verdicts(self, verifier: str, cases: Sequence[Case]) -> list[Verdict]:
        """Return a verdict of each case, in order. Never raises for what a verifier does."""
        size = self._chunk_size(verifier)
        chunks = [cases[start : start + size] for start in range(0, len(cases), size)]
        judged = await asyncio.gather(*(self._judged(verifier, chunk) for chunk in chunks))
        return [verdict for chunk in judged for verdict in chunk]

    def resize(self, num_processes: int) -> None:
        """Use another number of processes from now on. The old ones finish what they have begun."""
        if num_processes == self._num_processes:
            return
        self._num_processes = num_processes
        old, self._pool = self._pool, self._make_pool(num_processes)
        self._slots = asyncio.Semaphore(num_processes)
        self._end(old, old.close)

    async def close(self) -> None:
        """Kill the processes. Calls in flight get no verdict."""
        self._is_closed = True
        self._pool.stop()
        await asyncio.to_thread(self._pool.join, 10)

    def _make_pool(self, num_processes: int) -> ProcessPool:
        return ProcessPool(
            max_workers=2 * num_processes,  # half of them are spare
            max_tasks=self._settings.recycle_after,
            initializer=_enter,
            initargs=[self._settings.memory_mib],
            context=self._context,
        )

    def _chunk_size(self, verifier: str) -> int:
        seconds = self._seconds.get(verifier)
        return 1 if seconds is None else max(1, int(CHUNK_SECONDS / max(seconds, 1e-6)))

    async def _judged(self, verifier: str, chunk: Sequence[Case]) -> list[Verdict]:
        deadline, broken = self._settings.deadline_seconds, 0
        while True:
            pool = self._pool
            try:
                verdicts, seconds = await self._asked(pool, verifier, chunk)
                self._took(verifier, chunk, seconds)
                return verdicts
            except FutureTimeout:
                reason = f"no verdict within {deadline:g} s; its process was killed"
            except ProcessExpired as error:
                if error.exitcode == _WORN:
                    continue
                reason = f"the verifier process died with exit code {error.exitcode}"
            except RuntimeError as error:  # the parent of its processes was killed, or one while it was read from
                broken += 1
                if not self._is_closed and broken <= POOLS:
                    self._replace(pool, error)
                    continue
                reason = f"the pool broke {broken} times: {type(error).__name__} {error}"
            except Exception as error:  # noqa: BLE001 - whatever went wrong, it is no reward
                reason = f"{type(error).__name__}: {error}"
            if len(chunk) > 1:
                return [v for case in chunk for v in await self._judged(verifier, [case])]
            logger.warning("verifier %s: %s. The response: %s", verifier, reason, _shown(chunk[0].response))
            return [Verdict.unscored(reason)]

    async def _asked(self, pool: ProcessPool, verifier: str, chunk: Sequence[Case]) -> tuple[list[Verdict], float]:
        """Make one call, in a slot until it is overdue. Raises what the pool raises."""
        each, deadline = self._seconds.get(verifier), self._settings.deadline_seconds
        overdue = deadline if each is None else max(OVERDUE_SECONDS, OVERDUE_TIMES * each * len(chunk))
        async with self._slots:
            asked = (verifier, version_of(verifier), chunk, overdue)
            future = asyncio.wrap_future(pool.schedule(_judge, args=asked, timeout=deadline))
            await _settled(pool, future, overdue)
        await _settled(pool, future, math.inf)
        self.given += 1
        if future.cancelled():
            raise BrokenProcessPool("it was stopped")
        return future.result()

    def _replace(self, pool: ProcessPool, error: Exception) -> None:
        """Replace a pool that is broken, unless another call has done so."""
        if pool is not self._pool:
            return
        logger.warning("the pool of verifier processes is replaced: %s %s", type(error).__name__, error)
        self._pool = self._make_pool(self._num_processes)
        self._end(pool, pool.stop)

    def _end(self, pool: ProcessPool, end: Callable[[], None]) -> None:
        end()
        self._closing = [task for task in self._closing if not task.done()]
        self._closing.append(asyncio.ensure_future(asyncio.to_thread(pool.join)))

    def _took(self, verifier: str, chunk: Sequence[Case], seconds: float) -> None:
        """Learn the verifier's speed from a chunk."""
        each = seconds / len(chunk)
        known = self._seconds.get(verifier, each)
        self._seconds[verifier] = known + 0.2 * (each - known)
        if seconds > self._settings.slow_seconds:
            longest = max((case.response for case in chunk), key=len)
            what = f"{len(chunk)} verdicts" if len(chunk) > 1 else "a verdict"
            logger.warning("verifier %s: %s took %.1f s. The response: %s", verifier, what, seconds, _shown(longest))


async def _settled(pool: ProcessPool, future: asyncio.Future[T], seconds: float) -> None:
    """Return when ``future`` is done, or after ``seconds``. A pool that breaks ends the calls that it has taken up, but
    forgets those that wait in its queue: BrokenProcessPool is raised for these.
    """
    until = time.monotonic() + seconds
    while not future.done() and (left := until - time.monotonic()) > 0:
        active = pool.active
        await asyncio.wait({future}, timeout=min(left, LOOK_SECONDS))
        if not active and not future.done():
            raise BrokenProcessPool("it takes up no calls any more")


def _shown(text: str) -> str:
    half = SHOWN // 2
    return repr(text if len(text) <= SHOWN else f"{text[:half]} ...{len(text) - SHOWN} characters... {text[-half:]}")


def _enter(memory_mib: int) -> None:
    """Have this process die with the forkserver (which dies with the actor), even while a verifier spins in a loop, and
    raise MemoryError before the machine's memory is used up.
    """
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (memory_mib * 2**20, hard))
    signal.signal(signal.SIGVTALRM, _give_way)


def _judge(verifier: str, version: str, cases: Sequence[Case], overdue: float) -> tuple[list[Verdict], float]:
    """Return verdicts and the seconds they took, in a process of the pool. A process whose memory has grown to half of
    its limit, that has been overdue, or that has loaded another version of the verifier, makes way for a fresh one.
    """
    global _has_judged  # one that makes way before its first call would be replaced for ever
    limit, _ = resource.getrlimit(resource.RLIMIT_DATA)
    has_grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 > limit / 2
    is_old = loaded_version(verifier) != version
    if _has_judged and (has_grown or is_old or os.sched_getscheduler(0) == os.SCHED_IDLE):
        os._exit(_WORN)
    _has_judged = True
    started = time.perf_counter()
    signal.setitimer(signal.ITIMER_VIRTUAL, overdue)  # of processor time: a call that sleeps holds up no other
    verdicts = verify(verifier, cases)
    signal.setitimer(signal.ITIMER_VIRTUAL, 0)
    return verdicts, time.perf_counter() - started


def _give_way(number: int, frame: FrameType | None) -> None:
    """Let this process run only when no other wants the processor."""
    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
