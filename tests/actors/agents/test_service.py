"""The environment service, over environments made by hand: what is ended meanwhile is given up."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from actors.agents.service import EnvironmentService
from lpo_ray.errors import GroupLost
from lpo_ray.records import ConversationId, Prompt, Turn
from tests.support.conversations import FakeEnvironments, done

NAME = ConversationId("p0", 1, 2)
PROMPT = Prompt("p0", np.array([1]), "", "countdown")
TURN = Turn(np.array([1]), np.zeros(1, np.float32), np.zeros(1, np.int64), "stop")


def service_over(environments: FakeEnvironments) -> EnvironmentService:
    service = EnvironmentService("/no/model", None, None)
    service._environments = environments
    return service


async def test_it_says_what_it_has_and_that_it_is_there() -> None:
    environments = FakeEnvironments(lambda name, turn: done(), seconds=lambda name, turn: 0.02)
    service = service_over(environments)
    assert (await service.progress()).is_idle
    task = asyncio.ensure_future(service.open(NAME, PROMPT))
    await asyncio.sleep(0.01)
    first, second = await service.progress(), await service.progress()
    assert first.holds == {NAME.key}
    assert first.done != second.done
    assert (await task).tolist() == [1, 2, 3]
    assert (await service.reply(NAME, TURN)).done
    await service.end(NAME)
    assert not environments.open_now
    assert (await service.progress()).is_idle


@pytest.mark.parametrize("method", ["open", "reply"])
async def test_what_its_caller_has_given_up_is_given_up_before_the_end(method: str) -> None:
    """An open that waits would make an environment after its end, which nobody would ever end."""
    environments = FakeEnvironments(lambda name, turn: done(), seconds=lambda name, turn: 30.0 * (turn >= 0))
    service = service_over(environments)
    if method == "open":
        environments.seconds = lambda name, turn: 30.0
        task = asyncio.ensure_future(service.open(NAME, PROMPT))
    else:
        await service.open(NAME, PROMPT)
        task = asyncio.ensure_future(service.reply(NAME, TURN))
    await asyncio.sleep(0.01)
    async with asyncio.timeout(5):
        await service.end(NAME)
        with pytest.raises(GroupLost, match="conversation 2 was ended"):
            await task
    assert not environments.open_now
    assert not +environments.working
    assert (await service.progress()).is_idle


async def test_the_end_of_one_that_it_never_had_is_no_error() -> None:
    await service_over(FakeEnvironments(lambda name, turn: done())).end(NAME)
