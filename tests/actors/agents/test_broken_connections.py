"""Clients that hang up, repeat, pipeline and overfill: the policy is asked once, and others are answered meanwhile."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from urllib.parse import urlsplit

import openai
import pytest

from lpo_ray.agents.endpoint.sessions import SessionLimits
from lpo_ray.agents.endpoint.settings import EndpointSettings
from tests.support.agent_endpoint import SAMPLING, InThread, model_folder
from tests.support.chat_tokenizers import QWEN3, byte_tokenizer

pytestmark = [pytest.mark.slow]
BODY_BYTES = 100_000


@pytest.fixture(scope="module")
def endpoint() -> Iterator[InThread]:
    limits = SessionLimits(calls=500, requests_a_second=10_000, messages=50, body_bytes=BODY_BYTES)
    folder = model_folder(byte_tokenizer(QWEN3, eos="<|im_end|>"))
    made = InThread(
        EndpointSettings(folder, SAMPLING, 2048, limits=limits, patience_seconds=0.0), lambda call: f"is {call.number}"
    )
    yield made
    made.close()


def opened(endpoint: InThread) -> socket.socket:
    address = urlsplit(endpoint.running.endpoint.address)
    return socket.create_connection((address.hostname or "", address.port or 0), timeout=20)


def request(endpoint: InThread, text: str, *more: str, close: bool = True) -> bytes:
    body = json.dumps({"messages": [{"role": "user", "content": text}]}).encode()
    head = [
        "POST /v1/chat/completions HTTP/1.1", "Host: x", f"Authorization: Bearer {endpoint.session.key}",
        f"Content-Length: {len(body)}", *more, *(["Connection: close"] if close else []), "", "",
    ]  # fmt: skip
    return "\r\n".join(head).encode() + body


def all_of(connection: socket.socket) -> bytes:
    """Read until it is closed."""
    found = b""
    while more := connection.recv(65536):
        found += more
    return found


def asked(endpoint: InThread, text: str) -> int:
    """How often the policy was asked."""
    return sum(f"\n{text}<" in endpoint.running.tokenizer.show(c.context_ids) for c in list(endpoint.session.calls))


def still_answers(endpoint: InThread, text: str) -> str:
    client = openai.OpenAI(
        base_url=f"{endpoint.running.endpoint.address}/v1", api_key=endpoint.session.key, timeout=30, max_retries=0
    )
    reply = client.chat.completions.create(model="m", messages=[{"role": "user", "content": text}])
    return reply.choices[0].message.content or ""


def test_who_hangs_up_and_asks_again_gets_what_was_drawn(endpoint: InThread) -> None:
    for how in (socket.SHUT_RDWR, socket.SHUT_WR, None):
        text = f"hang up {how}"
        connection = opened(endpoint)
        connection.sendall(request(endpoint, text))
        if how is not None:
            connection.shutdown(how)
        deadline = time.monotonic() + 10
        while not asked(endpoint, text) and time.monotonic() < deadline and how is None:
            time.sleep(0.01)
        connection.close()
        said = still_answers(endpoint, text)
        assert said == still_answers(endpoint, text)
        assert asked(endpoint, text) == 1


def test_half_a_body_is_no_request(endpoint: InThread) -> None:
    before = len(endpoint.session.calls)
    for size in (1, 100, len(request(endpoint, "half")) - 1):
        with opened(endpoint) as connection:
            connection.sendall(request(endpoint, "half")[:size])
            connection.shutdown(socket.SHUT_WR)
            assert b" 200 " not in all_of(connection)
    assert len(endpoint.session.calls) == before
    assert still_answers(endpoint, "whole")


def test_requests_one_behind_the_other_are_answered_in_order(endpoint: InThread) -> None:
    texts = ["first", "second", "first"]
    with opened(endpoint) as connection:
        pipelined = [request(endpoint, text, close=number == 2) for number, text in enumerate(texts)]
        connection.sendall(b"".join(pipelined))
        found = all_of(connection).split(b"HTTP/1.1 ")[1:]
    assert [each[:3] for each in found] == [b"200"] * 3
    said = [json.loads(each.partition(b"\r\n\r\n")[2])["choices"][0]["message"]["content"] for each in found]
    assert said[0] == said[2] != said[1]
    assert asked(endpoint, "first") == asked(endpoint, "second") == 1


@pytest.mark.parametrize("announced", [True, False])
def test_a_body_that_is_too_long_is_refused_before_it_is_read(endpoint: InThread, announced: bool) -> None:
    how = f"Content-Length: {10**9}" if announced else "Transfer-Encoding: chunked"
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {endpoint.session.key}\r\n"
        f"{how}\r\nConnection: close\r\n\r\n"
    )
    with opened(endpoint) as connection:
        connection.sendall(head.encode())
        piece = b" " * 20_000
        if not announced:
            for _ in range(BODY_BYTES // len(piece) + 1):
                connection.sendall(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
        assert connection.recv(12) == b"HTTP/1.1 413"


@pytest.mark.parametrize("more", ["Transfer-Encoding: chunked", "Content-Length: 3"])
def test_a_body_of_two_lengths_is_no_way_to_hide_a_request(endpoint: InThread, more: str) -> None:
    before = len(endpoint.session.calls)
    with opened(endpoint) as connection:
        connection.sendall(request(endpoint, "hidden", more))
        assert b" 200 " not in all_of(connection)
    assert len(endpoint.session.calls) == before


def test_many_idle_connections_and_long_heads_keep_nobody_out(endpoint: InThread) -> None:
    idle = [opened(endpoint) for _ in range(200)]
    try:
        for connection in idle[:100]:
            connection.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nX: ")
        idle[0].sendall(b"y" * 1_000_000)
        assert still_answers(endpoint, "beside them")
    finally:
        for connection in idle:
            connection.close()
    assert still_answers(endpoint, "after them")
