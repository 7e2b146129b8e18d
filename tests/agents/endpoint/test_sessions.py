"""Sessions of agents: whatever clients do, each distinct request is asked once, and everyone gets the same answer."""

from __future__ import annotations

import asyncio
import contextlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lpo_ray.agents.endpoint.api_errors import ApiError
from lpo_ray.agents.endpoint.sessions import Outcome, Session, SessionLimits, Sessions
from lpo_ray.errors import GroupLost
from lpo_ray.records import Answered, Call, ConversationId, Refusal, Turn

NAME = ConversationId("p", 0, 1)
LIMITS = SessionLimits(calls=1000, requests_a_second=1e9)


def call(request: int | str, number: int = 0) -> Call:
    return Call(number, np.array([1, 2]), str(request).encode())


def turn(*ids: int) -> Turn:
    return Turn(np.array(ids), np.zeros(len(ids), dtype=np.float32), np.zeros(len(ids), dtype=np.int64), "stop")


async def settled() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


def told(outcomes: list[Outcome]) -> set[int]:
    return {id(outcome.answer) for outcome in outcomes}


ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.just("ask"), st.integers(0, 4)),
        st.tuples(st.just("cancel"), st.integers(0, 20)),
        st.tuples(st.just("answer"), st.integers(0, 6)),
        st.tuples(st.just("see"), st.just(0)),
        st.tuples(st.just("restart"), st.just(0)),
    ),
    max_size=40,
)


@settings(deadline=None, max_examples=200)
@given(ACTIONS)
def test_a_request_is_asked_once_and_everyone_gets_its_answer(actions: list[tuple[str, int]]) -> None:
    """Doubled, reordered, given up and repeated requests; answers that come twice; endpoints that die in between."""

    async def run() -> None:
        session, asked = Session(NAME, LIMITS), []
        seen: dict[bytes, Call] = {}
        drawn: dict[bytes, Turn] = {}
        recorded: list[Answered] = []
        got: dict[bytes, list[Outcome]] = {}
        waiting: list[tuple[bytes, asyncio.Task[Outcome]]] = []

        async def see() -> None:
            while True:
                try:
                    async with asyncio.timeout(0.001):
                        found = await session.next()
                except TimeoutError:
                    return
                assert found.request not in {each.request for each in asked}, "asked twice while the session lives"
                asked.append(found)
                seen[found.request] = found

        def collect() -> None:
            for request, task in waiting[:]:
                if task.done():
                    waiting.remove((request, task))
                    if not task.cancelled() and task.exception() is None:
                        got.setdefault(request, []).append(task.result())

        def draw(found: Call) -> None:
            """The conductor: it draws a request once, whatever number it comes under, and records before it answers."""
            if found.request not in drawn:
                drawn[found.request] = turn(len(drawn))
                recorded.append(Answered(found, drawn[found.request]))
            session.answer(found.number, drawn[found.request])
            session.answer(found.number, turn(99))

        for action, number in actions:
            if action == "ask":
                waiting.append((str(number).encode(), asyncio.create_task(session.ask(call(number)))))
            elif action == "cancel" and waiting:
                waiting[number % len(waiting)][1].cancel()
            elif action == "see":
                await see()
            elif action == "answer" and asked:
                draw(asked[number % len(asked)])
            elif action == "restart":
                await settled()
                collect()
                for _, task in waiting:
                    task.cancel()
                session, asked = Session(NAME, LIMITS, recorded), []
                again = {request for request, _ in waiting}
                waiting = [(request, asyncio.create_task(session.ask(call(request.decode())))) for request in again]
            await settled()
            collect()
        await settled()
        await see()
        for found in asked:
            draw(found)
        await settled()
        collect()
        assert not waiting
        for request, outcomes in got.items():
            assert told(outcomes) == {id(drawn[request])}
        numbers = [each.call.number for each in recorded]
        assert len(set(numbers)) == len(numbers), "numbers of recorded calls are not given again"

    asyncio.run(run())


