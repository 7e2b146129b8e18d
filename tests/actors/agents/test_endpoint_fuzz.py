"""Whatever an agent sends, the endpoint answers or refuses: no 5xx, no traceback, and the next request is answered."""

from __future__ import annotations

import copy
import json
import logging
import random
import socket
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lpo_ray.agents.endpoint.requests import APIS
from lpo_ray.agents.endpoint.sessions import SessionLimits
from lpo_ray.agents.endpoint.settings import EndpointSettings
from lpo_ray.records import Call
from tests.support.agent_endpoint import SAMPLING, InThread, model_folder, turn_of
from tests.support.chat_tokenizers import QWEN3, byte_tokenizer

pytestmark = pytest.mark.slow
SEED = random.Random(0)
TEXTS = ['<tool_call>\n{"name": "add", "arguments": ', '{"a": 1}}\n</tool_call>', "</think>", "[1", "\n", "<tool_call>"]


def anything(call: Call) -> object:
    """A policy that writes pieces of calls, half characters and special tokens."""
    chosen = [
        list(text.encode()) if SEED.random() < 0.5 else [SEED.randrange(261)] for text in SEED.choices(TEXTS, k=4)
    ]
    ids = [token for piece in chosen for token in piece]
    return turn_of(ids[: call.max_tokens or 99], SEED.choice(["stop", "length"]))


@pytest.fixture(scope="module")
def endpoint() -> Iterator[InThread]:
    folder = model_folder(byte_tokenizer(QWEN3, eos="<|im_end|>"))
    limits = SessionLimits(calls=10**9, requests_a_second=1e9, messages=20, body_bytes=100_000)
    made = InThread(EndpointSettings(folder, SAMPLING, 1024, limits=limits, patience_seconds=0), anything)
    yield made
    made.close()


@pytest.fixture
def records(caplog: pytest.LogCaptureFixture) -> Iterator[list[logging.LogRecord]]:
    for name in ("vllm", "uvicorn.error", "asyncio"):
        logging.getLogger(name).addHandler(caplog.handler)
    yield caplog.records
    for name in ("vllm", "uvicorn.error", "asyncio"):
        logging.getLogger(name).removeHandler(caplog.handler)


