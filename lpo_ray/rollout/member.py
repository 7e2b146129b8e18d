"""A rollout worker, what the pool knows of it while its engine is up, and across its replacements."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from lpo_ray.common.held import Held
from lpo_ray.common.restart_budget import RestartBudget
from lpo_ray.common.silence import Progress, Watch
from lpo_ray.records import Key, Process, Prompt, PromptGroup, Sampling, Turn, TurnRequest, WeightsVersion, WorkerState


class Worker(Protocol):
    """Worker with one engine: an actor, or a simulated one. Calls raise ComponentDied, ComponentFailed or
    DeadlineExceeded with the worker's name, or GroupLost.
    """

    async def start(self, seconds: float) -> Process:
        """Find a place for the engine, then build it within ``seconds``. NoRoom when there is none."""
        ...

    async def sample(self, prompt: Prompt, sampling: Sampling, attempt: int) -> PromptGroup:
        """Draw all K responses, however long that takes. Cancelling the await ends them."""
        ...

    async def turn(self, request: TurnRequest) -> Turn:
        """Draw one turn of a conversation, as ``sample`` draws responses."""
        ...

    async def progress(self) -> Progress | None:
        """Say how many tokens it has sampled so far, and which groups it holds (keys). None: it does not answer.
        Never raises.
        """
        ...

    async def inspect(self) -> str:
        """Describe what its process does, seen from outside. Never raises."""
        ...

    async def close(self, seconds: float) -> None:
        """End the engine and what it started. Never raises."""
        ...

    def kill(self) -> None:
        """End it at once, also when it is stopped, and give its place back. May be called again."""
        ...


W = TypeVar("W", bound=Worker)


@dataclass(slots=True, eq=False)
class Member(Generic[W]):
    """A worker whose engine is up."""

    index: int
    name: str
    worker: W
    process: Process
    watch: Watch
    """over its groups in flight"""
    version: WeightsVersion | None = None
    """weights that it has proved to serve"""
    groups: Held[Key] = field(default_factory=Held)
    """group in flight, or with turns in flight -> since when (unix seconds)"""
    responses: int = 0
    """number in flight"""
    up: bool = True
    """whether it takes groups and new weights: it is neither taken out nor leaving"""
    lent: bool = False
    """whether it takes neither for the time being"""
    leaving: bool = False
    done: asyncio.Event = field(default_factory=asyncio.Event)
    """set when its last group ends"""

    @property
    def serves(self) -> bool:
        """Whether the pool may give it groups."""
        return self.up and not self.lent and self.version is not None

    @contextlib.contextmanager
    def holding(self, key: Key) -> Iterator[None]:
        """Hold a group during one of its calls."""
        try:
            with self.groups.during(key):
                yield
        finally:
            if not self.groups:
                self.done.set()


@dataclass(slots=True, eq=False)
class WorkerSlot(Generic[W]):
    """Slot of a rollout worker: what stays known across its replacements."""

    index: int
    name: str
    budget: RestartBudget
    worker: W | None = None
    """None before the start"""
    member: Member[W] | None = None
    state: WorkerState = "starting"
    detail: str = ""
    task: asyncio.Task[None] | None = None
    """task that starts it, or ends it"""

    @property
    def stays(self) -> bool:
        """Whether it counts as one of the workers that are wanted."""
        return self.state != "leaving"
