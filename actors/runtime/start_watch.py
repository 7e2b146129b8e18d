"""Starts that get on and starts that hang.

A start has no steps to count: it imports, reads weights, waits for a download, compiles. What that costs is seen in the
process and its children: CPU time, and bytes that are read and written. One that is stopped, or waits for a lock that
nobody frees, costs nothing. One that spins costs CPU time and is found by the limit for the whole start.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Hashable, Sequence
from contextlib import suppress
from typing import Any, NamedTuple, TypeVar

import psutil
import ray
from ray.actor import ActorProxy

from actors.runtime.remote_calls import call_all, call_each
from lpo_ray.common.silence import LOOKS, Progress, Watch
from lpo_ray.errors import LpoRayError

T = TypeVar("T")
PROGRESS = "progress"
"""concurrency group in which an actor says how far it is, whatever it does meanwhile"""
CPU_SHARE = 0.05
"""share of one core that a process which waits does not use: heartbeats and logs take about a hundredth"""
BYTES_A_SECOND = 100_000
"""that it does not read and write either"""


class Usage(NamedTuple):
    """CPU seconds and bytes of one process since its start; of its children that ended, the seconds."""

    seconds: float
    num_bytes: int


NOTHING = Usage(0.0, 0)


class EffortCounter:
    """Count of the looks at which this process and its children had done something since the look before."""

    def __init__(self) -> None:
        self._count, self._at, self._seen = 0, time.monotonic(), usages()

    def count(self) -> int:
        """Look once more. What looking costs is not counted."""
        elapsed, before, pid = time.monotonic() - self._at, self._seen, os.getpid()
        own = usage_of(psutil.Process())
        self._at, self._seen = time.monotonic(), usages()
        now = {**self._seen, pid: own}
        seconds = sum(used.seconds for used in now.values()) - sum(used.seconds for used in before.values())
        num_bytes = sum(max(used.num_bytes - before.get(pid, NOTHING).num_bytes, 0) for pid, used in now.items())
        self._count += seconds >= CPU_SHARE * elapsed or num_bytes >= BYTES_A_SECOND * elapsed
        return self._count


def usages() -> dict[int, Usage]:
    """Usage of all processes below this one and, last, of itself, by pid."""
    own = psutil.Process()
    found: dict[int, Usage] = {}
    for process in (*own.children(recursive=True), own):
        with suppress(psutil.Error):  # it has ended
            found[process.pid] = usage_of(process)
    return found


def usage_of(process: psutil.Process) -> Usage:
    """Usage of one process. No bytes where the system does not tell."""
    times, num_bytes = process.cpu_times(), 0
    with suppress(psutil.Error, AttributeError):
        io = process.io_counters()
        num_bytes = io.read_bytes + io.write_bytes + io.read_chars + io.write_chars  # pyright: ignore[reportAttributeAccessIssue] - Linux
    return Usage(times.user + times.system + times.children_user + times.children_system, num_bytes)


class Startable:
    """Base of actors whose start is watched. ``effort`` is called in the concurrency group PROGRESS."""

    _effort: EffortCounter | None = None

    def effort(self) -> int:
        """Count the calls before which it did something: this one runs beside the start."""
        if self._effort is None:
            self._effort = EffortCounter()
        return self._effort.count()


class StartWatch:
    """Watch over the actors of one role that start. Those that start at the same time may wait for each other, such as
    engines of one machine for a download: while one gets on, none is silent.
    """

    def __init__(self, silence_seconds: float) -> None:
        self._watch = Watch(self._progress, silence_seconds, "supervision.start_silence_seconds")
        self._starting: dict[tuple[str, ...], Sequence[ActorProxy[Any]]] = {}
        self._counts: dict[tuple[str, ...], Hashable] = {}

    async def start(
        self,
        references: Sequence[ray.ObjectRef[T]],
        actors: Sequence[ActorProxy[Any]],
        *,
        who: Sequence[str],
        what: str,
        seconds: float,
    ) -> list[T]:
        """Await ``references``, calls that start ``actors`` together, within ``seconds``.

        An actor that does not say what it does makes all of them silent: ranks that wait for a stopped one may spin.
        Raises NoProgress when they get on with nothing, and what ``call_all`` raises.
        """
        team = tuple(who)
        self._starting[team] = actors
        try:
            return await call_all(references, who=who, what=what, seconds=seconds, watch=self._watch, name=team)
        finally:
            self._starting.pop(team, None)
            self._counts.pop(team, None)

    async def _progress(self) -> Progress:
        await asyncio.gather(*(self._look(team, actors) for team, actors in list(self._starting.items())))
        return Progress(tuple(sorted(self._counts.items(), key=str)))

    async def _look(self, team: tuple[str, ...], actors: Sequence[ActorProxy[Any]]) -> None:
        references = [actor.effort.options(concurrency_group=PROGRESS).remote() for actor in actors]
        seconds = self._watch.seconds / LOOKS
        answers = await call_each(references, who=team, what="say what it does", seconds=seconds)
        if team in self._starting and not any(isinstance(answer, LpoRayError) for answer in answers):
            self._counts[team] = tuple(answers)
