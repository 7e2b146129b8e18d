"""Agents as a component: the endpoint and the agent service, two actors that are replaced when they die."""

from __future__ import annotations

from collections.abc import Sequence

from typing_extensions import override

from actors.agents.endpoint import EndpointService
from actors.agents.programs import AgentService
from actors.runtime.remote_calls import call
from actors.runtime.supervised import RestartableActor
from actors.runtime.watched_service import WatchedPool, WatchedService
from lpo_ray.agents.endpoint.doorway import Doorway
from lpo_ray.agents.joined import Endpoint, JoinedAgents
from lpo_ray.agents.programs.program import Access, Programs
from lpo_ray.errors import LpoRayError
from lpo_ray.records import Answered, BusyWorker, Call, ConversationId, Finished, Key, Prompt, Refusal, Turn

END_SECONDS = 30.0
"""for an agent to be ended, with all that it started"""


class RemoteEndpoint(WatchedService[EndpointService], Endpoint):
    """Endpoint over its actor. A new one is at the same address, and knows no session."""

    KIND = "endpoint"
    SILENCE_SETTING = "of an endpoint that answers nothing"
    url = ""

    @property
    @override
    def generation(self) -> int:
        return self.service.generation

    @override
    def downtime(self) -> float:
        return self.service.downtime()

    @override
    async def open(self, conversation: ConversationId, key: str, recorded: Sequence[Answered]) -> None:
        with self.groups.during(conversation.key):
            await self._asked(
                lambda actor: actor.open.remote(conversation, key, recorded), f"open {conversation.prompt_id}",
                conversation.key,
            )  # fmt: skip

    @override
    async def next(self, conversation: ConversationId) -> Call:
        with self.groups.during(conversation.key):
            return await self._asked(
                lambda actor: actor.next.remote(conversation), f"say what {conversation.prompt_id} asks next",
                conversation.key,
            )  # fmt: skip

    @override
    async def answer(self, conversation: ConversationId, number: int, answer: Turn | Refusal) -> None:
        self.service.handle.answer.remote(conversation, number, answer)  # never again of another endpoint

    @override
    async def end(self, conversation: ConversationId) -> None:
        self.service.handle.end.remote(conversation)  # an endpoint that is gone has forgotten it

    @override
    async def ping(self) -> None:
        await self.service.call(lambda actor: actor.progress.remote(), "say that it is there", END_SECONDS)


class RemotePrograms(WatchedPool[AgentService], Programs):
    """Programs over the service's actor. A call that is made again on a new service finds its agent lost."""

    KIND = "agent"
    SILENCE_SETTING = "of an agent service that answers nothing"
    CLOSE_SECONDS = 15.0

    @override
    async def begin(self, conversation: ConversationId, prompt: Prompt) -> None:
        with self.groups.during(conversation.key):
            await self._asked(
                lambda actor: actor.begin.remote(conversation, prompt), f"begin {conversation.prompt_id}",
                conversation.key,
            )  # fmt: skip

    @override
    async def run(self, conversation: ConversationId, access: Access) -> Finished:
        with self.groups.during(conversation.key):
            return await self._asked(
                lambda actor: actor.run.remote(conversation, access), f"run {conversation.prompt_id}", conversation.key
            )

    @override
    async def end(self, conversation: ConversationId) -> str:
        try:
            return await call(
                self.service.handle.end.remote(conversation), who=self.service.name,
                what=f"end {conversation.prompt_id}", seconds=END_SECONDS,
            )  # fmt: skip
        except LpoRayError:
            return ""  # a service that is gone has ended it


class RemoteAgents(JoinedAgents):
    """Agents over both actors."""

    def __init__(self, endpoint: RemoteEndpoint, programs: RemotePrograms, doorway: Doorway) -> None:
        """``doorway``: of the endpoint's address, which lives as long as the run."""
        super().__init__(endpoint, programs)
        self.endpoint, self.programs, self._doorway = endpoint, programs, doorway
        self._open_now: set[ConversationId] = set()

    @override
    async def open(self, conversation: ConversationId, prompt: Prompt) -> None:
        self._open_now.add(conversation)
        self._measure()
        await super().open(conversation, prompt)

    @override
    async def end(self, conversation: ConversationId) -> str:
        self._open_now.discard(conversation)
        self._measure()
        return await super().end(conversation)

    def _measure(self) -> None:
        values = {"conversations_open": len(self._open_now), "environment_processes": self.programs.num_processes}
        self.programs.events.measured(values)

    @property
    def services(self) -> list[RestartableActor]:
        """Actors of the endpoint and of the programs."""
        return [self.endpoint.service, self.programs.service]

    def silence_of(self, key: Key) -> float:
        """Seconds since an actor that has a group gave a sign of life; infinite when none has it."""
        return min(self.endpoint.silence_of(key), self.programs.silence_of(key))

    def busy(self) -> list[BusyWorker]:
        """Return the service of the programs while it has groups."""
        return self.programs.busy()

    async def scale(self, num_processes: int) -> str:
        """Run agents in another number of processes, and say so."""
        return await self.programs.scale(num_processes)

    async def close(self) -> None:
        """End both with all that they started. Never raises."""
        await self.programs.close()
        await self.endpoint.close()
        self._doorway.close()
