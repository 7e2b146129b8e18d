"""Sessions of agents as responses: calls that overlap, limits, ends, faults, and what is recorded of them."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lpo_ray.errors import ComponentDied, GroupLost, Unscored
from lpo_ray.records import (
    Answered,
    Call,
    Conversation,
    ConversationId,
    Finished,
    Prompt,
    PromptGroup,
    Sampling,
    Turn,
    TurnRequest,
)
from lpo_ray.rollout.agents import MOST_REFUSED, AgentLimits, AgentRollout
from lpo_ray.rollout.pool import RolloutPool
from lpo_ray.tools.simulate.virtual_time import run
from lpo_ray.verdict import Verdict
from tests.support.agents import Agent, Client, FakeAgents, FakeRecord, Refused
from tests.support.conversations import Speaker, drawn
from tests.support.turn_pools import Scene, in_scene

SAMPLING = Sampling(group_size=2, temperature=1.0, max_tokens=8, seed=0, max_turns=4)
PROMPT = Prompt("p0", np.array([1, 2, 3]), "", "countdown")
LIMITS = AgentLimits(most_tokens=1000, silent_seconds=10.0, own_seconds=30.0)
DONE = Finished(Verdict.scored(1.0, "well"), "the output")


class OneEngine:
    """An engine that is always there."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.asked: list[TurnRequest] = []
        self.seconds = seconds

    async def sample(self, prompt: Prompt, sampling: Sampling, attempt: int) -> PromptGroup:
        raise NotImplementedError

    async def turn(self, request: TurnRequest) -> Turn:
        self.asked.append(request)
        await asyncio.sleep(self.seconds)
        return drawn(request)


def conducted(
    agent: Agent, sampling: Sampling = SAMPLING, limits: AgentLimits = LIMITS, record: FakeRecord | None = None,
    attempt: int = 0, engine: OneEngine | None = None,
) -> tuple[PromptGroup, OneEngine, FakeAgents]:  # fmt: skip
    engine, agents = engine or OneEngine(), FakeAgents(agent)

    async def main() -> PromptGroup:
        try:
            return await AgentRollout(engine, agents, limits, record).sample(PROMPT, sampling, attempt)
        finally:
            assert not agents.tasks
            assert len(agents.ended) == len(agents.clients)
            assert len(asyncio.all_tasks()) == 1

    return run(main()), engine, agents


def conversation(group: PromptGroup, k: int = 0) -> Conversation:
    found = group.responses[k].conversation
    assert found is not None
    return found


def test_an_agent_that_asks_once_is_a_response_of_one_segment_with_its_verdict() -> None:
    async def agent(client: Client) -> Finished:
        await client.ask([1, 2, 3])
        await asyncio.sleep(2.0)
        return DONE

    group, engine, _ = conducted(agent)
    for k, response in enumerate(group.responses):
        (segment,) = response.segments
        assert segment.context_ids is None
        found = conversation(group, k)
        assert (found.ended, found.verdict, found.output) == ("done", DONE.verdict, "the output")
        assert found.environment_seconds == 2.0
        assert response.finish_reason == "stop"
    assert [request.seed() for request in engine.asked] == [
        TurnRequest(ConversationId("p0", 0, k), 0, PROMPT.token_ids, SAMPLING, 8).seed() for k in range(2)
    ]


def test_calls_overlap_and_each_is_where_it_belongs() -> None:
    async def agent(client: Client) -> Finished:
        now = await client.say([1, 2, 3])
        left, right = await asyncio.gather(client.say([*now, 50]), client.say([*now, 60]))
        await client.say([*left, 51], author="tool")
        assert right[: len(now)] == now
        return DONE

    group, engine, agents = conducted(agent, engine=OneEngine(1.0))
    assert len(engine.asked) == 8
    for k, response in enumerate(group.responses):
        assert len(response.segments) == 2
        assert len(response.turns) == 4
        client = agents.clients[ConversationId("p0", 0, k)]
        said = sorted(ids.tolist() for _, ids in client.asked)
        ends = np.cumsum(response.turns)[:-1]
        assert sorted(ids.tolist() for ids in np.split(response.token_ids, ends)) == said


def test_an_agent_s_own_first_context_is_the_group_s_prompt() -> None:
    async def agent(client: Client) -> Finished:
        await client.ask([5, 6, 6 + client.name.response])
        return Finished(None, None)

    group, _, _ = conducted(agent)
    assert group.prompt.token_ids.tolist() == [5, 6, 6]
    assert group.responses[1].segments[0].context_ids.tolist() == [5, 6, 7]
    assert conversation(group).output is None


