"""The endpoint as agents meet it: the APIs' own clients, against vLLM's server with a conductor that makes tokens."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Iterator
from typing import Any

import anthropic
import httpx
import numpy as np
import openai
import pytest
import pytest_asyncio

from lpo_ray.agents.endpoint.doorway import Doorway
from lpo_ray.agents.endpoint.sessions import SessionLimits
from lpo_ray.agents.endpoint.settings import EndpointSettings
from lpo_ray.records import Refusal
from tests.support.agent_endpoint import SAMPLING, Running, answers, model_folder, running, turn_of
from tests.support.chat_tokenizers import QWEN3, byte_tokenizer

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="module")]
USER = [{"role": "user", "content": "17+25?"}]
MORE = [{"role": "user", "content": "Sure?"}]
PARAMETERS = {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}}}
TOOLS = [{"type": "function", "function": {"name": "add", "description": "adds", "parameters": PARAMETERS}}]
CALL = 'I add.\n<tool_call>\n{"name": "add",  "arguments": {"a": 17,"b":  25}}\n</tool_call>'
LIMITS = SessionLimits(calls=100, requests_a_second=1000, messages=50, body_bytes=200_000)


@pytest.fixture(scope="module")
def folder() -> str:
    return model_folder(byte_tokenizer(QWEN3, eos="<|im_end|>"))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def served(folder: str) -> AsyncIterator[Running]:
    async with running(EndpointSettings(folder, SAMPLING, 2048, limits=LIMITS, patience_seconds=0.0)) as made:
        yield made


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def thinking() -> AsyncIterator[Running]:
    """One that takes thinking out of answers, and answers as the run samples."""
    tokenizer = byte_tokenizer(QWEN3, eos="<|im_end|>")
    tokenizer._tokenizer.add_tokens(["<think>", "</think>"])
    settings = EndpointSettings(
        model_folder(tokenizer),
        SAMPLING,
        2048,
        limits=LIMITS,
        patience_seconds=0.0,
        reasoning_parser="deepseek_r1",
        overrides=True,
    )
    async with running(settings) as made:
        yield made


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """No test leaves a traceback or a key in a log, whatever it asks."""
    for name in ("vllm", "uvicorn.error"):
        logging.getLogger(name).addHandler(caplog.handler)
    yield
    for record in caplog.get_records("call"):
        assert record.exc_info is None, record.getMessage()
        assert "key-of-session" not in record.getMessage()
    for name in ("vllm", "uvicorn.error"):
        logging.getLogger(name).removeHandler(caplog.handler)


async def chat(client: openai.AsyncOpenAI, messages: list[Any], **other: Any) -> Any:
    return await client.chat.completions.create(model="gpt-5", messages=messages, **other)


def sent_back(reply: Any) -> dict[str, Any]:
    return reply.choices[0].message.model_dump(exclude_none=True)


async def streamed(client: openai.AsyncOpenAI, messages: list[Any], **other: Any) -> tuple[str, list[Any], str]:
    text, calls, finish = "", [], ""
    async for chunk in await chat(client, messages, stream=True, **other):
        for choice in chunk.choices:
            text += choice.delta.content or ""
            calls += choice.delta.tool_calls or []
            finish = choice.finish_reason or finish
    return text, calls, finish


async def test_a_chat_is_answered_with_log_probs_usage_and_the_weights_that_answered(served: Running) -> None:
    session = await served.session(says=answers(turn_of([*served.tokenizer.encode("hi"), 258], version=7)))
    raw = await session.openai().chat.completions.with_raw_response.create(model="gpt-5", messages=USER, logprobs=True)
    assert raw.headers["x-lpo-ray-weights"] == "7"
    reply = raw.parse()
    assert reply.choices[0].finish_reason == "stop" and reply.choices[0].message.content == "hi"
    found = reply.choices[0].logprobs.content
    assert [each.logprob for each in found] == pytest.approx([-1, -0.55, -0.1])
    assert reply.usage.completion_tokens == 3 and reply.usage.prompt_tokens == len(session.calls[0].context_ids)
    assert session.text() == "<|im_start|>user\n17+25?<|im_end|>\n<|im_start|>assistant\n"
    call = session.calls[0]
    assert (call.max_tokens, call.stop, call.author, call.began) == (None, (), "user", "")


async def test_weights_that_changed_within_an_answer_are_named(served: Running) -> None:
    turn = turn_of([65, 66])
    turn.versions[:] = [12, 13]
    session = await served.session(says=answers(turn))
    raw = await session.anthropic().messages.with_raw_response.create(model="c", messages=USER, max_tokens=5)
    assert raw.headers["x-lpo-ray-weights"] == "12-13"


async def test_a_conversation_goes_on_from_its_own_tokens(served: Running) -> None:
    """Tokens that no text is encoded to: half a character."""
    session = await served.session(says=answers(turn_of([160, 162, 258]), "no", "third"))
    client, messages = session.openai(), list(USER)
    for _ in range(3):
        reply = await chat(client, messages)
        messages = [*messages, sent_back(reply), *MORE]
    assert session.goes_on(1) and session.goes_on(2)
    assert [call.began for call in session.calls] == ["", "", ""]


async def test_streams_have_what_replies_have(served: Running) -> None:
    session = await served.session(says=answers("425", CALL))
    client = session.openai()
    assert await streamed(client, USER) == ("425", [], "stop")
    assert (await chat(client, USER)).choices[0].message.content == "425"
    text, calls, finish = await streamed(client, USER, tools=TOOLS)
    whole = (await chat(client, USER, tools=TOOLS)).choices[0]
    assert (text, finish) == (whole.message.content, whole.finish_reason) and finish == "tool_calls"
    found = whole.message.tool_calls
    assert [(each.id, each.function) for each in found] == [(each.id, each.function) for each in calls] or (
        found[0].id == calls[0].id and found[0].function.arguments == calls[0].function.arguments
    )
    assert json.loads(found[0].function.arguments) == {"a": 17, "b": 25}
    assert len(session.calls) == 2, "asking again, streamed or not, is no call"


async def test_a_stream_names_the_weights_and_its_usage(served: Running) -> None:
    session = await served.session()
    client = session.openai()
    raw = await client.chat.completions.with_raw_response.create(
        model="m", messages=USER, stream=True, stream_options={"include_usage": True}
    )
    assert raw.headers["x-lpo-ray-weights"] == "12"
    chunks = [chunk async for chunk in raw.parse()]
    assert chunks[-1].usage.completion_tokens == len(session.turns[0].token_ids)


async def test_tools_are_called_and_their_results_read(served: Running) -> None:
    session = await served.session(says=answers(CALL, "42"))
    client = session.openai()
    reply = await chat(client, USER, tools=TOOLS)
    message = sent_back(reply)
    message["tool_calls"][0]["function"]["arguments"] = '{"b":25,   "a":17}'
    result = {"role": "tool", "tool_call_id": message["tool_calls"][0]["id"], "content": "42"}
    last = await chat(client, [*USER, message, result], tools=TOOLS)
    assert last.choices[0].message.content == "42"
    assert session.goes_on() and session.calls[1].author == "tool"
    assert '"b":  25}' in session.text(), "as it was sampled, not as the client writes it"
    assert '{"name": "add", "description": "adds"' in session.text(), "what is not set is not shown"
    assert session.text().endswith("<tool_response>\n42\n</tool_response><|im_end|>\n<|im_start|>assistant\n")


async def test_a_call_that_is_none_is_text_in_every_api(served: Running) -> None:
    broken = '<tool_call>\n{"name": "add", "arguments": [1]}\n</tool_call>'
    session = await served.session(says=answers(broken))
    assert (await chat(session.openai(), USER, tools=TOOLS)).choices[0].message.content == broken
    tools = [{"name": "add", "description": "adds", "input_schema": PARAMETERS}]
    reply = await session.anthropic().messages.create(model="c", messages=USER, max_tokens=2048, tools=tools)
    assert reply.content[0].text == broken


async def test_one_call_at_a_time(served: Running) -> None:
    two = CALL + '\n<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": 1}}\n</tool_call>'
    session = await served.session(says=lambda _: two)
    client = session.openai()
    reply = await chat(client, USER, tools=TOOLS, parallel_tool_calls=False)
    assert len(reply.choices[0].message.tool_calls) == 1
    result = {"role": "tool", "tool_call_id": "x", "content": "42"}
    await chat(client, [*USER, sent_back(reply), result], tools=TOOLS, parallel_tool_calls=False)
    assert session.goes_on(), "what was cut off was sampled"
    both = await chat(client, [*USER, *MORE], tools=TOOLS)
    names = [call.id for call in both.choices[0].message.tool_calls]
    assert len(set(names)) == 2 and all(len(name) == 9 and name.isalnum() for name in names)


async def test_responses_go_on_from_what_they_returned(served: Running) -> None:
    session = await served.session(says=answers(CALL, "42", "yes"))
    client = session.openai()
    tools = [{"type": "function", "name": "add", "description": "adds", "parameters": PARAMETERS}]
    first = await client.responses.create(model="m", input=list(USER), tools=tools, instructions="Be brief.")
    call = next(item for item in first.output if item.type == "function_call")
    history: list[Any] = [*USER, *first.output]
    history.append({"type": "function_call_output", "call_id": call.call_id, "output": "42"})
    second = await client.responses.create(model="m", input=history, tools=tools, instructions="Be brief.")
    assert second.output_text == "42" and session.goes_on() and session.calls[1].author == "tool"
    history += [*(item.model_dump() for item in second.output), *MORE]
    events = [
        event async for event in await client.responses.create(
            model="m", input=history, tools=tools, instructions="Be brief.", stream=True)
    ]  # fmt: skip
    assert events[-1].type == "response.completed" and events[-1].response.output_text == "yes" and session.goes_on()
    again = await client.responses.create(model="m", input=history, tools=tools, instructions="Be brief.")
    assert again.id == events[-1].response.id and len(session.calls) == 3


async def test_messages_go_on_from_what_they_returned(served: Running) -> None:
    session = await served.session(says=answers(CALL, "42", "yes"))
    client, tools = session.anthropic(), [{"name": "add", "description": "adds", "input_schema": PARAMETERS}]
    asked: dict[str, Any] = {"model": "claude", "max_tokens": 900, "tools": tools, "system": "Be brief."}
    async with client.messages.stream(messages=USER, **asked) as stream:
        first = await stream.get_final_message()
    assert [block.type for block in first.content] == ["text", "tool_use"] and first.stop_reason == "tool_use"
    assert first.content[1].input == {"a": 17, "b": 25}
    result = {"type": "tool_result", "tool_use_id": first.content[1].id, "content": "42"}
    history = [*USER, {"role": "assistant", "content": first.content}, {"role": "user", "content": [result]}]
    second = await client.messages.create(messages=history, **asked)
    assert second.content[0].text == "42" and session.goes_on() and session.calls[1].max_tokens == 900
    history += [{"role": "assistant", "content": second.content}, *MORE]
    assert (await client.messages.create(messages=history, **asked)).content[0].text == "yes" and session.goes_on()
    counted = await client.messages.count_tokens(messages=history, model="c", tools=tools, system="Be brief.")
    assert counted.input_tokens == len(session.calls[-1].context_ids) and len(session.calls) == 3


async def test_a_text_goes_on(served: Running) -> None:
    session = await served.session(says=answers(turn_of([160, 162], "length"), turn_of([65], "length")))
    client = session.openai()
    first = await client.completions.create(model="m", prompt="once", max_tokens=2, logprobs=1)
    assert first.choices[0].finish_reason == "length" and len(first.choices[0].logprobs.token_logprobs) == 2
    text = "once" + first.choices[0].text
    async for _ in await client.completions.create(model="m", prompt=text + " upon", max_tokens=1, stream=True):
        pass
    assert session.goes_on() and session.text().endswith(" upon")
    ids = session.calls[0].context_ids.tolist()
    await client.completions.create(model="m", prompt=[*ids, 160, 162], max_tokens=2)
    assert session.calls[-1].context_ids.tolist() == [*ids, 160, 162]


@pytest.mark.parametrize("api", ["chat", "messages", "completions", "responses"])
async def test_a_stop_string_is_cut_off_and_its_tokens_stay(served: Running, api: str) -> None:
    ids = [*served.tokenizer.encode("xabc")]
    session = await served.session(says=lambda _: turn_of(ids))
    if api == "messages":
        client = session.anthropic()
        reply = await client.messages.create(model="c", messages=USER, max_tokens=9, stop_sequences=["bc"])
        assert (reply.content[0].text, reply.stop_reason, reply.stop_sequence) == ("xa", "stop_sequence", "bc")
        history = [*USER, {"role": "assistant", "content": reply.content}, *MORE]
        await client.messages.create(model="c", messages=history, max_tokens=9)
    elif api == "completions":
        client = session.openai()
        reply = await client.completions.create(model="m", prompt="Q", stop="bc")
        assert (reply.choices[0].text, reply.choices[0].finish_reason) == ("xa", "stop")
        await client.completions.create(model="m", prompt="Qxabc!")
    elif api == "chat":
        client = session.openai()
        reply = await chat(client, USER, stop=["zz", "bc"])
        assert (reply.choices[0].message.content, reply.choices[0].finish_reason) == ("xa", "stop")
        await chat(client, [*USER, sent_back(reply), *MORE])
    else:
        client = session.openai()
        reply = await client.responses.create(model="m", input="q", extra_body={"stop": ["bc"]})
        assert reply.output_text == "xa"
        await client.responses.create(model="m", input=[{"role": "user", "content": "q"}, *reply.output, *MORE])
    assert "bc" in session.calls[0].stop and session.goes_on() and session.calls[1].began == ""


async def test_an_answer_that_was_cut_off_says_so_and_goes_on(served: Running) -> None:
    session = await served.session(says=lambda _: turn_of(served.tokenizer.encode("the ans"), "length"))
    client = session.openai()
    reply = await chat(client, USER, max_completion_tokens=7)
    assert reply.choices[0].finish_reason == "length" and session.calls[0].max_tokens == 7
    await chat(client, [*USER, sent_back(reply), *MORE], max_tokens=6)
    assert session.goes_on() and session.calls[1].max_tokens == 6
    anthropic = session.anthropic()
    history = [*USER, {"role": "assistant", "content": "the ans"}]
    reply = await anthropic.messages.create(model="c", messages=history, max_tokens=7)
    assert reply.stop_reason == "max_tokens" and session.goes_on(2, 0)
    assert session.text().endswith("assistant\nthe ans"), "the answer goes on where it was cut off"


@pytest.mark.parametrize("api", ["chat", "messages", "responses"])
async def test_thinking_that_the_parser_takes_out_stays_in_the_context(thinking: Running, api: str) -> None:
    session = await thinking.session(says=answers("<think>hm</think>42", "yes", "again"))
    if api == "chat":
        client = session.openai()
        reply = await chat(client, USER)
        assert (reply.choices[0].message.content, reply.choices[0].message.reasoning) == ("42", "hm")
        await chat(client, [*USER, {"role": "assistant", "content": "42"}, *MORE])
        assert (await streamed(client, USER))[0] == "42"
    elif api == "messages":
        client = session.anthropic()
        reply = await client.messages.create(model="c", messages=USER, max_tokens=99)
        assert [block.type for block in reply.content] == ["thinking", "text"]
        await client.messages.create(
            model="c", messages=[*USER, {"role": "assistant", "content": reply.content}, *MORE], max_tokens=99
        )
    else:
        client = session.openai()
        reply = await client.responses.create(model="m", input=list(USER))
        assert [item.type for item in reply.output] == ["reasoning", "message"]
        await client.responses.create(model="m", input=[*USER, *reply.output, *MORE])
    assert session.goes_on() and "<think>hm</think>42" in session.text() and session.calls[1].began == ""


async def test_thinking_that_the_agent_takes_out_begins_another_context(served: Running) -> None:
    session = await served.session(says=answers("<think>hm</think>42", "yes"))
    client = session.openai()
    assert (await chat(client, USER)).choices[0].message.content == "<think>hm</think>42"
    await chat(client, [*USER, {"role": "assistant", "content": "42"}, *MORE])
    assert not session.goes_on() and session.calls[1].began == "the agent left out a part of an answer"


async def test_repeated_requests_join_one_call_in_flight(served: Running) -> None:
    """Twice at once, once given up, once by a client that times out and asks again."""
    session = await served.session()
    session.asleep = True
    client = session.openai()
    tasks = [asyncio.create_task(chat(client, USER)) for _ in range(3)]
    while not session.calls:
        await asyncio.sleep(0.01)
    tasks.pop().cancel()
    with pytest.raises(openai.APITimeoutError):
        await chat(session.openai(timeout=0.2), USER)
    impatient = asyncio.create_task(chat(session.openai(timeout=0.5, max_retries=9), USER))
    await asyncio.sleep(0.8)
    session.wake()
    replies = [await task for task in (*tasks, impatient)]
    assert len(session.calls) == 1
    assert {(reply.id, reply.choices[0].message.content) for reply in replies} == {(replies[0].id, "answer 0")}
    late = await chat(client, USER)
    assert late.id == replies[0].id and len(session.calls) == 1


async def test_an_answer_that_nobody_waited_for_is_remembered_when_it_is_asked_again(served: Running) -> None:
    session = await served.session(says=answers(turn_of([160, 258]), "more"))
    session.asleep = True
    with pytest.raises(openai.APITimeoutError):
        await chat(session.openai(timeout=0.3), USER)
    session.wake()
    reply = await chat(session.openai(), USER)
    await chat(session.openai(), [*USER, sent_back(reply), *MORE])
    assert session.goes_on()


async def test_several_answers_to_one_history_differ_by_seed(served: Running) -> None:
    session = await served.session()
    client = session.openai()
    found = [(await chat(client, USER, seed=seed)).choices[0].message.content for seed in (1, 2, 1)]
    assert found == ["answer 0", "answer 1", "answer 0"]
    anthropic = session.anthropic()
    for seed in (3, 4, 3):
        await anthropic.messages.create(model="c", messages=USER, max_tokens=2048, extra_body={"seed": seed})
    assert len(session.calls) == 4


async def test_one_question_by_any_api_is_one_call(served: Running) -> None:
    session = await served.session()
    client = session.openai()
    await chat(client, USER, max_tokens=50)
    await client.responses.create(model="m", input="17+25?", max_output_tokens=50)
    await session.anthropic().messages.create(model="c", messages=USER, max_tokens=50)
    assert len(session.calls) == 1


async def test_parallel_calls_of_a_session_are_answered_in_any_order(served: Running) -> None:
    session = await served.session(says=lambda call: served.tokenizer.show(call.context_ids)[17:19])
    session.asleep = True
    client = session.openai()
    tasks = [asyncio.create_task(chat(client, [{"role": "user", "content": f"{n:02}"}])) for n in range(20)]
    while len(session.calls) < 20:
        await asyncio.sleep(0.01)
    session.calls.reverse()
    session.wake()
    found = [(await task).choices[0].message.content for task in tasks]
    assert found == [f"{n:02}" for n in range(20)]


async def test_a_new_endpoint_goes_on_from_what_was_recorded(served: Running, folder: str) -> None:
    """Recorded answers, and contexts that go on from them, for an agent that never asks twice."""
    session = await served.session(says=answers(CALL, turn_of([160, 258])))
    client = session.openai()
    first = await chat(client, USER, tools=TOOLS)
    result = {"role": "tool", "tool_call_id": "x", "content": "42"}
    history = [*USER, sent_back(first), result]
    second = await chat(client, history, tools=TOOLS)
    async with running(EndpointSettings(folder, SAMPLING, 2048, limits=LIMITS, patience_seconds=5)) as other:
        early = asyncio.create_task(other.keep(openai.AsyncOpenAI(
            base_url=f"{other.endpoint.address}/v1", api_key=session.key, max_retries=0, timeout=20
        )).chat.completions.create(model="m", messages=[*history, sent_back(second), *MORE], tools=TOOLS))  # fmt: skip
        await asyncio.sleep(0.2)
        again = await other.session(session.key, session.answered)
        assert (await early).choices[0].message.content == "answer 2"
        before = [*session.calls[1].context_ids, *session.turns[1].token_ids]
        assert again.calls[0].context_ids[: len(before)].tolist() == before and again.calls[0].number == 2
        repeated = await chat(again.openai(), USER, tools=TOOLS)
        assert repeated.choices[0].message == first.choices[0].message and repeated.id == first.id
        assert len(again.calls) == 1


async def test_keys_are_unknown_foreign_or_ended(served: Running) -> None:
    one, other = await served.session(says=lambda _: "one"), await served.session(says=lambda _: "other")
    assert (await chat(one.openai(), USER)).choices[0].message.content == "one"
    assert (await chat(other.openai(), USER)).choices[0].message.content == "other"
    one.key = "guessed"
    with pytest.raises(openai.AuthenticationError) as refused:
        await chat(one.openai(), USER)
    assert refused.value.code == "invalid_api_key" and "guessed" not in str(refused.value)
    with pytest.raises(anthropic.AuthenticationError) as refused:
        await one.anthropic().messages.create(model="c", messages=USER, max_tokens=5)
    assert refused.value.body["error"]["type"] == "authentication_error"
    served.endpoint.sessions.end(other.name)
    for _ in range(2):
        with pytest.raises(openai.PermissionDeniedError, match="has ended"):
            await chat(other.openai(max_retries=5), USER)
    with pytest.raises(anthropic.PermissionDeniedError, match="has ended"):
        await other.anthropic().messages.create(model="c", messages=USER, max_tokens=5)


async def test_whoever_waits_when_a_session_ends_is_told_so(served: Running) -> None:
    session = await served.session()
    session.asleep = True
    client = session.openai(max_retries=5)
    tasks = [asyncio.create_task(chat(client, USER)), asyncio.create_task(streamed(client, MORE))]
    while len(session.calls) < 2:
        await asyncio.sleep(0.01)
    served.endpoint.sessions.end(session.name)
    for task in tasks:
        with pytest.raises(openai.PermissionDeniedError, match="has ended"):
            await task


async def test_refusals_are_errors_that_are_not_asked_again(served: Running) -> None:
    limits = {"tokens": Refusal("tokens", "no room"), "turns": Refusal("turns", "sampling.max_turns=2")}
    session = await served.session(
        says=lambda call: limits[served.tokenizer.show(call.context_ids).split()[1][:6].strip("<|im")]
    )
    client = session.openai(max_retries=5)
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError) as refused:
            await chat(client, [{"role": "user", "content": "tokens"}], stream=stream)
        assert refused.value.code == "context_length_exceeded"
        with pytest.raises(openai.PermissionDeniedError, match=r"sampling\.max_turns=2"):
            await chat(client, [{"role": "user", "content": "turns"}], stream=stream)
    assert len(session.calls) == 2


async def test_a_history_that_is_too_long_is_told_as_agents_know_it(served: Running) -> None:
    session = await served.session()
    long = [{"role": "user", "content": "x" * 3000}]
    with pytest.raises(openai.BadRequestError, match="maximum context length is 2048") as refused:
        await chat(session.openai(), long)
    assert refused.value.code == "context_length_exceeded"
    with pytest.raises(anthropic.BadRequestError, match="maximum context length"):
        await session.anthropic().messages.create(model="c", messages=long, max_tokens=5)
    with pytest.raises(openai.BadRequestError, match="51 messages"):
        await chat(session.openai(), USER * 51)
    with pytest.raises(openai.APIStatusError) as refused:
        await chat(session.openai(), [{"role": "user", "content": "x" * 300_000}])
    assert refused.value.status_code == 413 and not session.calls


async def test_what_would_change_the_distribution_is_refused_in_the_apis_own_shape(served: Running) -> None:
    session = await served.session()
    with pytest.raises(openai.BadRequestError, match=r"temperature=0\.2") as refused:
        await chat(session.openai(), USER, temperature=0.2)
    assert (refused.value.param, refused.value.type) == ("temperature", "invalid_request_error")
    with pytest.raises(anthropic.BadRequestError, match=r"temperature=0\.2") as refused:
        await session.anthropic().messages.create(
            model="c", messages=USER, max_tokens=5, extra_body={"temperature": 0.2}
        )
    assert refused.value.body["error"]["type"] == "invalid_request_error"
    with pytest.raises(openai.BadRequestError, match="n=3"):
        await chat(session.openai(), USER, n=3)
    assert not session.calls
    await chat(session.openai(), USER, temperature=1.0, top_p=1, user="me", extra_body={"of_next_year": [1]})


async def test_or_is_decided_by_the_run_with_a_note(thinking: Running) -> None:
    session = await thinking.session()
    raw = await session.openai().chat.completions.with_raw_response.create(
        model="m", messages=USER, tools=TOOLS, temperature=0.2, top_p=0.5, tool_choice="required"
    )
    assert raw.headers["x-lpo-ray-overridden"] == "temperature, top_p, tool_choice"
    with pytest.raises(openai.BadRequestError):
        await chat(session.openai(), USER, n=2)


PICTURE = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://127.0.0.1:1/x.png"}}]}]
WRONG = [
    [], [{"role": "user"}], [{"content": "x"}], ["x"], [{"role": "user", "content": 5}], PICTURE,
    [{"role": "user", "content": [{"text": "x"}]}], [{"role": 3, "content": "x"}], "x", {"role": "user"},
    [{"role": "assistant", "tool_calls": [{"function": 5}]}], [{"role": "assistant", "tool_calls": "x"}],
    [{"role": "tool", "content": [{"type": "tool_reference", "name": "x"}]}],
]  # fmt: skip


@pytest.mark.parametrize("messages", WRONG)
async def test_messages_that_are_none_are_the_agents_fault(served: Running, messages: Any) -> None:
    session = await served.session()
    async with httpx.AsyncClient(base_url=served.endpoint.address, timeout=30) as client:
        for path, field in (
            ("/v1/chat/completions", "messages"),
            ("/v1/messages", "messages"),
            ("/v1/responses", "input"),
        ):
            reply = await client.post(
                path, json={field: messages, "max_tokens": 5, "model": "m"}, headers={"x-api-key": session.key}
            )
            if reply.status_code != 200:
                assert reply.status_code == 400 and reply.json()["error"]["message"]
    assert (await chat(session.openai(), USER)).choices


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", 404), ("POST", "/tokenize", 404), ("POST", "/detokenize", 404), ("GET", "/metrics", 404),
        ("GET", "/health", 404), ("POST", "/sleep", 404), ("POST", "/v1/load_lora_adapter", 404), ("GET", "/docs", 404),
        ("GET", "/openapi.json", 404), ("POST", "/invocations", 404), ("POST", "/v1/chat/completions/batch", 404),
        ("POST", "/v1/chat/completions/render", 404), ("POST", "/v1/embeddings", 404), ("POST", "/pause", 404),
        ("GET", "/v1/responses/resp_1", 404), ("POST", "/collective_rpc", 404), ("GET", "/server_info", 404),
        ("GET", "/v1/chat/completions", 405), ("DELETE", "/v1/messages", 405), ("POST", "/v1/models", 405),
        ("GET", "/v1/models", 200), ("GET", "//v1/models", 404), ("GET", "/v1/models/", 404),
    ],
)  # fmt: skip
async def test_only_the_apis_routes_are_open(served: Running, method: str, path: str, status: int) -> None:
    session = await served.session()
    async with httpx.AsyncClient(base_url=served.endpoint.address, timeout=30) as client:
        headers = {"Authorization": f"Bearer {session.key}"}
        request = client.build_request(method, path, headers=headers)
        request.url = request.url.copy_with(raw_path=path.encode())
        assert (await client.send(request)).status_code == status
        assert (await client.request(method, path)).status_code in (401, 404, 405)


async def test_headers_do_not_steer_the_server(served: Running) -> None:
    session = await served.session()
    headers = {
        "x-api-key": session.key, "X-Request-Id": "mine", "X-Session-ID": "x", "X-Vllm-Priority": "zz",
        "X-data-parallel-rank": "7", "traceparent": "00-1-1-1", "content-type": "text/plain",
        "endpoint-load-metrics-format": "JSON",
    }  # fmt: skip
    async with httpx.AsyncClient(base_url=served.endpoint.address, timeout=30) as client:
        reply = await client.post("/v1/chat/completions", content=json.dumps({"messages": USER}), headers=headers)
    assert reply.status_code == 200 and "mine" not in reply.text
    assert "endpoint-load-metrics" not in reply.headers


async def test_curl_asks_as_well(served: Running) -> None:
    session = await served.session(says=lambda _: "42")
    url, body = served.endpoint.address, json.dumps({"model": "m", "messages": USER})
    process = await asyncio.create_subprocess_exec(
        "curl", "-sS", "-i", f"{url}/v1/chat/completions", "-H", f"Authorization: Bearer {session.key}", "-d", body,
        stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, _ = await process.communicate()
    assert b"x-lpo-ray-weights: 12" in out and b'"content":"42"' in out


async def test_a_503_is_asked_again_and_answered(folder: str) -> None:
    async with running(EndpointSettings(folder, SAMPLING, 2048, limits=LIMITS, patience_seconds=2.0)) as other:
        client = other.keep(openai.AsyncOpenAI(base_url=f"{other.endpoint.address}/v1", api_key="late", timeout=20))
        early = asyncio.create_task(client.chat.completions.create(model="m", messages=USER))
        await asyncio.sleep(2.3)
        await other.session("late")
        assert (await early).choices[0].message.content == "answer 0"


async def test_the_rate_of_a_session_is_limited_and_clients_wait(folder: str) -> None:
    limits = SessionLimits(requests_a_second=1.0)
    async with running(EndpointSettings(folder, SAMPLING, 2048, limits=limits, patience_seconds=0)) as other:
        session = await other.session()
        client = session.openai()
        found = await asyncio.gather(*(chat(client, USER) for _ in range(8)), return_exceptions=True)
        refused = [each for each in found if isinstance(each, openai.RateLimitError)]
        assert len(refused) == 3 and int(refused[0].response.headers["retry-after"]) >= 1
        assert (await chat(session.openai(max_retries=3), USER)).choices


async def test_what_was_sampled_is_what_is_kept(served: Running) -> None:
    """Over a long conversation: every sampled token stands in the last context once, in order."""
    rng = np.random.default_rng(0)
    session = await served.session(
        says=lambda _: turn_of([*rng.integers(0, 256, size=10).tolist(), *([258] if rng.random() < 0.5 else [])])
    )
    client, messages = session.openai(), list(USER)
    for _ in range(12):
        messages = [*messages, sent_back(await chat(client, messages)), *MORE]
    last, at = session.calls[-1].context_ids.tolist(), 0
    for number in range(11):
        ids = session.turns[number].token_ids.tolist()
        start = len(session.calls[number].context_ids)
        assert start >= at and last[start : start + len(ids)] == ids
        at = start + len(ids)


async def test_an_agent_waits_while_its_endpoint_is_replaced(folder: str) -> None:
    """No connection is refused in between, and a client that asks again once gets what was drawn meanwhile."""
    doorway = Doorway("127.0.0.1")
    made = EndpointSettings(folder, SAMPLING, 2048, limits=LIMITS, port=doorway.port, doorway=doorway.path)
    async with running(made) as first:
        session = await first.session("key-of-session-x")
        session.asleep = True
        client = openai.AsyncOpenAI(
            base_url=f"{first.endpoint.address}/v1", api_key=session.key, max_retries=1, timeout=120
        )  # it outlives this endpoint
        assert str(doorway.port) in first.endpoint.address
        under_way = asyncio.create_task(chat(client, USER))
        while not session.calls:
            await asyncio.sleep(0.01)
        for connection in list(first.endpoint._server.server_state.connections):
            connection.transport.abort()  # as when its process dies
        first.endpoint._server.should_exit = True
        await asyncio.sleep(0.5)
    late = asyncio.create_task(chat(client, MORE))
    await asyncio.sleep(0.5)
    async with running(made) as second:
        again = await second.session("key-of-session-x")
        assert {(await task).choices[0].message.content for task in (under_way, late)} == {"answer 0", "answer 1"}
        assert len(again.calls) == 2
        await client.close()
    doorway.close()
