"""A pool of processes that verify text written by a model, each response under a hard deadline.

A verifier of whole groups is given the group in one call, whatever its speed: what it computes depends on the list.
For others, responses to a prompt go to a process together, as many as take CHUNK_SECONDS at the verifier's speed so
far: a call costs as much as several quick verdicts. A chunk that misses the deadline, or whose process dies, is retried
one by one, so the response that did it is known and the others lose only time. A call that takes far longer than others
do continues in a spare process, at the lowest priority, and its slot goes to others.
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

from lpo_ray.common.error_text import error_text
from lpo_ray.verdict import Verdict
from lpo_ray.verifiers.calling.call import loaded_version, takes_whole_group, verify, version_of
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


class NoAnswer(Exception):
    """Error of a call to a process that gave no answer; ``verdict`` says why."""

    def __init__(self, verdict: Verdict) -> None:
        super().__init__(verdict)
        self.verdict = verdict


class _Ended(Exception):
    """Error of a call that ended with what is no Exception: it was to end its process, and ends the call."""


class VerdictPool:
    """Verdicts of functions, in a pool of processes. Lives in one event loop."""

    def __init__(self, settings: ProcessPoolSettings) -> None:
        self._settings, self._num_processes = settings, settings.num_processes
        self._seconds: dict[str, float] = {}
        """verifier -> seconds of one verdict, lately"""
        self._whole_group: dict[tuple[str, str], bool] = {}
        """verifier and its version -> whether it takes whole groups"""
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
        try:
            whole_group = await self.takes_whole_group(verifier)
        except NoAnswer as error:
            return [error.verdict] * len(cases)
        if whole_group:
            return await self._judged(verifier, cases, whole_group=True)
        size = self._chunk_size(verifier)
        chunks = [cases[start : start + size] for start in range(0, len(cases), size)]
        judged = await asyncio.gather(*(self._judged(verifier, chunk) for chunk in chunks))
        return [verdict for chunk in judged for verdict in chunk]

    async def takes_whole_group(self, verifier: str) -> bool:
        """Tell whether the verifier must be given all responses of a group at once. A process knows: only these import
        functions from outside. Raises NoAnswer when none can say.
        """
        if ":" not in verifier:
            return False
        key = (verifier, version_of(verifier))
        if key not in self._whole_group:
            deadline = self._settings.deadline_seconds
            found = await self._answered(_style, verifier, deadline=deadline, overdue=deadline)
            if isinstance(found, str):
                raise NoAnswer(Verdict.failed(found))
            self._whole_group[key] = found
        return self._whole_group[key]

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

    async def _judged(self, verifier: str, chunk: Sequence[Case], *, whole_group: bool = False) -> list[Verdict]:
        each = self._seconds.get(verifier)
        deadline = self._settings.deadline_seconds * (len(chunk) if whole_group else 1)
        overdue = deadline if each is None else max(OVERDUE_SECONDS, OVERDUE_TIMES * each * len(chunk))
        try:
            verdicts, seconds = await self._answered(_judge, verifier, chunk, deadline=deadline, overdue=overdue)
        except NoAnswer as error:
            if len(chunk) > 1 and not whole_group:
                return [verdict for case in chunk for verdict in await self._judged(verifier, [case])]
            longest = max((case.response for case in chunk), key=len)
            logger.warning("verifier %s: %s. The response: %s", verifier, error.verdict.detail, _shown(longest))
            return [error.verdict] * len(chunk)
        self._took(verifier, chunk, seconds)
        return verdicts

    async def _answered(
        self, job: Callable[..., T], verifier: str, *args: object, deadline: float, overdue: float
    ) -> T:
        """Return what ``job`` returns in a process. Raises NoAnswer when it has not within ``deadline``."""
        broken = 0
        while True:
            pool = self._pool
            try:
                return await self._asked(pool, job, verifier, args, deadline, overdue)
            except FutureTimeout as error:
                reason = f"no verdict within {deadline:g} s; its process was killed"
                raise NoAnswer(Verdict.unscored(reason)) from error
            except ProcessExpired as error:
                if error.exitcode != _WORN:
                    reason = f"the verifier process died with exit code {error.exitcode}"
                    raise NoAnswer(Verdict.unscored(reason)) from error
            except RuntimeError as error:  # the parent of its processes was killed, or one while it was read from
                broken += 1
                if self._is_closed or broken > POOLS:
                    reason = f"the pool broke {broken} times: {type(error).__name__} {error}"
                    raise NoAnswer(Verdict.failed(reason)) from error
                self._replace(pool, error)
            except _Ended as error:
                raise NoAnswer(Verdict.unscored(str(error))) from error
            except Exception as error:  # whatever went wrong, it is no reward
                raise NoAnswer(Verdict.unscored(error_text(error))) from error

    async def _asked(
        self, pool: ProcessPool, job: Callable[..., T], verifier: str, args: Sequence[object], deadline: float,
        overdue: float,
    ) -> T:  # fmt: skip
        """Make one call, in a slot until it is overdue. Raises what the pool raises."""
        async with self._slots:
            asked = (job, verifier, version_of(verifier), overdue, *args)
            future = asyncio.wrap_future(pool.schedule(_carry_out, args=asked, timeout=deadline))
            await _settled(pool, future, overdue)
        await _settled(pool, future, math.inf)
        self.given += 1
        if future.cancelled():
            raise BrokenProcessPool("it was stopped")
        error = future.exception()
        if error is not None and not isinstance(error, Exception):  # raised here it would end the event loop
            raise _Ended(error_text(error))
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


def _carry_out(job: Callable[..., T], verifier: str, version: str, overdue: float, *args: object) -> T:
    """Do ``job`` in a process of the pool. A process whose memory has grown to half of its limit, that has been
    overdue, or that has loaded another version of the verifier, makes way for a fresh one.
    """
    global _has_judged  # one that makes way before its first call would be replaced for ever
    limit, _ = resource.getrlimit(resource.RLIMIT_DATA)
    has_grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 > limit / 2
    is_old = loaded_version(verifier) != version
    if _has_judged and (has_grown or is_old or os.sched_getscheduler(0) == os.SCHED_IDLE):
        os._exit(_WORN)
    _has_judged = True
    signal.setitimer(signal.ITIMER_VIRTUAL, overdue)  # of processor time: a call that sleeps holds up no other
    found = job(verifier, *args)
    signal.setitimer(signal.ITIMER_VIRTUAL, 0)
    return found


def _judge(verifier: str, cases: Sequence[Case]) -> tuple[list[Verdict], float]:
    """Return verdicts, and the seconds they took."""
    started = time.perf_counter()
    return verify(verifier, cases, may_interrupt=False), time.perf_counter() - started


def _style(verifier: str) -> bool | str:
    """Tell whether the verifier takes whole groups, or why it cannot be imported."""
    try:
        return takes_whole_group(verifier)
    except BaseException as error:  # noqa: BLE001 - a user's module may raise anything, also what a broken pool raises
        return error_text(error)


def _give_way(number: int, frame: FrameType | None) -> None:
    """Let this process run only when no other wants the processor."""
    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
