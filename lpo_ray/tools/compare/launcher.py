"""Carrying out the runs of a study: several at once, each a process of its own; what fails does not stop the others."""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import sys
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from lpo_ray.errors import RunFailed

LAST_LINES = 15
_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None)


class Named(Protocol):
    """Run as the scheduler knows it."""

    @property
    def name(self) -> str:
        """Name of the run, which no other has."""
        ...


async def carry_out(
    runs: Sequence[Named],
    launch: Launch,
    parallel: int,
    on_end: Callable[[Named, RunFailed | None], None],
) -> list[RunFailed]:
    """Launch all runs, in order, ``parallel`` at once; returns those that failed. When cancelled, the runs are too."""
    places = asyncio.Semaphore(parallel)
    failed: list[RunFailed] = []

    async def one(run: Named) -> None:
        async with places:
            failure = None
            try:
                await launch(run)
            except RunFailed as error:
                failure = error
                failed.append(error)
            on_end(run, failure)

    async with asyncio.TaskGroup() as tasks:
        for run in runs:
            tasks.create_task(one(run))
    return failed


class Launch(Protocol):
    """Function that starts a run and returns when it has ended well. Raises RunFailed."""

    async def __call__(self, run: Named) -> None:
        """Launch ``run``. When cancelled, the run has ended when this has."""
        ...


@dataclass(frozen=True, slots=True)
class LaunchedRun:
    """Process of ``python -m lpo_ray ARGUMENTS`` with so many threads; its output goes to ``log``."""

    arguments: tuple[str, ...]
    log: Path
    threads: int

    async def run(self, name: str) -> None:
        """Run the process until it ends. Raises RunFailed with its last lines. It ends when this process does, however
        that ends.
        """
        environment = {**os.environ, "OMP_NUM_THREADS": str(self.threads)}
        with self.log.open("ab") as log:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "lpo_ray", *self.arguments,
                stdout=log, stderr=log, stdin=asyncio.subprocess.DEVNULL, env=environment,
                start_new_session=True,  # a Ctrl-C is ours to pass on, once
                preexec_fn=_die_with_parent,
            )  # fmt: skip
        try:
            code = await process.wait()
        except asyncio.CancelledError:
            await _stop(process)
            raise
        if code:
            raise RunFailed(name, code, str(self.log), _last_lines(self.log))


def _die_with_parent() -> None:
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


async def _stop(process: asyncio.subprocess.Process) -> None:
    """Ask a process to commit what it has and end. When this is interrupted again, it is killed, and continues from its
    last commit another time.
    """
    if process.returncode is None:
        process.terminate()
        try:
            await process.wait()
        finally:
            if process.returncode is None:
                process.kill()


def _last_lines(path: Path) -> list[str]:
    with path.open(encoding="utf-8", errors="replace") as file:
        return [line.rstrip("\n") for line in deque(file, LAST_LINES)]