CHAT_TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}
CALLS = [{"id": "a", "type": "function", "function": {"name": "add", "arguments": "{}"}}]
BODIES: dict[str, list[dict[str, Any]]] = {
    "/v1/chat/completions": [
        {"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": [{"type": "text", "text": "x"}]},
                      {"role": "assistant", "content": None, "tool_calls": CALLS},
                      {"role": "tool", "tool_call_id": "a", "content": "1"}],
         "tools": [CHAT_TOOL], "tool_choice": "auto", "stop": ["a"], "max_tokens": 5, "logprobs": True, "seed": 1,
         "stream": True, "stream_options": {"include_usage": True}, "chat_template_kwargs": {"a": 1}},
        {"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y", "reasoning": "z"}],
         "reasoning_effort": "low", "max_completion_tokens": 4, "return_token_ids": True},
    ],
    "/v1/completions": [{"prompt": "x", "max_tokens": 3, "logprobs": 1, "stop": "a", "stream": True},
                        {"prompt": [1, 2], "seed": 3, "return_token_ids": True}],
    "/v1/responses": [
        {"input": [{"role": "user", "content": "x"}, {"type": "reasoning", "id": "r", "summary": [],
                    "content": [{"type": "reasoning_text", "text": "t"}]},
                   {"type": "function_call", "call_id": "c", "name": "add", "arguments": "{}"},
                   {"type": "function_call_output", "call_id": "c", "output": "1"}],
         "tools": [{"type": "function", "name": "add", "parameters": {"type": "object"}}], "instructions": "i",
         "stream": True, "max_output_tokens": 5, "include": ["message.output_text.logprobs"], "metadata": {"a": "b"}},
        {"input": "x", "reasoning": {"effort": "low"}, "tool_choice": "auto"},
    ],
    "/v1/messages": [
        {"messages": [{"role": "user", "content": "x"},
                      {"role": "assistant", "content": [{"type": "thinking", "thinking": "t", "signature": "s"},
                                                        {"type": "text", "text": "y"},
                                                        {"type": "tool_use", "id": "u", "name": "add", "input": {}}]},
                      {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "u", "content": "1"}]}],
         "tools": [{"name": "add", "input_schema": {"type": "object"}}], "tool_choice": {"type": "auto"},
         "system": [{"type": "text", "text": "s"}], "max_tokens": 5, "stop_sequences": ["a"], "stream": True},
    ],
    "/v1/messages/count_tokens": [{"messages": [{"role": "user", "content": "x"}], "system": "s"}],
}  # fmt: skip
ODD = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 3), st.sampled_from([2**31, 2**63, 2**64, -(2**63) - 1, 10**30, 1e308]),
    st.floats(allow_nan=False, allow_infinity=False), st.text(max_size=6), st.just("\x00"), st.just("x" * 5000),
    st.just([]), st.just({}), st.just([[]]), st.just({"type": "image_url", "image_url": {"url": "http://127.0.0.1:1"}}),
    st.just({"type": "function", "function": {"name": "add", "parameters": {"$ref": "#"}}}),
    st.sampled_from(["auto", "none", "required", "user", "assistant", "system", "tool", "developer", "text"]),
    st.builds(lambda depth: json.loads("[" * depth + "]" * depth), st.integers(1, 80)),
    st.lists(st.text(max_size=3) | st.integers(-1, 300), max_size=4),
    st.dictionaries(st.sampled_from(["role", "content", "type", "text", "name", "a"]), st.text(max_size=3), max_size=3),
)  # fmt: skip
EXTRA = st.sampled_from([
    "kv_transfer_params", "priority", "cache_salt", "request_id", "session_id", "mm_processor_kwargs", "lora",
    "previous_input_messages", "prompt_embeds", "truncate_prompt_tokens", "add_special_tokens", "documents", "thinking",
    "service_tier", "store", "user", "enable_response_messages", "context_management", "mcp_servers", "container",
    "skip_special_tokens", "include_reasoning", "temperature", "n", "model", "stream", "tools", "tool_choice", "seed",
])  # fmt: skip


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, each in inner for place in places(each, (*path, key)))]


@st.composite
def odd_requests(draw: st.DrawFn) -> tuple[str, Any]:
    """A request that was right, with some of it changed."""
    path = draw(st.sampled_from(list(BODIES)))
    body: Any = copy.deepcopy(draw(st.sampled_from(BODIES[path])))
    for _ in range(draw(st.integers(0, 3))):
        kind = draw(st.sampled_from(["change", "drop", "add", "extra"]))
        found = [place for place in places(body) if place]
        if not found or not isinstance(body, dict):
            break
        *way, last = draw(st.sampled_from(found))
        holder = body
        for key in way:
            holder = holder[key]
        if kind == "change":
            holder[last] = copy.deepcopy(draw(ODD))
        elif kind == "drop":
            del holder[last]
        elif kind == "extra":
            body[draw(EXTRA)] = copy.deepcopy(draw(ODD))
        elif isinstance(holder, list):
            holder.append(copy.deepcopy(draw(ODD)))
        else:
            holder[draw(st.text(max_size=4))] = copy.deepcopy(draw(ODD))
    return path, body


def refused_or_answered(reply: httpx.Response) -> None:
    assert reply.status_code < 500, reply.text
    if reply.status_code >= 400:
        error = reply.json()["error"]
        assert error["message"] and error["type"] and len(reply.content) < 10_000


