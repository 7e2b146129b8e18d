"""A rollout worker's actor as the pool knows it."""

from __future__ import annotations

import asyncio

import ray
from ray.actor import ActorProxy

from actors.calls import call, call_each
from actors.inspection import end, inspect
from actors.rollout_worker import RolloutWorker
from lpo_ray.records import Process, Prompt, PromptGroup, Sampling


class RemoteWorker:
    """See pool.Worker."""

    def __init__(self, name: str, handle: ActorProxy[RolloutWorker]) -> None:
        self.name, self.handle = name, handle
        self._process: Process | None = None

    async def start(self, seconds: float) -> Process:
        """See pool.Worker."""
        starting = self.handle.start.remote()
        process = await call(starting, who=self.name, what="start its engine", seconds=seconds)
        self._process = process
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

    def kill(self) -> None:
        """See pool.Worker. SIGKILL first: it also ends a process that is stopped."""
        if self._process is not None:
            end(self._process)
        ray.kill(self.handle)  # pyright: ignore[reportArgumentType] - an ActorProxy is an ActorHandle at run time
