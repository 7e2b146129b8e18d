"""A rollout worker as the pool holds it: its place in the cluster, its actor, and calls with a name."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

import ray
from ray.actor import ActorProxy
from typing_extensions import override

from actors.rollout.worker import RolloutWorker
from actors.runtime.inspection import dismiss, end, inspect
from actors.runtime.remote_calls import call, call_each
from actors.runtime.seats import Places, Seat
from actors.runtime.start_watch import StartWatch
from lpo_ray.common.silence import Progress
from lpo_ray.errors import LpoRayError
from lpo_ray.records import Process, Prompt, PromptGroup, Sampling, Turn, TurnRequest
from lpo_ray.rollout.member import Worker

T = TypeVar("T")


class RemoteWorker(Worker):
    """Worker whose engine is in an actor of its own."""

    def __init__(
        self,
        name: str,
        places: Places,
        num_seats: int,
        make: Callable[[list[Seat]], ActorProxy[RolloutWorker]],
        note: Callable[[str], None],
        starts: StartWatch,
        *,
        is_blank: bool,
    ) -> None:
        """``make``: puts the actor into the first of its ``num_seats`` seats; ``starts``: watches all starts;
        ``is_blank``: its engine is built without weights.
        """
        self.is_blank = is_blank
        self.name, self._places, self._num_seats = name, places, num_seats
        self._make, self._note, self._starts = make, note, starts
        self._seats: list[Seat] = []
        self._process: Process | None = None
        self._handle: ActorProxy[RolloutWorker] | None = None

    @property
    def handle(self) -> ActorProxy[RolloutWorker]:
        """The actor, once ``start`` has found a place for it."""
        assert self._handle is not None
        return self._handle

    @override
    async def start(self, seconds: float) -> Process:
        self._seats = await self._places.take(self.name, self._num_seats, self._note)
        self._handle = self._make(self._seats)
        (process,) = await self._starts.start(
            [self.handle.start.remote()], [self.handle], who=[self.name], what="start its engine", seconds=seconds
        )
        self._process = process
        return process

    @override
    async def sample(self, prompt: Prompt, sampling: Sampling, attempt: int) -> PromptGroup:
        return await self._cancellable(self.handle.sample.remote(prompt, sampling, attempt), prompt.prompt_id)

    @override
    async def turn(self, request: TurnRequest) -> Turn:
        return await self._cancellable(self.handle.turn.remote(request), request.conversation.prompt_id)

    async def _cancellable(self, reference: ray.ObjectRef[T], prompt_id: str) -> T:
        try:
            return await call(reference, who=self.name, what=f"sample {prompt_id}")
        except asyncio.CancelledError:
            ray.cancel(reference)  # the engine ends its requests
            raise

    @override
    async def progress(self) -> Progress | None:
        try:
            return await call(self.handle.progress.remote(), who=self.name, what="say how far it is")
        except LpoRayError:
            return None

    @override
    async def inspect(self) -> str:
        return "its process is not known" if self._process is None else await inspect(self._process)

    @override
    async def close(self, seconds: float) -> None:
        await call_each([self.handle.close.remote()], who=[self.name], what="close", seconds=seconds)
        await dismiss([self.handle], [] if self._process is None else [self._process])

    @override
    def kill(self) -> None:
        if self._process is not None:
            end(self._process)  # SIGKILL first: it also ends a process that is stopped
        if self._handle is not None:
            ray.kill(self._handle)  # pyright: ignore[reportArgumentType] - an ActorProxy is an ActorHandle at run time
        if self._seats:
            self._places.give_back(self._seats)
            self._seats = []