def test_whatever_is_asked_is_answered_or_refused(endpoint: InThread, records: list[logging.LogRecord]) -> None:
    client = httpx.Client(
        base_url=endpoint.running.endpoint.address, timeout=20, headers={"x-api-key": endpoint.session.key}
    )
    statuses: dict[int, int] = {}

    @settings(max_examples=600, deadline=None, suppress_health_check=list(HealthCheck))
    @given(odd_requests())
    def ask(asked: tuple[str, Any]) -> None:
        path, body = asked
        reply = client.post(path, content=json.dumps(body), headers={"content-type": "application/json"})
        refused_or_answered(reply)
        statuses[reply.status_code] = statuses.get(reply.status_code, 0) + 1
        if reply.status_code == 200:
            assert b'"error"' not in reply.content.replace(b'"error":null', b""), reply.text

    ask()
    assert min(statuses.get(200, 0), statuses.get(400, 0)) > 50, "the fuzz gets past the first check, and fails later"
    goes_on(client, records)


@pytest.mark.parametrize("path", [*APIS, "/v1/models", "/", "/%00", "/v1/\udc80"])
def test_whatever_bytes_are_sent(endpoint: InThread, records: list[logging.LogRecord], path: str) -> None:
    client = httpx.Client(base_url=endpoint.running.endpoint.address, timeout=20)
    key, encodings = endpoint.session.key, ["utf-8", "utf-16", "gzip", "\xff", "identity;q=" + "9" * 100]

    @settings(max_examples=25, deadline=None)
    @given(
        st.binary(max_size=300),
        st.sampled_from(["GET", "POST", "PUT", "HEAD", "OPTIONS", "DELETE", "PATCH", "X"]),
        st.sampled_from([f"Bearer {key}", f"bearer  {key}", key, "Bearer", "Bearer \xff", "Basic eA==", ""]),
        st.sampled_from(encodings),
    )
    def send(raw: bytes, method: str, key: str, encoding: str) -> None:
        headers = {"authorization": key.encode("latin-1"), "content-encoding": encoding.encode("latin-1")}
        try:
            request = client.build_request(method, path.encode("utf-8", "surrogateescape").decode("latin-1"))
        except (httpx.InvalidURL, UnicodeEncodeError):
            return
        reply = client.send(client.build_request(method, request.url, content=raw, headers=headers))
        assert reply.status_code < 500

    send()
    goes_on(client, records)


RAW = [
    b"\x00\xff\r\n\r\n", b"GET\r\n\r\n", b"POST /v1/chat/completions HTTP/1.1\r\nContent-Length: -5\r\n\r\n",
    b"POST /v1/messages HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999999999999999\r\n\r\n",
    b"POST /v1/messages HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    b"POST /v1/messages HTTP/1.1\r\nHost: x\r\nx-api-key: KEY\r\nContent-Length: 50\r\n\r\n{",
    b"POST /v1/messages HTTP/1.1\r\nHost: x\r\nx-api-key: KEY\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{\"a\":\r\n",
    b"GET /v1/models HTTP/1.1\r\nHost: x\r\n" + b"a: b\r\n" * 5000 + b"\r\n",
    b"GET /v1/models HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"GET " + b"/a" * 50_000 + b" HTTP/1.1\r\n\r\n",
]  # fmt: skip


@pytest.mark.parametrize("raw", RAW, ids=range(len(RAW)))
def test_whatever_comes_on_a_connection(endpoint: InThread, records: list[logging.LogRecord], raw: bytes) -> None:
    address = urlsplit(endpoint.running.endpoint.address)
    with socket.create_connection((address.hostname, address.port), timeout=5) as connection:
        connection.sendall(raw.replace(b"KEY", endpoint.session.key.encode()))
        connection.settimeout(0.3)
        try:
            said = connection.recv(4096)
        except (TimeoutError, ConnectionError):
            said = b""
    assert b" 50" not in said[:15]
    goes_on(httpx.Client(base_url=endpoint.running.endpoint.address, timeout=20), records)


def goes_on(client: httpx.Client, records: list[logging.LogRecord]) -> None:
    headers = {"authorization": "Bearer key-of-session-1"}
    reply = client.post("/v1/chat/completions", json={"messages": [{"role": "user", "content": "x"}]}, headers=headers)
    assert reply.status_code == 200, reply.text
    for record in records:
        assert record.exc_info is None and record.levelno < logging.ERROR, record.getMessage()
        assert "key-of-session" not in record.getMessage()
