"""The endpoint without training: an engine answers each session as it asks."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import itertools
import logging
from dataclasses import replace

import numpy as np
from typing_extensions import override

from actors.agents.endpoint import Endpoint
from lpo_ray.agents.endpoint.api_errors import ApiError, unknown_key
from lpo_ray.agents.endpoint.sessions import Session, SessionLimits, Sessions
from lpo_ray.agents.endpoint.settings import EndpointSettings
from lpo_ray.errors import GroupLost, LpoRayError
from lpo_ray.interfaces import TurnEngine
from lpo_ray.records import Call, ConversationId, TurnRequest

log = logging.getLogger("lpo_ray.worker")

LIMITS = SessionLimits(calls=10**6, requests_a_second=1000.0, messages=100_000, body_bytes=64 * 2**20)
"""of a session that someone runs for himself"""
MOST_SESSIONS = 1000
"""that are kept; the oldest one ends"""


class OpenSessions(Sessions):
    """Sessions that begin when they are asked for: with the key, or with the key, a stroke and anything."""

    def __init__(self, key: str, limits: SessionLimits) -> None:
        super().__init__(limits)
        self._key, self._count = key, itertools.count()
        self.began: asyncio.Queue[Session] = asyncio.Queue()
        """sessions that nobody conducts yet"""

    @override
    async def find(self, key: str, patience: float = 0.0) -> Session:
        base = key.partition("/")[0]
        if not hmac.compare_digest(base.encode(), self._key.encode()):
            raise unknown_key()
        try:
            return await super().find(key)
        except ApiError:
            while len(self.names) >= MOST_SESSIONS:
                self.end(self.names[0])
            digest = hashlib.blake2b(key.encode(), digest_size=6).hexdigest()
            session = await self.open(ConversationId(f"serve-{digest}", next(self._count), 0), key)
            self.began.put_nowait(session)
            return session


class Standalone:
    """Endpoint and engine as one."""

    def __init__(self, settings: EndpointSettings, engine: TurnEngine, key: str, step: int = 0) -> None:
        """``step``: of the run whose weights the engine has, which answers name as their version."""
        self._settings, self._engine, self._step = replace(settings, limits=LIMITS), engine, step
        self._sessions = OpenSessions(key, LIMITS)
        self._endpoint = Endpoint(self._settings, self._sessions)
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> str:
        """Listen, and return the address."""
        await self._endpoint.start()
        return self._endpoint.address

    async def run(self) -> None:
        """Answer until it is cancelled. Raises what ends an engine for good."""
        async with asyncio.TaskGroup() as conducting:
            while True:
                conducting.create_task(self._conduct(await self._sessions.began.get()))

    async def close(self) -> None:
        """Stop listening."""
        await self._endpoint.close()

    async def _conduct(self, session: Session) -> None:
        async with asyncio.TaskGroup() as answering:
            while True:
                try:
                    call = await session.next()
                except GroupLost:
                    return
                answering.create_task(self._answer(session, call))

    async def _answer(self, session: Session, call: Call) -> None:
        sampling = self._settings.sampling
        room = self._settings.most_tokens - len(call.context_ids)
        most = min(room, sampling.max_tokens, call.max_tokens or room)
        request = TurnRequest(session.name, call.number, call.context_ids, sampling, most, stop=call.stop)
        try:
            turn = await self._engine.turn(request)
            session.answer(call.number, replace(turn, versions=np.full_like(turn.versions, self._step)))
        except LpoRayError as error:
            log.warning("a call was not answered: %s", error)
            session.give_up(call, ApiError(503, "no engine could answer; try again", retry_after=1))
