"""A stop string that ends inside a token, sampled while the weights changed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from lpo_ray.agents.endpoint.settings import EndpointSettings
from tests.support.agent_endpoint import SAMPLING, model_folder, running, turn_of
from tests.support.chat_tokenizers import QWEN3, byte_tokenizer

pytestmark = [pytest.mark.slow]
USER = [{"role": "user", "content": "Q"}]
MORE = [{"role": "user", "content": "and?"}]


async def test_the_text_is_cut_and_the_whole_token_stays_with_both_versions() -> None:
    tokenizer = byte_tokenizer(QWEN3, eos="<|im_end|>")
    tokenizer._tokenizer.add_tokens(["abcd"])
    ids = tokenizer.encode("xyabcd").tolist()
    assert len(ids) == 3
    turn = replace(turn_of(ids), versions=np.array([3, 3, 4]))
    async with running(EndpointSettings(model_folder(tokenizer), SAMPLING, 2048, patience_seconds=0.0)) as served:
        session = await served.session(says=lambda _: turn)
        client = session.openai()
        raw = await client.chat.completions.with_raw_response.create(model="m", messages=USER, stop=["bc"])
        reply = raw.parse().choices[0]
        assert (reply.message.content, reply.finish_reason) == ("xya", "stop")
        assert raw.headers["x-lpo-ray-weights"] == "3-4"
        history = [*USER, {"role": "assistant", "content": reply.message.content}, *MORE]
        await client.chat.completions.create(model="m", messages=history)
        assert session.goes_on() and session.calls[1].began == ""
        assert session.turns[0].versions.tolist() == [3, 3, 4]
