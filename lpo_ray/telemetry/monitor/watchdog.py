"""Watchdog: after stall_seconds without progress, log the blocking stage, since when, and the workers that hold it.

A task beside the loop. It looks every PERIOD seconds at the stages that are at work, and asks the components, not the
processes, who works on them; only in a stall are the processes inspected, from outside. While components start nothing
can stall: each has a limit of its own, and is named when it exceeds it. What blocks the event loop itself, such as the
components of ``inprocess``, is not seen from here; ``lpo-ray why`` looks from another process.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import asdict

from lpo_ray.interfaces import Components
from lpo_ray.records import BusyWorker
from lpo_ray.telemetry.stage_clock import StageClock, Start

PERIOD = 2.0
"""seconds between two looks"""
INSPECTED = 4
"""workers that are inspected in a stall; of more ranks the first tell the story"""


class Watchdog:
    """Watchdog of one run. ``show`` is given the waiting snapshot of status.json whenever it changed::

        {"stages": [{"stage": "project", "since": 1700000000.0, "busy": [asdict(BusyWorker), ...]}, ...],
         "progress_at": 1700000000.0, "evidence": "learner rank 0, project since 31 s: process 4711 is stopped, ..."}

    Times are unix seconds; ``evidence`` is empty unless the run is stalled.
    """

    def __init__(
        self,
        clock: StageClock,
        stall_seconds: float,
        note: Callable[[str], None],
        show: Callable[[dict[str, object]], None],
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        """Watch ``clock``; ``note`` a stall after ``stall_seconds`` without progress (0: never)."""
        self._clock, self._stall_seconds = clock, stall_seconds
        self._note, self._show, self._wall_clock = note, show, wall_clock
        self._offset = wall_clock() - clock.now()
        self._shown: dict[str, object] = {}
        self._moved_at = clock.moved_at
        self._next = stall_seconds
        """length of the stall at which the next note is due"""
        self._noted, self._evidence = False, ""
        self._next_start = stall_seconds
        """length of the start at which the next note is due"""
        self._overdue: set[str] = set()
        """components whose start was noted to exceed its limit"""

    @contextlib.asynccontextmanager
    async def running(self, components: Components | None) -> AsyncIterator[None]:
        """Look until the end of the context. ``components``: None while they start."""
        task = asyncio.get_running_loop().create_task(self._run(components))
        task.add_done_callback(self._ended)
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait({task})

    async def look(self, components: Components | None) -> None:
        """Compare with the last look, and note what has changed."""
        self._look_for_progress()
        stages = self._stages(components)
        if self._clock.starts:
            self._look_at_starts()
        elif stages and self._stall_seconds:
            await self._look_for_stall(stages, components)
        self._write(stages)

    def _look_for_progress(self) -> None:
        before, self._moved_at = self._moved_at, self._clock.moved_at
        if self._moved_at == before:
            return
        if self._noted:
            self._note(f"continued after {self._moved_at - before:.0f} s")
        self._next, self._noted, self._evidence = self._stall_seconds, False, ""

    def _look_at_starts(self) -> None:
        starts, now = self._clock.starts, self._clock.now()
        for name, start in starts.items():
            if now - start.since >= start.limit and name not in self._overdue:
                self._overdue.add(name)
                self._note(
                    f"{name} has not started after {now - start.since:.0f} s; expected it within {start.limit:.0f} s"
                )
        oldest = now - min(start.since for start in starts.values())
        if self._stall_seconds and oldest >= self._next_start:
            while oldest >= self._next_start:
                self._next_start *= 2
            self._note(f"still starting: {describe_starts(starts, now)}")

    async def _look_for_stall(
        self, stages: dict[str, tuple[float, list[BusyWorker]]], components: Components | None
    ) -> None:
        moved_at = self._clock.moved_at
        length = self._clock.now() - moved_at
        if length < self._next:
            return
        while length >= self._next:
            self._next *= 2
        evidence = await self._inspected(stages, components)
        if moved_at != self._clock.moved_at:
            return
        self._noted, self._evidence = True, evidence
        account = self._account(stages, components)
        self._note(f"nothing has moved for {length:.0f} s. The run waits for\n{account}")

    def _stages(self, components: Components | None) -> dict[str, tuple[float, list[BusyWorker]]]:
        """Return stage -> since when in unix seconds, and who works on it."""
        return {
            stage: (since + self._offset, self._starting() if components is None else components.busy(stage))
            for stage, since in self._clock.active_since.items()
        }

    def _starting(self) -> list[BusyWorker]:
        return [
            BusyWorker(name, f"starting (limit {start.limit:.0f} s)", start.since + self._offset, None)
            for name, start in self._clock.starts.items()
        ]

    async def _inspected(self, stages: dict[str, tuple[float, list[BusyWorker]]], components: Components | None) -> str:
        if components is None:
            return ""
        known = {h.process: h for _, busy in stages.values() for h in busy if h.process is not None}
        found = list(known.items())[:INSPECTED]
        texts = await asyncio.gather(*(components.inspect(process) for process, _ in found))
        now = self._wall_clock()
        return "\n".join(
            f"{describe_worker(worker, now)}: on {process.host}, {text}"
            for (process, worker), text in zip(found, texts, strict=True)
        )

    def _account(self, stages: dict[str, tuple[float, list[BusyWorker]]], components: Components | None) -> str:
        now = self._wall_clock()
        nobody = "the components, which are starting" if components is None else "nobody who is known here"
        lines = []
        for stage, (since, busy) in stages.items():
            names = ", ".join(worker.name for worker in busy) or nobody
            lines.append(f"{stage}: {now - since:.0f} s, {names}")
        return "\n".join([*lines, *filter(None, [self._evidence])])

    def _write(self, stages: dict[str, tuple[float, list[BusyWorker]]]) -> None:
        waiting: dict[str, object] = {
            "stages": [
                {"stage": stage, "since": since, "busy": [asdict(worker) for worker in busy]}
                for stage, (since, busy) in stages.items()
            ],
            "progress_at": self._clock.moved_at + self._offset,
            "evidence": self._evidence,
        }
        if waiting != self._shown:
            self._shown = waiting
            self._show(waiting)

    async def _run(self, components: Components | None) -> None:
        period = min(PERIOD, self._stall_seconds / 2) if self._stall_seconds else PERIOD
        while True:
            await self.look(components)
            await asyncio.sleep(period)

    def _ended(self, task: asyncio.Task[None]) -> None:
        """Say that the watchdog failed: training continues without it."""
        if not task.cancelled() and (error := task.exception()) is not None:
            self._note(f"the watchdog ended, stalls are not reported any more: {type(error).__name__}: {error}")


def describe_starts(starts: Mapping[str, Start], now: float) -> str:
    """Say in one line which components are starting, for how long, and how long they may; ``now`` on their clock."""
    return ", ".join(f"{name} {now - start.since:.0f} s (limit {start.limit:.0f} s)" for name, start in starts.items())


def describe_worker(worker: BusyWorker, now: float) -> str:
    """Say in one line who is busy, doing what, since when."""
    since = "" if worker.since is None else f" since {now - worker.since:.0f} s"
    return f"{worker.name}, {worker.doing}{since}"
