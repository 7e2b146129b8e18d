"""The environment service as a component: it is replaced when it dies. Conversations do not outlive it."""

from __future__ import annotations

import functools

from typing_extensions import override

from actors.agents.service import EnvironmentService
from actors.runtime.watched_service import WatchedPool
from lpo_ray.interfaces import Environments
from lpo_ray.records import ConversationId, IntArray, Observation, Prompt, Turn


class RemoteEnvironments(WatchedPool[EnvironmentService], Environments):
    """Environments over the service's actor. A call that is made again on a new service finds its conversation lost."""

    KIND = "environment"
    SILENCE_SETTING = "of an environment service that answers nothing"
    CLOSE_SECONDS = 15.0

    @functools.cached_property
    def _open(self) -> set[ConversationId]:
        """Conversations that have begun and not ended."""
        return set()

    def _measure(self) -> None:
        self.events.measured({"conversations_open": len(self._open), "environment_processes": self.num_processes})

    @override
    async def open(self, conversation: ConversationId, prompt: Prompt) -> IntArray:
        self._open.add(conversation)
        self._measure()
        with self.groups.during(conversation.key):
            return await self._asked(
                lambda actor: actor.open.remote(conversation, prompt), f"begin {conversation.prompt_id}",
                conversation.key,
            )  # fmt: skip

    @override
    async def reply(self, conversation: ConversationId, turn: Turn) -> Observation:
        with self.groups.during(conversation.key):
            return await self._asked(
                lambda actor: actor.reply.remote(conversation, turn), f"answer {conversation.prompt_id}",
                conversation.key,
            )  # fmt: skip

    @override
    async def end(self, conversation: ConversationId) -> None:
        self._open.discard(conversation)
        self._measure()
        self.service.handle.end.remote(conversation)  # a service that is gone has forgotten it
