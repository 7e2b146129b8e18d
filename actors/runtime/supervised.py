"""An actor whose calls may be repeated: when it dies or hangs it is replaced, and its callers call again."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

import ray
from ray.actor import ActorProxy

from actors.runtime.inspection import dismiss, end, inspect
from actors.runtime.remote_calls import call
from actors.runtime.start_watch import StartWatch
from lpo_ray.common.restart_budget import RestartBudget, RestartRule
from lpo_ray.common.silence import Watch
from lpo_ray.errors import ComponentDied, DeadlineExceeded
from lpo_ray.interfaces import Events
from lpo_ray.records import Process

A = TypeVar("A")
T = TypeVar("T")


class RestartableActor(Generic[A]):
    """An actor that is replaced when it fails, within a restart budget."""

    def __init__(
        self,
        name: str,
        make: Callable[[], ActorProxy[A]],
        start: Callable[[ActorProxy[A]], ray.ObjectRef[Process]],
        rule: RestartRule,
        events: Events,
        starts: StartWatch,
        start_seconds: float,
    ) -> None:
        """``start``: the call that makes the actor ready, within ``start_seconds`` and watched by ``starts``, and
        returns where it runs.
        """
        self._starts, self._start_seconds = starts, start_seconds
        self.name, self._make, self._start, self._events = name, make, start, events
        self._budget = RestartBudget(rule)
        self._replacing = asyncio.Lock()
        self.generation = 0
        """count of its replacements"""
        self._down = 0.0
        self._down_since: float | None = None
        self.handle = make()
        self.process: Process | None = None
        """None: it is not ready yet"""

    async def start(self) -> Process:
        """Wait until the actor is ready."""
        self.process = process = await self._ready(self.handle)
        return process

    async def call(
        self, remote: Callable[[ActorProxy[A]], ray.ObjectRef[T]], what: str, seconds: float | None = None,
        watch: Watch | None = None, name: Hashable = None,
    ) -> T:  # fmt: skip
        """Return the result of a call that may be made twice. Raises ComponentDied once the restarts are spent, and at
        once what the actor raised. ``seconds``, ``watch``, ``name``: as in ``remote_calls.call``.
        """
        while True:
            generation = self.generation
            try:
                return await call(
                    remote(self.handle), who=self.name, what=what, seconds=seconds, watch=watch, name=name
                )
            except (ComponentDied, DeadlineExceeded) as error:
                await self._replace(generation, error)

    def downtime(self) -> float:
        """Seconds that it was being replaced, so far."""
        return self._down + (0.0 if self._down_since is None else time.monotonic() - self._down_since)

    async def close(self) -> None:
        """End the actor."""
        await dismiss([self.handle], [] if self.process is None else [self.process])
        self.kill()

    def kill(self) -> None:
        """End the actor at once, also when it is stopped (SIGSTOP)."""
        if self.process is not None:
            end(self.process)
        ray.kill(self.handle)  # pyright: ignore[reportArgumentType] - an ActorProxy is an ActorHandle at run time

    async def _ready(self, handle: ActorProxy[A]) -> Process:
        (process,) = await self._starts.start(
            [self._start(handle)], [handle], who=[self.name], what="start", seconds=self._start_seconds
        )
        return process

    async def _replace(self, generation: int, error: ComponentDied | DeadlineExceeded) -> None:
        """Replace the actor. The first caller that finds it dead does so; concurrent callers wait."""
        async with self._replacing:
            if generation != self.generation:
                return
            started = self._down_since = time.monotonic()
            evidence = "its process is not known" if self.process is None else await inspect(self.process)
            self._events.note(f"{self.name} is replaced: {error}\n{evidence}")
            self.kill()
            while True:
                pause = self._budget.spend()
                if pause is None:
                    text = f"{error}; its {self._budget} are spent (supervision)"
                    raise ComponentDied(self.name, text) from error
                await asyncio.sleep(pause)
                fresh = self._make()
                try:
                    process = await self._ready(fresh)
                    break
                except (ComponentDied, DeadlineExceeded) as failed:
                    ray.kill(fresh)  # pyright: ignore[reportArgumentType] - as in kill
                    error = failed
            # Only now: callers meanwhile find the old one dead, and wait here for the new one.
            self.handle, self.process = fresh, process
            self.generation += 1
            self._down, self._down_since = self.downtime(), None
            self._events.note(f"{self.name} is back after {time.monotonic() - started:.1f} s ({self._budget})")
