"""Environments behind a server with reset and step, as OpenEnv has them: a user writes a subclass of OpenEnv."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Any

from lpo_ray.agents.environment import Environment, Message, Step, Unavailable

SECONDS = 60.0
"""that a request may take; environment.turn_seconds ends it sooner"""
OF_THE_ACTION = (400, 422)
"""answers that refuse the action; any other status is the server's trouble: it is busy, moved, or wants a key"""
CLOSE_SECONDS = 1.0
"""that a server has to end a session"""
OF_SERVER = ("CAPACITY_REACHED", "FACTORY_ERROR", "SESSION_ERROR")
"""codes of errors that are no affair of the action"""


class OpenEnv(Environment):
    """Environment of a server. ``ws://`` has a session for each conversation, as OpenEnv's clients do; ``http://``
    names it in each request as ``episode_id``, for servers that keep it: those of OpenEnv itself begin anew with each.
    The verdict is the sum of the rewards, where there were any.
    """

    url: str = "ws://127.0.0.1:8000/ws"

    def __init__(self) -> None:
        self._socket: Any = None
        self._total: float | None = None

    def action(self, text: str) -> dict[str, Any]:
        """Return the action that a reply stands for, as the server's schema has it."""
        return {"message": text}

    def said(self, observation: Mapping[str, Any]) -> str:
        """Return what the policy is told of an observation."""
        texts = [value for value in observation.values() if isinstance(value, str)]
        return texts[0] if len(texts) == 1 else json.dumps(dict(observation))

    async def reset(self, row: Mapping[str, Any]) -> list[Message]:
        """Begin an episode; its observation follows the row's prompt where there is one."""
        self._episode = f"{self.seed:x}"
        found = await self._asked("reset", {"seed": self.seed % 2**31, "episode_id": self._episode})
        prompt = row.get("prompt") if isinstance(row.get("prompt"), str) else ""
        return [{"role": "user", "content": f"{prompt}{self.said(found['observation'])}"}]

    async def step(self, reply: Message) -> Step:
        """Send the action."""
        found = await self._asked("step", self.action(reply["content"]))
        if found.get("reward") is not None:
            self._total = (self._total or 0.0) + float(found["reward"])
        if found.get("done"):
            return Step(verdict=self._total, done=True)
        return Step([{"role": "user", "content": self.said(found["observation"])}], self._total)

    async def close(self) -> None:
        """End the session, as OpenEnv's clients do: a server that is not told of it logs an error."""
        if self._socket is None:
            return
        from websockets.exceptions import WebSocketException

        with contextlib.suppress(WebSocketException, TimeoutError):
            await self._socket.send(json.dumps({"type": "close"}))
            await asyncio.wait_for(self._socket.wait_closed(), CLOSE_SECONDS)
        await self._socket.close()

    async def _asked(self, what: str, data: dict[str, Any]) -> dict[str, Any]:
        """Make one request. Raises Unavailable when the server cannot be asked."""
        try:
            if self.url.startswith("ws"):
                return await self._by_session({"type": what, "data": data})
            body = data if what == "reset" else {"action": data, "episode_id": self._episode}
            return await asyncio.to_thread(_posted, f"{self.url.rstrip('/')}/{what}", body)
        except (OSError, http.client.HTTPException, ValueError) as error:  # ValueError: what it says is no JSON
            raise Unavailable(f"{self.url} cannot be asked to {what}: {error}") from error

    async def _by_session(self, request: dict[str, Any]) -> dict[str, Any]:
        from websockets.asyncio.client import connect
        from websockets.exceptions import WebSocketException

        try:
            if self._socket is None:
                self._socket = await connect(self.url, max_size=2**24)
            await self._socket.send(json.dumps(request))
            answer = json.loads(await self._socket.recv())
        except WebSocketException as error:
            raise Unavailable(f"{self.url} ended the session: {error}") from error
        if answer.get("type") == "error":
            data = answer.get("data")
            of_server = isinstance(data, Mapping) and data.get("code") in OF_SERVER
            raise (Unavailable if of_server else RuntimeError)(f"{self.url} answered {str(data)[:300]}")
        return answer["data"]


def _posted(url: str, body: dict[str, Any]) -> dict[str, Any]:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=SECONDS) as answer:
            return json.loads(answer.read(2**24))
    except urllib.error.HTTPError as error:
        if error.code not in OF_THE_ACTION:
            raise
        raise RuntimeError(f"{url} answered {error.code}: {error.read(300)!r}") from error