async def test_the_end_is_told_to_whoever_waits_and_to_whoever_is_late() -> None:
    session = Session(NAME, LIMITS)
    pending, conductor = asyncio.create_task(session.ask(call(1))), asyncio.create_task(session.next())
    await conductor
    conductor = asyncio.create_task(session.next())
    await settled()
    session.end()
    with pytest.raises(ApiError, match="has ended") as ended:
        await pending
    assert ended.value.status == 403, "no client asks again after that"
    with pytest.raises(GroupLost, match="session has ended"):
        await conductor
    with pytest.raises(ApiError, match="has ended"):
        await session.ask(call(2))
    with pytest.raises(ApiError, match="has ended"):
        session.admit()
    session.answer(0, turn(1))


async def test_a_refusal_is_an_answer() -> None:
    session = Session(NAME, LIMITS)
    first, second = asyncio.create_task(session.ask(call(1))), asyncio.create_task(session.ask(call(1)))
    found = await session.next()
    session.answer(found.number, Refusal("turns", "no more"))
    assert (await first).answer == (await second).answer == (await session.ask(call(1))).answer


async def test_a_call_that_is_given_up_may_be_asked_again() -> None:
    session = Session(NAME, LIMITS)
    first = asyncio.create_task(session.ask(call(1)))
    session.give_up(await session.next(), ApiError(503, "no engine"))
    with pytest.raises(ApiError, match="no engine"):
        await first
    again = asyncio.create_task(session.ask(call(1)))
    found = await session.next()
    assert found.number == 1
    session.answer(found.number, turn(1))
    assert (await again).call is found
    session.give_up(found, ApiError(503, "too late"))
    session.give_up(found, ApiError(503, "twice"))


async def test_only_the_first_who_is_told_gets_the_call() -> None:
    session = Session(NAME, LIMITS)
    tasks = [asyncio.create_task(session.ask(call(1))) for _ in range(3)]
    found = await session.next()
    session.answer(found.number, turn(5))
    outcomes = [await task for task in tasks]
    assert [outcome.call is not None for outcome in outcomes] == [True, False, False]


async def test_a_session_makes_no_more_calls_than_its_limit_but_may_repeat_them() -> None:
    session = Session(NAME, SessionLimits(calls=2, requests_a_second=1e9))
    tasks = [asyncio.create_task(session.ask(call(n))) for n in range(2)]
    await settled()
    with pytest.raises(ApiError, match="2 calls, its limit"):
        await session.ask(call(2))
    for _ in range(2):
        session.answer((await session.next()).number, turn(1))
    assert (await session.ask(call(0))).answer is (await tasks[0]).answer


def test_requests_beyond_the_rate_are_told_when_to_come_again() -> None:
    now = [0.0]
    session = Session(NAME, SessionLimits(requests_a_second=2), clock=lambda: now[0])
    for _ in range(10):
        session.admit()
    with pytest.raises(ApiError) as refused:
        session.admit()
    assert refused.value.status == 429 and refused.value.retry_after == 1
    now[0] += 0.5
    session.admit()
    with pytest.raises(ApiError):
        session.admit()


async def test_a_key_opens_its_session_and_ends_with_it() -> None:
    sessions = Sessions(LIMITS)
    one = await sessions.open(NAME, "one")
    other = await sessions.open(NAME._replace(response=2), "other")
    assert await sessions.find("one") is one and await sessions.find("other") is other
    with pytest.raises(ApiError, match="unknown"):
        await sessions.find("three")
    sessions.end(NAME)
    with pytest.raises(ApiError, match="has ended"):
        await sessions.find("one")
    with pytest.raises(GroupLost):
        sessions.of(NAME)
    sessions.answer(NAME, 0, turn(1))
    again = await sessions.open(NAME, "one")
    assert await sessions.find("one") is again, "an endpoint that begins again has the same keys"
    assert "one" not in repr(vars(sessions)), "keys are not kept"


async def test_a_session_that_is_opened_again_ends_the_one_before() -> None:
    sessions = Sessions(LIMITS)
    first = await sessions.open(NAME, "one")
    second = await sessions.open(NAME, "one")
    assert first.ended and not second.ended and await sessions.find("one") is second


async def test_a_key_may_be_early_after_a_restart() -> None:
    sessions = Sessions(LIMITS)
    early = asyncio.create_task(sessions.find("one", patience=5))
    await settled()
    session = await sessions.open(NAME, "one")
    assert await early is session
    with pytest.raises(ApiError, match="unknown"), contextlib.nullcontext():
        await sessions.find("two", patience=0.01)
