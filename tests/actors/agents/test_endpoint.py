"""The endpoint as agents meet it: the APIs' own clients, against vLLM's server with a conductor that makes tokens."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator

import httpx
import numpy as np
import openai
import anthropic
import pytest
import pytest_asyncio

from lpo_ray.agents.endpoint_settings import EndpointSettings
from lpo_ray.agents.sessions import SessionLimits
from lpo_ray.records import Call, Refusal
from tests.support.agent_endpoint import SAMPLING, Running, answers, model_folder, running, turn_of
from tests.support.chat_tokenizers import QWEN3, byte_tokenizer

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="module")]
USER = [{"role": "user", "content": "17+25?"}]
TOOLS = [{"type": "function", "function": {
    "name": "add", "description": "adds", "parameters": {
        "type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}}}}}]  # fmt: skip
CALL = '<tool_call>\n{"name": "add",  "arguments": {"a": 17,"b":  25}}\n</tool_call>'


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def served() -> AsyncIterator[Running]:
    folder = model_folder(byte_tokenizer(QWEN3, eos="<|im_end|>"))
    limits = SessionLimits(calls=200, requests_a_second=1000, messages=50, body_bytes=200_000)
    async with running(EndpointSettings(folder, SAMPLING, 2048, limits=limits, patience_seconds=0.0)) as made:
        yield made


async def test_a_chat_is_answered_with_log_probs_usage_and_the_weights_that_answered(served: Running) -> None:
    session = await served.session(says=answers(turn_of([*b"hi", 256 + 2], version=7)))
    raw = await session.openai().chat.completions.with_raw_response.create(model="gpt-5", messages=USER, logprobs=True)
    assert raw.headers["x-lpo-ray-weights"] == "7"
    reply = raw.parse()
    assert reply.choices[0].finish_reason == "stop"
    found = reply.choices[0].logprobs.content
    assert [each.logprob for each in found] == pytest.approx([-1, -0.55, -0.1])
    assert reply.usage.completion_tokens == 3 and reply.usage.prompt_tokens == len(session.calls[0].context_ids)
    assert session.text() == "<|im_start|>user\n17+25?<|im_end|>\n<|im_start|>assistant\n"
