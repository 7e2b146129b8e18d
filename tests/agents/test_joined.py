"""Endpoint and programs as one: sessions that outlive their endpoint, and faults that are nobody's verdict."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pytest

from lpo_ray.agents.endpoint.sessions import SessionLimits, Sessions
from lpo_ray.agents.joined import JoinedAgents
from lpo_ray.agents.programs.program import Access
from lpo_ray.common.redaction import redact
from lpo_ray.errors import GroupLost, Unscored
from lpo_ray.records import Answered, Call, ConversationId, Finished, Prompt, Refusal, Turn
from lpo_ray.tools.simulate.virtual_time import run
from lpo_ray.verdict import Verdict

NAME = ConversationId("p0", 0, 2)
PROMPT = Prompt("p0", np.array([1]), "", "exact")
DONE = Finished(Verdict.scored(1.0, ""), None)


def turn(number: int) -> Turn:
    return Turn(np.array([number]), np.zeros(1, np.float32), np.zeros(1, np.int64), "stop")


@dataclass
class FakeEndpoint:
    """Sessions as the endpoint has them, all of which are gone when it dies."""

    url: str = "http://127.0.0.1:1"
    generation: int = 0
    sessions: Sessions = field(default_factory=lambda: Sessions(SessionLimits(requests_a_second=1000)))
    back: asyncio.Event = field(default_factory=asyncio.Event)
    ended: list[ConversationId] = field(default_factory=list)
    opened: list[int] = field(default_factory=list)
    """how many calls were recorded, each time"""

    def __post_init__(self) -> None:
        self.back.set()

    def die(self) -> None:
        self.sessions.close()
        self.back.clear()

    def replace(self) -> None:
        self.sessions = Sessions(SessionLimits(requests_a_second=1000))
        self.generation += 1
        self.back.set()

    def downtime(self) -> float:
        return 0.0

    async def open(self, conversation: ConversationId, key: str, recorded: Sequence[Answered]) -> None:
        await self.back.wait()
        self.opened.append(len(recorded))
        await self.sessions.open(conversation, key, recorded)

    async def next(self, conversation: ConversationId) -> Call:
        while True:
            await self.back.wait()
            generation = self.generation
            try:
                return await self.sessions.of(conversation).next()
            except GroupLost:
                if self.back.is_set() and generation == self.generation:
                    raise

    async def answer(self, conversation: ConversationId, number: int, answer: Turn | Refusal) -> None:
        self.sessions.answer(conversation, number, answer)

    async def end(self, conversation: ConversationId) -> None:
        self.ended.append(conversation)
        self.sessions.end(conversation)

    async def ping(self) -> None:
        await self.back.wait()

    async def ask(self, access: Access, request: bytes, *context: int) -> Turn:
        """What an agent does through HTTP, asking again while the endpoint is away."""
        while True:
            await self.back.wait()
            session = await self.sessions.find(access.key, patience=10)
            try:
                answer = (await session.ask(Call(0, np.array(context or (1,)), request))).answer
            except Exception:  # noqa: BLE001 - the connection broke
                await asyncio.sleep(0.1)
                continue
            assert isinstance(answer, Turn)
            return answer


@dataclass
class FakePrograms:
    """Agents that are coroutines of an endpoint and an access."""

    agent: Callable[[Access], Awaitable[Finished]]
    ended: list[ConversationId] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)

    async def begin(self, conversation: ConversationId, prompt: Prompt) -> None:
        await asyncio.sleep(0)

    async def run(self, conversation: ConversationId, access: Access) -> Finished:
        assert access.key not in repr(access)
        self.keys.append(access.key)
        return await self.agent(access)

    async def end(self, conversation: ConversationId) -> str:
        self.ended.append(conversation)
        return f"my key is {self.keys[0]}"


async def conducted(
    endpoint: FakeEndpoint, agent: Callable[[Access], Awaitable[Finished]], on_call: Callable[[Call], object]
) -> tuple[Finished, list[Call]]:
    """Conduct one session; each distinct request is answered with its number, unless ``on_call`` returns something."""
    agents, calls, known = JoinedAgents(endpoint, FakePrograms(agent)), [], {}
    await agents.open(NAME, PROMPT)
    try:
        while True:
            found = await agents.next(NAME)
            if isinstance(found, Finished):
                return found, calls
            calls.append(found)
            answer = known.setdefault(found.request, turn(len(known)))
            if on_call(found) is None:
                await agents.answer(NAME, found.number, answer)
    finally:
        last = await agents.end(NAME)
        assert "lpo-session" not in last
        assert endpoint.ended == [NAME]
        assert await agents.end(NAME) == ""
        assert len(asyncio.all_tasks()) == 1


def test_calls_are_numbered_and_answered_and_the_end_is_told() -> None:
    async def main() -> None:
        endpoint = FakeEndpoint()

        async def agent(access: Access) -> Finished:
            answers = await asyncio.gather(*(endpoint.ask(access, b"%d" % n) for n in range(3)))
            assert sorted(int(answer.token_ids[0]) for answer in answers) == [0, 1, 2]
            return DONE

        found, calls = await conducted(endpoint, agent, lambda call: None)
        assert found.verdict == DONE.verdict
        assert [call.number for call in calls] == [0, 1, 2]

    run(main())


def test_a_session_goes_on_with_a_new_endpoint_and_no_answer_goes_astray() -> None:
    """The endpoint dies with two calls in flight, which the agent makes again in the other order: the new endpoint
    counts them the other way round.
    """

    async def main() -> None:
        endpoint, seen = FakeEndpoint(), []

        async def agent(access: Access) -> Finished:
            first = await endpoint.ask(access, b"first")
            one = asyncio.ensure_future(endpoint.ask(access, b"one"))
            await asyncio.sleep(0.01)
            other = asyncio.ensure_future(endpoint.ask(access, b"other"))
            await asyncio.sleep(0.01)
            endpoint.die()
            for task in (one, other):
                task.cancel()
            endpoint.replace()
            again = await asyncio.gather(endpoint.ask(access, b"other"), endpoint.ask(access, b"one"))
            assert (await endpoint.ask(access, b"first")).token_ids.tolist() == first.token_ids.tolist()
            seen.extend(int(answer.token_ids[0]) for answer in again)
            return DONE

        def held(call: Call) -> object:
            """Do not answer calls 1 and 2 the first time."""
            return "held" if call.request != b"first" and endpoint.generation == 0 else None

        found, calls = await conducted(endpoint, agent, held)
        assert found == replace(DONE)
        assert [call.request for call in calls] == [b"first", b"one", b"other", b"other", b"one"]
        assert len({call.number for call in calls}) == 5
        assert seen == [2, 1], "other was the third request, one the second"
        assert endpoint.opened == [0, 1]

    run(main())


def test_an_answer_to_a_call_of_an_endpoint_that_died_is_recorded_and_goes_to_no_other() -> None:
    async def main() -> None:
        endpoint = FakeEndpoint()
        agents = JoinedAgents(endpoint, FakePrograms(lambda access: asyncio.sleep(1000)))  # type: ignore[arg-type]
        await agents.open(NAME, PROMPT)
        key = agents._sessions[NAME].key
        asking = asyncio.ensure_future((await endpoint.sessions.find(key)).ask(Call(0, np.array([1]), b"old")))
        call = await agents.next(NAME)
        assert isinstance(call, Call)
        waiting = asyncio.ensure_future(agents.next(NAME))
        await asyncio.sleep(0)
        endpoint.die()
        endpoint.replace()
        await asyncio.sleep(0.1)
        new = asyncio.ensure_future((await endpoint.sessions.find(key)).ask(Call(0, np.array([1]), b"new")))
        fresh = await waiting
        assert isinstance(fresh, Call)
        await agents.answer(NAME, call.number, turn(5))
        await asyncio.sleep(0.1)
        assert not new.done()
        await agents.answer(NAME, fresh.number, turn(6))
        answered = (await new).answer
        assert isinstance(answered, Turn)
        assert answered.token_ids.tolist() == [6]
        asking.cancel()
        await agents.end(NAME)

    run(main())


@pytest.mark.parametrize("while_away", [True, False])
def test_an_agent_that_fails_as_its_endpoint_dies_is_lost_and_has_no_fault(while_away: bool) -> None:
    async def main() -> None:
        endpoint = FakeEndpoint()

        async def agent(access: Access) -> Finished:
            await endpoint.ask(access, b"first")
            if while_away:
                endpoint.die()
                asyncio.get_running_loop().call_later(5, endpoint.replace)
            raise Unscored(*NAME.key, f"it raised, with {access.key}")

        expected = GroupLost if while_away else Unscored
        with pytest.raises(GroupLost, match="it raised, with <the session's key>") as raised:
            await conducted(endpoint, agent, lambda call: None)
        assert type(raised.value) is expected

    run(main())


def test_one_that_ends_without_the_answer_that_its_endpoint_died_with_is_lost() -> None:
    async def main() -> None:
        endpoint = FakeEndpoint()

        async def agent(access: Access) -> Finished:
            asking = asyncio.ensure_future(endpoint.ask(access, b"first"))
            await asyncio.sleep(0.1)
            asking.cancel()
            endpoint.die()
            endpoint.replace()
            await asyncio.sleep(1)
            return DONE  # as one that takes an error for a reward of 0

        with pytest.raises(GroupLost, match="did not outlive the endpoint"):
            await conducted(endpoint, agent, lambda call: "held")

    run(main())


def test_no_key_is_in_what_an_agent_says() -> None:
    async def main() -> None:
        endpoint = FakeEndpoint()

        async def agent(access: Access) -> Finished:
            await endpoint.ask(access, b"first")
            text = json.dumps({"key": access.key})
            return Finished(Verdict.unscored(text), text, text)

        found, _ = await conducted(endpoint, agent, lambda call: None)
        assert "lpo-session" not in repr(found)
        assert found.output == '{"key": "<the session\'s key>"}'

    run(main())
    assert redact("Bearer lpo-session-abcDEF123_-x.") == "Bearer <the session's key>."
