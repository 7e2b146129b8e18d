"""A rollout worker as the pool knows it: its place in the cluster, its actor, and calls with a deadline and a name."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import ray
from ray.actor import ActorProxy
from ray.util.placement_group import PlacementGroup, remove_placement_group

from actors.rollout.worker import RolloutWorker
from actors.runtime.inspection import dismiss, end, inspect
from actors.runtime.placement import Request, reserve
from actors.runtime.remote_calls import call, call_each
from lpo_ray.records import Process, Prompt, PromptGroup, Sampling


class RemoteWorker:
    """See pool.Worker."""

    handle: ActorProxy[RolloutWorker]
    """there once it has started"""

    def __init__(
        self,
        name: str,
        request: Request,
        make: Callable[[PlacementGroup], ActorProxy[RolloutWorker]],
        note: Callable[[str], None],
        placement_seconds: float,
    ) -> None:
        """``request``: of one bundle, in which ``make`` puts the actor; it waits for that ``placement_seconds``."""
        self.name, self._request, self._make = name, request, make
        self._note, self._placement_seconds = note, placement_seconds
        self._placement: PlacementGroup | None = None
        self._process: Process | None = None
        self._made = False

    async def start(self, seconds: float) -> Process:
        """See pool.Worker."""
        self._placement = await reserve(self._request, self._placement_seconds, self._note)
        self.handle, self._made = self._make(self._placement), True
        starting = self.handle.start.remote()
        self._process = process = await call(starting, who=self.name, what="start its engine", seconds=seconds)
        return process

    async def sample(self, prompt: Prompt, sampling: Sampling, attempt: int, seconds: float) -> PromptGroup:
        """See pool.Worker."""
        reference = self.handle.sample.remote(prompt, sampling, attempt)
        try:
            return await call(reference, who=self.name, what=f"sample {prompt.prompt_id}", seconds=seconds)
        except asyncio.CancelledError:
            ray.cancel(reference)  # the engine ends its requests
            raise

    async def inspect(self) -> str:
        """See pool.Worker."""
        return "its process is not known" if self._process is None else await inspect(self._process)

    async def close(self, seconds: float) -> None:
        """See pool.Worker."""
        await call_each([self.handle.close.remote()], who=[self.name], what="close", seconds=seconds)
        await dismiss([self.handle], [] if self._process is None else [self._process])

    def kill(self) -> None:
        """See pool.Worker. SIGKILL first: it also ends a process that is stopped."""
        if self._process is not None:
            end(self._process)
        if self._made:
            ray.kill(self.handle)  # pyright: ignore[reportArgumentType] - an ActorProxy is an ActorHandle at run time
        if self._placement is not None:
            remove_placement_group(self._placement)
            self._placement = None
