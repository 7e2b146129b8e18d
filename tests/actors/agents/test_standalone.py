"""The endpoint without training, over an engine made by hand: sessions begin as they are asked for."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import numpy as np
import openai
import pytest

from actors.agents.standalone import OpenSessions, Standalone
from lpo_ray.agents.endpoint.api_errors import ApiError
from lpo_ray.agents.endpoint.sessions import SessionLimits
from lpo_ray.agents.endpoint.settings import EndpointSettings
from lpo_ray.errors import GroupLost
from lpo_ray.interfaces import TurnEngine
from lpo_ray.records import Prompt, PromptGroup, Sampling, Turn, TurnRequest
from tests.support.agent_endpoint import SAMPLING, model_folder
from tests.support.chat_tokenizers import CHATML, byte_tokenizer

KEY = "a-key-of-sixteen-or-more"
USER = [{"role": "user", "content": "x"}]


class Engine(TurnEngine):
    """Answers with the number of its turn; fails at first, as often as it is told."""

    def __init__(self, failures: int = 0) -> None:
        self.asked: list[TurnRequest] = []
        self.failures = failures

    async def sample(self, prompt: Prompt, sampling: Sampling, attempt: int) -> PromptGroup:
        raise NotImplementedError

    async def turn(self, request: TurnRequest) -> Turn:
        self.asked.append(request)
        if self.failures:
            self.failures -= 1
            raise GroupLost("p", 0, "its worker died")
        ids = np.array([*str(len(self.asked)).encode()]) - 33 + 0
        return Turn(ids, np.zeros(len(ids), dtype=np.float32), np.zeros(len(ids), dtype=np.int64), "length")


@pytest.mark.slow
async def test_an_engine_answers_each_session_and_is_asked_again_when_it_fails() -> None:
    folder = model_folder(byte_tokenizer(CHATML, eos="<|im_end|>"))
    engine = Engine(failures=1)
    served = Standalone(EndpointSettings(folder, SAMPLING, 1024, patience_seconds=0), engine, KEY, step=30)
    url = f"{await served.start()}/v1"
    running = asyncio.create_task(served.run())
    try:

        async def ask(key: str, **other: object) -> str:
            async with openai.AsyncOpenAI(base_url=url, api_key=key, timeout=30) as client:
                reply = await client.chat.completions.create(model="m", messages=USER, **other)
            return reply.choices[0].message.content

        assert await ask(KEY) == "2", "a call that failed is asked again by the client, and drawn again"
        async with openai.AsyncOpenAI(base_url=url, api_key=KEY, timeout=30) as client:
            raw = await client.chat.completions.with_raw_response.create(model="m", messages=USER)
        assert raw.headers["x-lpo-ray-weights"] == "30", "the step of the run that it serves"
        assert await ask(KEY) == "2" and await ask(f"{KEY}/other") == "3" and await ask(f"{KEY}/other") == "3"
        with pytest.raises(openai.AuthenticationError):
            await ask(f"{KEY[:-1]}x/other")
        await ask(KEY, max_tokens=5, stop=["q"])
        request = engine.asked[-1]
        assert (request.max_tokens, request.stop) == (5, ("q",)) and engine.asked[0].max_tokens == SAMPLING.max_tokens
        names = {each.conversation.key for each in engine.asked}
        assert len(names) == 2, "seeds of sessions differ"
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await served.close()


async def test_the_oldest_session_makes_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("actors.agents.standalone.MOST_SESSIONS", 2)
    sessions = OpenSessions(KEY, replace(SessionLimits()))
    first = await sessions.find(f"{KEY}/1")
    assert await sessions.find(f"{KEY}/1") is first
    second = await sessions.find(f"{KEY}/2")
    third = await sessions.find(f"{KEY}/3")
    assert first.ended and not second.ended and not third.ended
    assert not (await sessions.find(f"{KEY}/1")).ended, "it begins again"
    with pytest.raises(ApiError, match="unknown"):
        await sessions.find("x")
