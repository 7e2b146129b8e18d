"""Agents that are functions: their client, their verdict, and whatever they do to their process."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest

from lpo_ray.agents.limits import Hosted
from lpo_ray.agents.processes import process
from lpo_ray.agents.programs.functions import AgentFunctions
from lpo_ray.agents.programs.program import Access, AgentSettings
from lpo_ray.errors import GroupLost, Unscored
from lpo_ray.records import ConversationId, Finished, Prompt
from lpo_ray.verdict import Verdict
from tests.support.chat_server import Chat, chat_server

HERE = f"{Path(__file__).parents[2]}/support/hostile_agents.py"
NAME = ConversationId("p", 0, 0)
KEY = "lpo-session-of-this-test"
PROMPT = Prompt("p", np.array([1]), "5", "exact", {"prompt": "go "})


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(process, "RESPONSE_SECONDS", 1.0)
    yield


@pytest.fixture(scope="module")
def chat() -> Iterator[Chat]:
    with chat_server() as made:
        yield made


@asynccontextmanager
async def hosting(function: str, **limits: object) -> AsyncIterator[AgentFunctions]:
    chosen = {"agent": f"{HERE}:{function}", "processes": 1, "memory_mib": 1024, **limits}
    made = AgentFunctions(AgentSettings(Hosted(**chosen)))
    try:
        yield made
    finally:
        await asyncio.wait_for(made.close(), 30)
        assert not [p for p in psutil.Process().children(recursive=True) if "lpo_ray.agents" in " ".join(p.cmdline())]


async def played(hosted: AgentFunctions, chat: Chat, name: ConversationId = NAME, kind: str = "") -> Finished:
    await hosted.begin(name, replace(PROMPT, prompt_id=name.prompt_id, row={**PROMPT.row, "kind": kind}))
    try:
        return await asyncio.wait_for(hosted.run(name, Access(chat.url, KEY)), 60)
    finally:
        await hosted.end(name)


async def test_it_asks_with_its_key_and_says_its_verdict(chat: Chat) -> None:
    cases = {
        "asking": ((5.0, ""), None), "text": (None, "the answer is 5"), "nothing": (None, None),
        "half_a_character": (None, "half \ufffd of it"),
    }  # fmt: skip
    chat.asked.clear()
    async with hosting("act") as hosted:
        for number, (kind, expected) in enumerate(cases.items()):
            found = await played(hosted, chat, ConversationId(f"p{number}", 0, 0), kind)
            assert (found.verdict and (found.verdict.reward, found.verdict.detail), found.output) == expected
    async with hosting("plain") as hosted:
        found = await played(hosted, chat)
        assert found.verdict == Verdict.scored(0.5, "the answer")
    assert [key for key, _ in chat.asked] == [KEY, KEY]


async def test_a_fault_of_its_own_is_no_verdict(chat: Chat) -> None:
    faults = {
        "raising": "its agent failed: ValueError: my key is",
        "not_a_number": "its agent failed: the verdict is nan",
        "an_object": "its agent failed",
        "leaving": "SystemExit",
        "talking": "it said 10,000,0.* characters at once",
        "hoarding": "no memory left of 1024 MiB",
        "dying": "ended with exit code 3; it printed last: these are my last words",
    }
    async with hosting("act") as hosted:
        for number, (kind, reason) in enumerate(faults.items()):
            with pytest.raises(Unscored, match=reason):
                await played(hosted, chat, ConversationId(f"p{number}", 0, 0), kind)
    async with hosting("wrong") as hosted:
        with pytest.raises(Unscored, match="takes 1 positional argument but 2 were given"):
            await played(hosted, chat)


async def test_one_that_cannot_be_loaded_is_lost_with_the_reason(chat: Chat) -> None:
    async with hosting("no_such_name") as hosted:
        with pytest.raises(GroupLost, match="no_such_name"):
            await played(hosted, chat)


@pytest.mark.parametrize(
    "function", ["sleeping", "sleeping_in_a_thread", "blocking", "holding_on", "forking", "flooding"]
)
async def test_one_that_goes_on_is_ended_with_all_it_started(function: str, chat: Chat) -> None:
    async with hosting(function) as hosted:
        await hosted.begin(NAME, PROMPT)
        running = asyncio.ensure_future(hosted.run(NAME, Access(chat.url, KEY)))
        await asyncio.sleep(1.0)
        started = time.monotonic()
        last = await hosted.end(NAME)
        assert time.monotonic() - started < 8
        if function == "sleeping":
            assert last == "I sleep"
        with pytest.raises(GroupLost):
            await asyncio.wait_for(running, 10)
        assert await hosted.end(NAME) == ""
        other = ConversationId("q", 0, 0)
        await asyncio.wait_for(hosted.begin(other, PROMPT), 30)
        await hosted.end(other)


async def test_an_async_one_that_is_ended_leaves_the_others_and_its_process(chat: Chat) -> None:
    async with hosting("sleeping") as hosted:
        names = [ConversationId("p", 0, k) for k in range(3)]
        for name in names:
            await hosted.begin(name, PROMPT)
        running = [asyncio.ensure_future(hosted.run(name, Access(chat.url, KEY))) for name in names]
        await asyncio.sleep(0.5)
        await hosted.end(names[0])
        done, pending = await asyncio.wait(running, timeout=0.5)
        assert len(done) == 1
        assert len(pending) == 2
        (child,) = hosted._pool._children
        assert not child.retired
        for name in names:
            await hosted.end(name)
        await asyncio.gather(*running, return_exceptions=True)


async def test_many_share_a_process(chat: Chat) -> None:
    async with hosting("asking") as hosted:
        names = [ConversationId(f"p{n}", 0, 0) for n in range(40)]
        found = await asyncio.gather(*(played(hosted, chat, name) for name in names))
        assert {each.verdict.reward for each in found if each.verdict} == {5.0}
        assert len(hosted._pool._children) == 1