def test_a_call_above_the_turns_is_refused_and_the_response_counts_as_cut() -> None:
    async def agent(client: Client) -> Finished:
        now: Sequence[int] = [1, 2, 3]
        while True:
            now = await client.say([*now, 50])

    group, engine, _ = conducted(agent)
    assert len(engine.asked) == 8
    for k, response in enumerate(group.responses):
        found = conversation(group, k)
        assert (len(found.turns), found.ended, found.verdict, found.output) == (4, "turns", None, None)
        assert response.finish_reason == "length"


def test_one_that_takes_a_refusal_well_has_its_verdict_and_counts_as_cut() -> None:
    async def agent(client: Client) -> Finished:
        now: Sequence[int] = [1, 2, 3]
        try:
            while True:
                now = await client.say([*now, 50])
        except Refused as refused:
            assert "sampling.max_turns" in str(refused)
        return DONE

    group, _, _ = conducted(agent)
    assert (conversation(group).ended, conversation(group).verdict) == ("turns", DONE.verdict)


def test_a_context_without_room_is_refused_and_a_shorter_one_goes_on() -> None:
    async def compacting(client: Client) -> Finished:
        await client.ask([1, 2, 3])
        with pytest.raises(Refused, match="has 12 tokens before its answer; expected 11 at most"):
            await client.ask(range(1, 13))
        await client.ask([9, 9], began="the agent rewrote its history")
        return DONE

    sampling = dataclasses.replace(SAMPLING, max_conversation_tokens=12)
    group, engine, _ = conducted(compacting, sampling)
    assert all(len(request.context_ids) + request.max_tokens <= 12 for request in engine.asked)
    found = conversation(group)
    assert (found.ended, [segment.began for segment in found.segments]) == (
        "done", ["", "the agent rewrote its history"],
    )  # fmt: skip


def test_an_answer_that_the_run_cuts_is_told_from_one_that_the_agent_cut() -> None:
    def agent_of(most: int | None) -> Agent:
        async def agent(client: Client) -> Finished:
            await client.ask([1, 2, 3], max_tokens=most)
            return DONE

        return agent

    one = dataclasses.replace(SAMPLING, max_tokens=1, group_size=32)
    group, _, _ = conducted(agent_of(None), one)
    assert {conversation(group, k).ended for k in range(32)} == {"length", "done"}
    group, engine, _ = conducted(agent_of(1), dataclasses.replace(SAMPLING, group_size=32))
    assert {conversation(group, k).ended for k in range(32)} == {"done"}
    assert {request.max_tokens for request in engine.asked} == {1}
    tight = dataclasses.replace(SAMPLING, max_conversation_tokens=4, group_size=32)
    group, _, _ = conducted(agent_of(None), tight)
    assert {conversation(group, k).ended for k in range(32)} == {"tokens", "done"}


async def nothing(client: Client) -> Finished:
    return Finished(Verdict.scored(1.0, ""), "", "I never asked")


async def raising(client: Client) -> Finished:
    await client.ask([1, 2, 3])
    raise RuntimeError("broken")


async def silent(client: Client) -> Finished:
    await client.ask([1, 2, 3])
    await asyncio.sleep(1000)
    return DONE


async def slow(client: Client) -> Finished:
    now: Sequence[int] = [1, 2, 3]
    while True:
        now = await client.say([*now, 50])
        await asyncio.sleep(9)


async def too_long(client: Client) -> Finished:
    await client.ask(range(1, 1002))
    return DONE


async def empty(client: Client) -> Finished:
    await client.ask([])
    return DONE


@pytest.mark.parametrize(
    ("agent", "reason"),
    [
        (nothing, "its agent ended without an answer from the policy; it printed last: I never asked"),
        (raising, r"its agent raised RuntimeError\('broken'\)"),
        (silent, r"silent for 10 s \(environment.turn_seconds\); it printed last: its last words"),
        (slow, r"took 30 s beside the calls that it waited for \(environment.conversation_seconds\)"),
        (too_long, "response 0: .*this call has 1001 tokens before its answer"),
        (empty, "its agent asked with an empty context"),
    ],
)
def test_an_agent_s_own_fault_is_no_verdict_and_its_calls_are_forgotten(agent: Agent, reason: str) -> None:
    record = FakeRecord()
    sampling = dataclasses.replace(SAMPLING, max_turns=100, group_size=1)
    with pytest.raises(Unscored, match=reason):
        conducted(agent, sampling, record=record)
    assert not record.calls


def test_an_agent_that_asks_in_vain_for_ever_is_ended() -> None:
    async def stubborn(client: Client) -> Finished:
        now = await client.say([1, 2, 3])
        number = 0
        while True:
            number += 1
            with pytest.raises(Refused):
                await client.ask([*now, *range(1000), number])

    group, _, agents = conducted(stubborn)
    assert conversation(group).ended == "tokens"
    assert max(client.numbers for client in agents.clients.values()) <= MOST_REFUSED + 2


