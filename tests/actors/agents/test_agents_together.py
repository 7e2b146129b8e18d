"""Agents in processes, the endpoint over HTTP, and who conducts them, without Ray: the tokens in the end are those that
were drawn, whatever of it dies.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from actors.agents.endpoint import Endpoint
from lpo_ray.agents.agent_functions import AgentFunctions
from lpo_ray.agents.doorway import Doorway
from lpo_ray.agents.endpoint_settings import LOOPBACK, EndpointSettings
from lpo_ray.agents.joined import JoinedAgents
from lpo_ray.agents.limits import Hosted
from lpo_ray.agents.programs import AgentSettings, HostedPrograms
from lpo_ray.errors import GroupLost, Unscored
from lpo_ray.policy.tokenizer import Tokenizer
from lpo_ray.records import Answered, Call, ConversationId, Prompt, PromptGroup, Refusal, Sampling, Turn, TurnRequest
from lpo_ray.rollout.agents import AgentLimits, AgentRollout
from lpo_ray.training.call_store import CallStore
from tests.support.agent_endpoint import model_folder
from tests.support.chat_tokenizers import QWEN3, byte_tokenizer

pytestmark = [pytest.mark.slow]
HERE = f"{Path(__file__).parents[2]}/support/e2e_agents.py"
SAMPLING = Sampling(group_size=4, temperature=1.0, max_tokens=16, seed=0, max_turns=9)
PROMPT = Prompt("p0", np.array([1]), "", "exact", {"prompt": "17+25?"})


class LocalEndpoint:
    """An endpoint in this process, which dies and is replaced when it is told to."""

    def __init__(self, folder: str) -> None:
        self.doorway = Doorway(LOOPBACK)
        self.url, self.generation = f"http://{LOOPBACK}:{self.doorway.port}", 0
        self._settings = EndpointSettings(folder, SAMPLING, 2048, doorway=self.doorway.path)
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


@pytest.fixture(scope="module")
def folder() -> str:
    return model_folder(byte_tokenizer(QWEN3, eos="<|im_end|>"))


@pytest.fixture
def record(tmp_path: Path) -> Iterator[CallStore]:
    made = CallStore(tmp_path / "calls.sqlite")
    yield made
    made.close()


class Stage:
    """All of it."""

    def __init__(self, endpoint: LocalEndpoint, programs: HostedPrograms, engine: Engine, record: CallStore) -> None:
        self.endpoint, self.engine = endpoint, engine
        self.agents = JoinedAgents(endpoint, programs)
        self.rollout = AgentRollout(engine, self.agents, AgentLimits(2048, 20.0, 60.0), record)

    async def group(self, attempt: int = 0) -> PromptGroup:
        return await asyncio.wait_for(self.rollout.sample(PROMPT, SAMPLING, attempt), 120)

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
    folder: str, record: CallStore, agent: str, seconds: float = 0.0, programs: HostedPrograms | None = None
) -> AsyncIterator[Stage]:
    endpoint = LocalEndpoint(folder)
    await endpoint.start()
    hosted = programs or AgentFunctions(AgentSettings(Hosted(agent=f"{HERE}:{agent}", processes=2)))
    try:
        yield Stage(endpoint, hosted, Engine(Tokenizer.load(folder), seconds), record)
    finally:
        await hosted.close()
        await endpoint.close()


async def test_what_agents_asked_is_what_was_drawn_in_segments(folder: str, record: CallStore) -> None:
    """Three turns that go on, and a branch beside the second, as the agent asks."""
    async with stage(folder, record, "thrice") as scene:
        group = await scene.group()
        scene.check(group)
        assert len(scene.engine.drew) == 16
        for response in group.responses:
            assert len(response.turns) == 4
            assert len(response.segments) == 2
            conversation = response.conversation
            assert conversation is not None
            assert conversation.ended == "done"
            assert conversation.verdict is not None
            assert 0.0 <= (conversation.verdict.reward or 0.0) <= 1.0


async def test_an_endpoint_that_dies_with_calls_in_flight_is_not_noticed_by_its_agents(
    folder: str, record: CallStore
) -> None:
    async with stage(folder, record, "slow", seconds=0.5) as scene:
        sampling = asyncio.ensure_future(scene.group())
        for _ in range(2):
            await asyncio.sleep(1.2)
            await scene.endpoint.die(1.0)
        group = await sampling
        scene.check(group)
        assert len(scene.engine.drew) == 16, "no turn was drawn twice"
        assert scene.endpoint.generation == 2


async def test_agents_whose_process_dies_go_on_from_the_record(folder: str, record: CallStore) -> None:
    async with stage(folder, record, "slow", seconds=0.2) as scene:
        sampling = asyncio.ensure_future(scene.group())
        while len(scene.engine.drew) < 9:
            await asyncio.sleep(0.05)
        programs = scene.agents._programs
        assert isinstance(programs, AgentFunctions)
        for child in programs._pool._children:
            child._launched.process.kill()
        with pytest.raises(GroupLost) as lost:
            await sampling
        assert not isinstance(lost.value, Unscored)
        before = len(record.before("p0", 1, SAMPLING))
        assert before == 4
        drawn = len(scene.engine.drew)
        group = await scene.group(attempt=1)
        scene.check(group)
        answered = sum(map(len, record.before("p0", 1, SAMPLING).values()))
        assert len(scene.engine.drew) == drawn + 16 - answered


async def test_a_refused_call_ends_an_unaware_agent_and_its_response_counts_as_cut(
    folder: str, record: CallStore
) -> None:
    async with stage(folder, record, "thrice") as scene:
        few = dataclasses.replace(SAMPLING, max_turns=2)
        group = await scene.rollout.sample(PROMPT, few, 0)
        scene.check(group)
        assert {response.finish_reason for response in group.responses} == {"length"}
        assert {response.conversation.ended for response in group.responses if response.conversation} == {"turns"}
