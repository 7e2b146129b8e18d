"""The gate before the server: who may pass, with which body, and in which shape an error leaves.

It lets through the routes of an allow-list, knows a session by the key, limits bodies and their rate, and hands on only
the fields and headers that the server needs. A reply leaves when it is known what it is: the head of a stream waits for
the policy's answer, so that an error is a status that clients understand, and the versions of weights are a header.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any

from actors.agents.exchange import EXCHANGE, Exchange
from lpo_ray.agents.endpoint.api_errors import ApiError, Dialect, unknown_key
from lpo_ray.agents.endpoint.requests import APIS, CHAT, COMPLETIONS, RESPONSES, Body, Rules, read, screen
from lpo_ray.agents.endpoint.sessions import Session, SessionLimits, Sessions

log = logging.getLogger("lpo_ray.worker")

MODELS = "/v1/models"
BODY_SECONDS = 60.0
"""that a client may take to send a body"""
NO_MATTER = ("stream", "stream_options", "logprobs", "include", "return_token_ids")
"""fields that do not make another reply"""
Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


class Gate:
    """ASGI application before the server's own."""

    def __init__(
        self, app: App, sessions: Sessions, rules: Rules, limits: SessionLimits, patience: float = 0.0
    ) -> None:
        """``patience``: seconds from now on for which a key that no session has waits for one."""
        self._app, self._sessions, self._rules, self._limits = app, sessions, rules, limits
        self._patience, self._began = patience, time.monotonic()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 1008})
            return
        path = scope["path"]
        anthropic = path.startswith("/v1/messages") or bool(_header(scope, b"anthropic-version"))
        dialect: Dialect = "anthropic" if anthropic else "openai"
        try:
            exchange, name, body = await self._admitted(path, scope, receive)
        except ApiError as error:
            await _send_error(send, error, dialect)
            return
        reply = _HeldReply(send, exchange, dialect)
        if exchange is not None:
            EXCHANGE.set(exchange)
        try:
            await self._app(_bare(scope, name, body), _again(body, receive), reply.send)
        except Exception as error:  # noqa: BLE001 - whatever the server raises, it goes on
            reply.failed(error)
        await reply.close()

    async def _admitted(self, path: str, scope: Scope, receive: Receive) -> tuple[Exchange | None, str, bytes]:
        """Let a request in, or raise ApiError. Returns exchange, name of the reply, body for the server;
        no exchange for one that asks nothing of the policy.
        """
        method = scope["method"]
        if path not in APIS and path != MODELS:
            raise ApiError(404, f"there is no {path[:80]} here; expected one of {', '.join((*APIS, MODELS))}")
        if method != ("GET" if path == MODELS else "POST"):
            raise ApiError(405, f"{method} is not allowed for {path}")
        session = await self._session(scope)
        session.admit()
        if path == MODELS:
            return None, "", b""
        api = APIS[path]
        body = read(await _body(scope, receive, self._limits.body_bytes))
        self._check_length(body)
        screened = screen(api, body, self._rules)
        seed = body.get("seed")
        kept, name = screened.body, _name_of(screened.body)
        if api is RESPONSES:
            kept["request_id"] = f"resp_{name}"
        raw = json.dumps(kept, ensure_ascii=False).encode()
        exchange = Exchange(session, api, seed if type(seed) is int else None, screened.overridden)
        return exchange, name, raw

    async def _session(self, scope: Scope) -> Session:
        key = _header(scope, b"x-api-key")
        if not key:
            scheme, _, bearer = _header(scope, b"authorization").partition(" ")
            key = bearer.strip() if scheme.lower() == "bearer" else ""
        if not key:
            raise unknown_key()
        patience = max(0.0, self._began + self._patience - time.monotonic())
        try:
            return await self._sessions.find(key, patience)
        except ApiError as error:
            if patience and error.status == 401:
                raise ApiError(503, "sessions are being opened again; try again", retry_after=1) from None
            raise

    def _check_length(self, body: Body) -> None:
        for name in ("messages", "input"):
            count = len(body[name]) if isinstance(body.get(name), list) else 0
            if count > self._limits.messages:
                reason = f"the request has {count} messages; at most {self._limits.messages} are taken"
                raise ApiError(400, reason, "context_length_exceeded", name)


