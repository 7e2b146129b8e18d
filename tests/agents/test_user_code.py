"""Calls of a user's code: whatever it raises, whoever waits is told at once."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, NoReturn

import pytest

from lpo_ray.agents.tools import ToolEnvironment
from lpo_ray.agents.user_code import Raised, called, text_of

PLACE: ContextVar[str] = ContextVar("PLACE")


def raiser(error: BaseException, *, later: bool) -> Callable[[], Any]:
    def now() -> NoReturn:
        raise error

    async def then() -> NoReturn:
        raise error

    return then if later else now


@pytest.mark.parametrize("error", [StopIteration(), StopAsyncIteration(), KeyError("k"), MemoryError()])
@pytest.mark.parametrize("later", [False, True])
async def test_an_error_reaches_whoever_waits_for_the_call(error: BaseException, later: bool) -> None:
    with pytest.raises(Exception) as caught:
        await asyncio.wait_for(called(raiser(error, later=later)), 5)
    assert type(error).__name__ in text_of(caught.value)


async def test_what_would_end_more_than_a_thread_is_carried_out_of_it() -> None:
    for error in (SystemExit(3), KeyboardInterrupt(), GeneratorExit()):
        with pytest.raises(Raised, match=type(error).__name__):
            await called(raiser(error, later=False))


async def test_calls_block_nobody_and_see_their_context() -> None:
    class Both:
        async def __call__(self, word: str) -> str:
            return f"{word} {PLACE.get()}"

    PLACE.set("here")
    assert await called(Both(), "I am") == "I am here"
    assert await called(lambda *, word: f"{word} {PLACE.get()}", word="still") == "still here"
    assert await called(threading.get_ident) != threading.get_ident()


async def test_a_tool_that_runs_out_of_an_iterator_is_an_answer_to_the_model() -> None:
    def first(text: str) -> str:
        return next(word for word in text.split() if word == "nowhere")

    environment = ToolEnvironment()
    environment.tools = [first]
    call = {"type": "function", "id": "call00000", "function": {"name": "first", "arguments": {"text": "a b"}}}
    step = await asyncio.wait_for(environment.step({"role": "assistant", "content": "", "tool_calls": [call]}), 5)
    assert step.messages[0]["content"].startswith("Error: StopIteration")