def test_waiting_for_an_engine_is_nobody_s_silence() -> None:
    async def agent(client: Client) -> Finished:
        await client.ask([1, 2, 3])
        return DONE

    group, _, _ = conducted(agent, engine=OneEngine(10_000.0))
    assert conversation(group).environment_seconds == 0.0


def test_calls_that_nobody_waits_for_end_with_their_agent() -> None:
    async def hasty(client: Client) -> Finished:
        await client.ask([1, 2, 3])
        forgotten = asyncio.ensure_future(client.ask([1, 2, 3, 50]))
        await asyncio.sleep(0.5)
        forgotten.cancel()
        return DONE

    group, engine, _ = conducted(hasty, engine=OneEngine(1.0))
    assert len(engine.asked) == 4
    assert len(conversation(group).turns) == 1


def test_a_call_is_recorded_before_it_is_answered() -> None:
    record = FakeRecord(slow=5.0)
    seen: list[int] = []

    async def agent(client: Client) -> Finished:
        await client.ask([1, 2, 3])
        seen.append(sum(name.response == client.name.response for name, _ in record.calls["p0"]))
        return DONE

    conducted(agent, record=record)
    assert seen == [1, 1]


def test_the_next_attempt_gets_the_recorded_answers_for_as_long_as_it_asks_the_same() -> None:
    record = FakeRecord()

    async def agent(client: Client) -> Finished:
        now = await client.say([1, 2, 3])
        now = await client.say([*now, 50])
        if client.name.attempt == 0:
            raise GroupLost(*client.name.key, "its process died")
        await client.say([*now, 51])
        return DONE

    with pytest.raises(GroupLost, match="its process died"):
        conducted(agent, record=record)
    recorded = list(record.calls["p0"])
    assert {name.response for name, _ in recorded} == {0, 1}
    group, engine, _ = conducted(agent, record=record, attempt=1)
    assert len(engine.asked) == 6 - len(recorded)
    for k, response in enumerate(group.responses):
        turns = [answered.turn.token_ids for name, answered in recorded if name.response == k]
        assert response.turns[: len(turns)] == tuple(map(len, turns))
        assert response.token_ids.tolist()[: sum(map(len, turns))] == np.concatenate(turns).tolist()


def test_one_that_asks_something_else_gets_a_new_answer_from_there_on() -> None:
    record = FakeRecord()

    async def agent(client: Client) -> Finished:
        now = await client.say([1, 2, 3])
        await client.say([*now, 50 + client.name.attempt])
        if client.name.attempt == 0:
            raise GroupLost(*client.name.key, "its process died")
        return DONE

    one = dataclasses.replace(SAMPLING, group_size=1)
    with pytest.raises(GroupLost):
        conducted(agent, one, record=record)
    _, engine, _ = conducted(agent, one, record=record, attempt=1)
    assert [request.context_ids[-1] for request in engine.asked] == [51]


def test_a_call_that_is_made_again_of_a_new_endpoint_is_the_same_call() -> None:
    """While it is drawn, and after it was answered: under another number each time."""

    async def agent(client: Client) -> Finished:
        async def put(number: int) -> asyncio.Future[Turn]:
            client.waiting[number] = asyncio.get_running_loop().create_future()
            await client.calls.put(Call(number, np.array([1, 2, 3]), b"same"))
            return client.waiting[number]

        first = await put(0)
        await asyncio.sleep(0.5)
        again = await put(7)
        assert (await first) is (await again)
        assert (await (await put(8))) is (await first)
        return DONE

    group, engine, _ = conducted(agent, engine=OneEngine(1.0))
    assert len(engine.asked) == 2
    assert len(conversation(group).turns) == 1


@pytest.mark.parametrize(
    "error", [Unscored("p0", 0, "it raised"), GroupLost("p0", 0, "it died"), ComponentDied("e", "x")]
)
def test_one_that_fails_ends_all_of_its_group(error: Exception) -> None:
    async def agent(client: Client) -> Finished:
        await client.ask([1, 2, 3])
        if client.name.response == 3:
            raise error
        await asyncio.sleep(9)
        return DONE

    class Passing(FakeAgents):
        async def _run(self, client: Client) -> None:
            try:
                await client.calls.put(await self.agent(client))
            except Exception as found:  # noqa: BLE001 - to be passed on
                await client.calls.put(found)

    async def main() -> None:
        agents = Passing(agent)
        rollout = AgentRollout(OneEngine(), agents, LIMITS)
        with pytest.raises(type(error)):
            await rollout.sample(PROMPT, dataclasses.replace(SAMPLING, group_size=6), 0)
        assert asyncio.get_running_loop().time() < 5
        assert len(agents.ended) == 6
        assert len(asyncio.all_tasks()) == 1

    run(main())


