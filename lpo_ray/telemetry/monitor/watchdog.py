"""Waiting has a name: when nothing moves, a note says what the run waits for, since when, who has it, and what they do.

A task beside the loop. It looks every PERIOD seconds at the stages that are at work and asks the components, not the
processes, who works on them; only in a stall are the processes looked at, from outside. Whatever blocks the event loop
itself, such as the components of ``inprocess``, is not seen from here; ``lpo-ray why`` looks from another process.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import asdict

from lpo_ray.interfaces import Components
from lpo_ray.records import BusyWorker
from lpo_ray.telemetry.stage_clock import StageClock

PERIOD = 2.0
"""seconds between two looks"""
INSPECTED = 4
"""holders that are looked at in a stall; of more ranks the first tell the story"""


class Watchdog:
    """Looks at one run. ``show`` is given the waiting snapshot of status.json whenever it changed::

        {"stages": [{"stage": "project", "since": 1700000000.0, "holders": [asdict(BusyWorker), ...]}, ...],
         "progress_at": 1700000000.0, "evidence": "learner rank 0, project since 31 s: process 4711 is stopped, ..."}

    Times are unix seconds; ``evidence`` is empty unless the run stands still.
    """

    def __init__(
        self,
        clock: StageClock,
        stall_seconds: float,
        note: Callable[[str], None],
        show: Callable[[dict[str, object]], None],
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        """``stall_seconds``: without progress, before a note; 0: never."""
        self._clock, self._stall_seconds = clock, stall_seconds
        self._note, self._show, self._wall_clock = note, show, wall_clock
        self._offset = wall_clock() - clock.now()
        self._shown: dict[str, object] = {}
        self._moved_at = clock.moved_at
        self._next = stall_seconds
        """length of the stall at which the next note is due"""
        self._noted, self._evidence = False, ""

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
        """Once: compare with the last look, say what is to be said."""
        self._went_on()
        stages = self._stages(components)
        length = self._clock.now() - self._clock.moved_at
        if stages and self._stall_seconds and length >= self._next:
            while length >= self._next:
                self._next *= 2
            moved_at = self._clock.moved_at
            self._evidence = await self._inspected(stages, components)
            if moved_at == self._clock.moved_at:
                self._noted = True
                account = self._account(stages, components)
                self._note(f"nothing has moved for {length:.0f} s. The run waits for\n{account}")
            else:
                self._evidence = ""
        self._write(stages)

    def _went_on(self) -> None:
        before, self._moved_at = self._moved_at, self._clock.moved_at
        if self._moved_at == before:
            return
        if self._noted:
            self._note(f"went on after {self._moved_at - before:.0f} s")
        self._next, self._noted, self._evidence = self._stall_seconds, False, ""

    def _stages(self, components: Components | None) -> dict[str, tuple[float, list[BusyWorker]]]:
        """Stage -> since when in unix seconds, and who works on it."""
        return {
            stage: (since + self._offset, components.busy(stage) if components is not None else [])
            for stage, since in self._clock.active_since.items()
        }

    async def _inspected(self, stages: dict[str, tuple[float, list[BusyWorker]]], components: Components | None) -> str:
        if components is None:
            return ""
        known = {h.process: h for _, busy in stages.values() for h in busy if h.process is not None}
        found = list(known.items())[:INSPECTED]
        texts = await asyncio.gather(*(components.inspect(process) for process, _ in found))
        now = self._wall_clock()
        return "\n".join(
            f"{describe_holder(holder, now)}: on {process.host}, {text}"
            for (process, holder), text in zip(found, texts, strict=True)
        )

    def _account(self, stages: dict[str, tuple[float, list[BusyWorker]]], components: Components | None) -> str:
        now = self._wall_clock()
        nobody = "the components, which are starting" if components is None else "nobody who is known here"
        lines = []
        for stage, (since, busy) in stages.items():
            names = ", ".join(holder.name for holder in busy) or nobody
            lines.append(f"{stage}: {now - since:.0f} s, {names}")
        return "\n".join([*lines, *filter(None, [self._evidence])])

    def _write(self, stages: dict[str, tuple[float, list[BusyWorker]]]) -> None:
        waiting: dict[str, object] = {
            "stages": [
                {"stage": stage, "since": since, "busy": [asdict(holder) for holder in busy]}
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
        """Training goes on without its watchdog, but says so."""
        if not task.cancelled() and (error := task.exception()) is not None:
            self._note(f"the watchdog ended, stalls are not reported any more: {type(error).__name__}: {error}")


def describe_holder(holder: BusyWorker, now: float) -> str:
    """In one line: who, doing what, since when."""
    since = "" if holder.since is None else f" since {now - holder.since:.0f} s"
    return f"{holder.name}, {holder.doing}{since}"