class _HeldReply:
    """Reply of the server, held back until it is known whether the policy answered."""

    def __init__(self, send: Send, exchange: Exchange | None, dialect: Dialect) -> None:
        self._send, self._exchange = send, exchange
        self._dialect: Dialect = dialect
        self._held: list[Message] = []
        self._is_open = self._is_closed = False
        self._status = 200

    async def send(self, message: Message) -> None:
        """Take a message of the server."""
        if self._is_open:
            await self._send(message)
            return
        if message["type"] == "http.response.start":
            self._status = message["status"]
        self._held.append(message)
        is_last = message["type"] == "http.response.body" and not message.get("more_body")
        if self._status < 400 and not self._failure() and (is_last or self._is_answered(message)):
            await self._open()

    def failed(self, error: Exception) -> None:
        """Take what the server raised. Before the policy was asked it is the request's fault."""
        if self._failure() is not None or self._status >= 400:
            return
        if self._exchange is not None and self._exchange.turn is None:
            self._exchange.error = ApiError(400, f"the request cannot be read: {type(error).__name__}: {error}"[:500])
            return
        log.error("the endpoint failed at a reply: %s", type(error).__name__, exc_info=error)
        self._status = 500

    async def close(self) -> None:
        """Send the error, if there is one."""
        if self._is_open:
            return
        error = self._failure() or _of_server(self._status, self._held)
        if self._exchange is not None and self._exchange.turn is None and error.status >= 500 and error.status != 503:
            error = ApiError(400, error.message, error.code, error.param)
        await _send_error(self._send, error, self._dialect)

    def _failure(self) -> ApiError | None:
        return None if self._exchange is None else self._exchange.error

    def _is_answered(self, message: Message) -> bool:
        if message["type"] != "http.response.body":
            return False
        return self._exchange is None or self._exchange.turn is not None

    async def _open(self) -> None:
        self._is_open = True
        head = self._held[0]
        if self._exchange is not None:
            head["headers"] = [*head.get("headers", ()), *self._exchange.headers()]
        for message in self._held:
            await self._send(message)
        self._held.clear()


def _of_server(status: int, held: Iterable[Message]) -> ApiError:
    """Make of the server's own error one in our shape."""
    raw = b"".join(message.get("body", b"") for message in held if message["type"] == "http.response.body")
    try:
        found = json.loads(raw)["error"]
        message, param = str(found["message"]), found.get("param")
    except (ValueError, KeyError, TypeError):
        message, param = raw[:500].decode(errors="replace") or "the server failed", None
    return ApiError(status if status >= 400 else 500, message[:2000], None, param)


async def _send_error(send: Send, error: ApiError, dialect: Dialect) -> None:
    body = json.dumps(error.body(dialect)).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if error.retry_after is not None:
        headers.append((b"retry-after", str(error.retry_after).encode()))
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def _body(scope: Scope, receive: Receive, most: int) -> bytes:
    """Receive a body. Raises ApiError for one that is too long, too slow, or cut off."""
    too_long = ApiError(413, f"the body has more than {most} bytes, the session's limit", "request_too_large")
    announced = _header(scope, b"content-length")
    if announced.isdecimal() and len(announced) < 20 and int(announced) > most:
        raise too_long
    pieces, size = [], 0
    try:
        async with asyncio.timeout(BODY_SECONDS):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ApiError(400, "the body was cut off")
                pieces.append(message.get("body", b""))
                size += len(pieces[-1])
                if size > most:
                    raise too_long
                if not message.get("more_body"):
                    return b"".join(pieces)
    except TimeoutError:
        raise ApiError(408, f"the body did not arrive within {BODY_SECONDS:g} s") from None


def _again(body: bytes, receive: Receive) -> Receive:
    """Return a ``receive`` that gives a body, and then whatever the client still does."""
    rest = [{"type": "http.request", "body": body, "more_body": False}]

    async def received() -> Message:
        return rest.pop() if rest else await receive()

    return received


def _bare(scope: Scope, name: str, body: bytes) -> Scope:
    """Return a scope with the headers that the server needs, and no other: no key, and nothing that steers it."""
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if scope["path"] in (CHAT.path, COMPLETIONS.path, "/v1/messages"):
        headers.append((b"x-request-id", name.encode()))
    return {**scope, "headers": headers, "query_string": b"", "state": {}}


def _name_of(body: Body) -> str:
    """Name a reply by what was asked: a request that is repeated gets one of the same name."""
    told = {name: value for name, value in body.items() if name not in NO_MATTER}
    return hashlib.blake2b(json.dumps(told, sort_keys=True).encode(), digest_size=12).hexdigest()


def _header(scope: Scope, name: bytes) -> str:
    return next((value.decode("latin-1") for key, value in scope["headers"] if key.lower() == name), "")