@pytest.mark.parametrize("after", [0.0, 0.5, 1.5, 2.5])
def test_cancelling_ends_every_agent(after: float) -> None:
    async def agent(client: Client) -> Finished:
        now: Sequence[int] = [1, 2, 3]
        while True:
            now = await client.say([*now, 50])

    async def main() -> None:
        agents = FakeAgents(agent)
        task = asyncio.ensure_future(AgentRollout(OneEngine(1.0), agents, LIMITS).sample(PROMPT, SAMPLING, 0))
        await asyncio.sleep(after)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not agents.tasks
        assert len(asyncio.all_tasks()) == 1

    run(main())


@given(
    num_workers=st.integers(1, 3),
    slots=st.integers(1, 8),
    group_size=st.integers(1, 4),
    kills=st.lists(st.tuples(st.floats(0, 40), st.integers(0, 7)), max_size=5),
    cancels=st.lists(st.tuples(st.floats(0, 20), st.integers(0, 3)), max_size=2),
    seed=st.integers(0, 2**20),
)
@settings(max_examples=60, deadline=None)
def test_whatever_fails_a_group_is_whole_or_lost_and_nothing_is_left(
    num_workers: int,
    slots: int,
    group_size: int,
    kills: list[tuple[float, int]],
    cancels: list[tuple[float, int]],
    seed: int,
) -> None:
    """Engines that die, agents of any shape that die, raise and hang, callers that give up; lost groups again."""

    async def agent(client: Client) -> Finished:
        name = client.name
        rng = np.random.default_rng([seed, int(name.prompt_id[1:]), name.attempt, name.response])

        async def branch(now: Sequence[int], depth: int) -> None:
            for _ in range(int(rng.integers(1, 4))):
                await asyncio.sleep(float(rng.exponential(2.0)))
                fate = rng.random()
                if fate < 0.02:
                    raise GroupLost(*name.key, "its process died")
                if fate < 0.04:
                    raise RuntimeError("its own fault")
                if fate < 0.05:
                    await asyncio.sleep(10**6)
                if fate < 0.15:
                    now = rng.integers(100, 200, 5).tolist()
                if fate < 0.3 and depth < 2:
                    async with asyncio.TaskGroup() as tasks:
                        for number in range(2):
                            tasks.create_task(branch([*now, number], depth + 1))
                now = await client.say([*now, *rng.integers(100, 200, rng.integers(0, 4)).tolist()])

        try:
            await branch([1, 2, 3], 0)
        except* GroupLost as lost:
            raise GroupLost(*name.key, "its process died") from lost
        return Finished(Verdict.scored(float(rng.random()), ""), "")

    async def work(pool: RolloutPool[Speaker]) -> None:
        loop, begin = asyncio.get_running_loop(), asyncio.get_running_loop().time()
        agents, record = FakeAgents(agent), FakeRecord(slow=0.1)
        rollout = AgentRollout(pool, agents, dataclasses.replace(LIMITS, most_tokens=60), record)
        sampling = dataclasses.replace(SAMPLING, group_size=group_size, max_turns=6)

        async def until_whole(prompt: Prompt) -> PromptGroup:
            for attempt in range(100):
                try:
                    return await rollout.sample(prompt, sampling, attempt)
                except GroupLost as lost:
                    assert lost.reason
                    assert (lost.prompt_id, lost.attempt) == (prompt.prompt_id, attempt)
                    if isinstance(lost, Unscored):
                        assert prompt.prompt_id not in record.calls
            raise AssertionError("it never was whole")

        prompts = [dataclasses.replace(PROMPT, prompt_id=f"p{n}") for n in range(4)]
        tasks = [asyncio.ensure_future(until_whole(prompt)) for prompt in prompts]
        for moment, index in kills:
            loop.call_at(begin + moment, lambda index=index: scene.made[index % len(scene.made)].kill())
        for moment, index in cancels:
            loop.call_at(begin + moment, tasks[index].cancel)
        found = await asyncio.gather(*tasks, return_exceptions=True)
        for result in found:
            if isinstance(result, asyncio.CancelledError):
                assert cancels
                continue
            assert isinstance(result, PromptGroup)
            for k, response in enumerate(result.responses):
                kept = {_turn(answered) for name, answered in record.calls[result.prompt.prompt_id]
                        if name == ConversationId(*result.key, k)}  # fmt: skip
                ends = np.cumsum(response.turns)[:-1]
                assert {tuple(ids.tolist()) for ids in np.split(response.token_ids, ends)} <= kept
                assert len(response.turns) <= 6
        assert not agents.tasks
        assert not agents.asking
        await asyncio.sleep(200)  # replacements are up
        assert scene.idle()

    scene = Scene(num_workers, slots, lambda request: float(np.random.default_rng(request.seed()).exponential(1.0)))
    in_scene(scene, work)


def _turn(answered: Answered) -> tuple[int, ...]:
    return tuple(answered.turn.token_ids.tolist())
