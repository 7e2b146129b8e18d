"""Agents' programs, an endpoint in this process over HTTP, and an engine that makes tokens up: all but Ray."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence

import numpy as np

from actors.agents.endpoint import Endpoint
from lpo_ray.agents.endpoint.doorway import Doorway
from lpo_ray.agents.endpoint.settings import LOOPBACK, EndpointSettings
from lpo_ray.agents.joined import JoinedAgents
from lpo_ray.agents.programs.program import HostedPrograms
from lpo_ray.errors import GroupLost
from lpo_ray.policy.tokenizer import Tokenizer
from lpo_ray.records import Answered, Call, ConversationId, Prompt, PromptGroup, Refusal, Sampling, Turn, TurnRequest
from lpo_ray.rollout.agents import AgentLimits, AgentRollout
from lpo_ray.training.call_store import CallStore

SAMPLING = Sampling(group_size=4, temperature=1.0, max_tokens=16, seed=0, max_turns=9)
PROMPT = Prompt("p0", np.array([1]), "", "exact", {"prompt": "17+25?"})


class LocalEndpoint:
    """An endpoint in this process, which dies and is replaced when it is told to."""

    def __init__(self, folder: str, most_tokens: int) -> None:
        self.doorway = Doorway(LOOPBACK)
        self.url, self.generation = f"http://{LOOPBACK}:{self.doorway.port}", 0
        self._settings = EndpointSettings(folder, SAMPLING, most_tokens, doorway=self.doorway.path)
        self._up = asyncio.Event()
        self.endpoint: Endpoint

    async def start(self) -> None:
        self.endpoint = Endpoint(self._settings)
        await self.endpoint.start()
        self._up.set()

    async def die(self, seconds: float) -> None:
        """As a process that is killed: its connections break."""
        self._up.clear()
        for connection in list(self.endpoint._server.server_state.connections):
            connection.transport.abort()
        await self.endpoint.close()
        await asyncio.sleep(seconds)
        self.generation += 1
        await self.start()

    def downtime(self) -> float:
        return 0.0

    async def open(self, conversation: ConversationId, key: str, recorded: Sequence[Answered]) -> None:
        await self._up.wait()
        await self.endpoint.sessions.open(conversation, key, recorded)

    async def next(self, conversation: ConversationId) -> Call:
        while True:
            await self._up.wait()
            endpoint = self.endpoint
            try:
                return await endpoint.sessions.of(conversation).next()
            except GroupLost:
                if endpoint is self.endpoint and self._up.is_set():
                    raise

    async def answer(self, conversation: ConversationId, number: int, answer: Turn | Refusal) -> None:
        self.endpoint.sessions.answer(conversation, number, answer)

    async def end(self, conversation: ConversationId) -> None:
        self.endpoint.sessions.end(conversation)

    async def ping(self) -> None:
        await self._up.wait()

    async def close(self) -> None:
        await self.endpoint.close()
        self.doorway.close()


class Engine:
    """Draws letters, from its seed alone, and remembers them."""

    def __init__(self, tokenizer: Tokenizer, seconds: float = 0.0) -> None:
        self._tokenizer, self.seconds = tokenizer, seconds
        self.drew: list[tuple[list[int], list[int]]] = []

    async def sample(self, prompt: Prompt, sampling: Sampling, attempt: int) -> PromptGroup:
        raise NotImplementedError

    async def turn(self, request: TurnRequest) -> Turn:
        await asyncio.sleep(self.seconds)
        rng = np.random.default_rng(request.seed())
        letters = "".join(rng.choice(list("0123456789 abc"), rng.integers(1, 9)))
        ids = np.append(self._tokenizer.encode(letters), self._tokenizer.eos_token_id)
        self.drew.append((request.context_ids.tolist(), ids.tolist()))
        return Turn(ids, np.full(len(ids), -1.0, np.float32), np.zeros(len(ids), np.int64), "stop")


class Stage:
    """All of it."""

    def __init__(
        self, endpoint: LocalEndpoint, programs: HostedPrograms, engine: Engine, record: CallStore, most_tokens: int
    ) -> None:
        self.endpoint, self.engine, self.programs = endpoint, engine, programs
        self.agents = JoinedAgents(endpoint, programs)
        self.rollout = AgentRollout(engine, self.agents, AgentLimits(most_tokens, 60.0, 200.0), record)

    async def group(self, attempt: int = 0) -> PromptGroup:
        return await self.rollout.sample(PROMPT, SAMPLING, attempt)

    def check(self, group: PromptGroup) -> None:
        """Every token of the group was drawn, behind the context that its segment has."""
        for response in group.responses:
            at = number = 0
            for segment in response.segments:
                context = group.prompt.token_ids if segment.context_ids is None else segment.context_ids
                whole, places = [*context, *segment.token_ids], np.flatnonzero(segment.sampled) + len(context)
                while len(places):
                    size = response.turns[number]
                    found = whole[: places[0]], whole[places[0] : places[0] + size]
                    assert found in self.engine.drew
                    assert response.token_ids[at : at + size].tolist() == found[1]
                    places, at, number = places[size:], at + size, number + 1


@contextlib.asynccontextmanager
async def stage(
    folder: str, record: CallStore, programs: HostedPrograms, seconds: float = 0.0, most_tokens: int = 2048
) -> AsyncIterator[Stage]:
    """Open it all, with an engine that takes ``seconds`` for a turn."""
    endpoint = LocalEndpoint(folder, most_tokens)
    await endpoint.start()
    try:
        yield Stage(endpoint, programs, Engine(Tokenizer.load(folder), seconds), record, most_tokens)
    finally:
        await programs.close()
        await endpoint.close()
