"""The environment service as a component: it is replaced when it dies. Conversations do not outlive it."""

from __future__ import annotations

import contextlib
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator

from ray.actor import ActorProxy
from typing_extensions import override

from actors.agents.service import EnvironmentService
from actors.runtime.remote_calls import call, call_each
from actors.runtime.start_watch import StartWatch
from actors.runtime.supervised import RestartableActor
from lpo_ray.common.restart_budget import RestartRule
from lpo_ray.common.silence import Progress, Watch
from lpo_ray.errors import LpoRayError
from lpo_ray.interfaces import Environments, Events
from lpo_ray.records import BusyWorker, ConversationId, IntArray, Key, Observation, Prompt, Turn

CLOSE_SECONDS = 15.0
"""for environments to close"""
RESIZE_SECONDS = 120.0
"""for the service to take another number of processes"""


class RemoteEnvironments(Environments):
    """Environments over the service's actor. A call that is made again on a new service finds its conversation lost."""

    def __init__(
        self,
        make: Callable[[int], ActorProxy[EnvironmentService]],
        processes: int,
        silence_seconds: float,
        starts: StartWatch,
        start_seconds: float,
        rule: RestartRule,
        events: Events,
    ) -> None:
        """``make``: makes the actor, with so many child processes. ``silence_seconds``: time in which it must say that
        it is there while it has calls.
        """
        self.processes = processes
        self._watch = Watch(self._progress, silence_seconds, "of an environment service that answers nothing")
        self.groups: dict[Key, float] = {}
        """groups whose environments are at work -> since when, in unix seconds"""
        self._calls = Counter[Key]()
        self.service = RestartableActor(
            "environment service", lambda: make(self.processes), lambda actor: actor.start.remote(), rule, events,
            starts, start_seconds,
        )  # fmt: skip

    @override
    async def open(self, conversation: ConversationId, prompt: Prompt) -> IntArray:
        with self._holding(conversation.key):
            return await self.service.call(
                lambda actor: actor.open.remote(conversation, prompt), f"begin {conversation.prompt_id}",
                watch=self._watch, name=conversation.key,
            )  # fmt: skip

    @override
    async def reply(self, conversation: ConversationId, turn: Turn) -> Observation:
        with self._holding(conversation.key):
            return await self.service.call(
                lambda actor: actor.reply.remote(conversation, turn), f"answer {conversation.prompt_id}",
                watch=self._watch, name=conversation.key,
            )  # fmt: skip

    @override
    async def end(self, conversation: ConversationId) -> None:
        self.service.handle.end.remote(conversation)  # a service that is gone has forgotten it

    def silence_of(self, key: Key) -> float:
        """Seconds since the service, at work for a group, gave a sign of life; infinite when it is not. None pass while
        the service is being replaced: that has limits of its own.
        """
        silence = self._watch.silence_of(key)
        return 0.0 if key in self.groups and math.isinf(silence) else silence

    async def scale(self, processes: int) -> str:
        """Have another number of child processes, and say so."""
        self.processes = processes
        await self.service.call(lambda actor: actor.resize.remote(processes), "resize its pool", RESIZE_SECONDS)
        return f"{processes} environment processes"

    def busy(self) -> list[BusyWorker]:
        """Return the service while environments are at work."""
        return [BusyWorker.of_groups(self.service.name, self.groups, self.service.process)] if self.groups else []

    async def close(self) -> None:
        """End the child processes, then the service. Never raises."""
        await call_each(
            [self.service.handle.close.remote()], who=[self.service.name], what="close", seconds=CLOSE_SECONDS
        )
        await self.service.close()

    async def _progress(self) -> Progress | None:
        try:
            return await call(self.service.handle.progress.remote(), who=self.service.name, what="say how far it is")
        except LpoRayError:
            return None

    @contextlib.contextmanager
    def _holding(self, key: Key) -> Iterator[None]:
        self.groups.setdefault(key, time.time())
        self._calls[key] += 1
        try:
            yield
        finally:
            self._calls[key] -= 1
            if not self._calls[key]:
                del self._calls[key], self.groups[key]
