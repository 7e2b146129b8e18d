"""Endpoint and programs as one (``interfaces.Agents``): sessions outlive their endpoint, and end with their program.

A new endpoint knows no session. Each is opened again on it, under its key and with what it was answered, and its agent
asks again: what was answered it gets, what is in flight it waits for. A call has a number of its own here, so that an
answer never goes to another call that a new endpoint counts alike.
"""

from __future__ import annotations

import asyncio
import itertools
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from typing_extensions import override

from lpo_ray.agents.programs.program import Access, Programs
from lpo_ray.common.redaction import SESSION_KEY, redact
from lpo_ray.errors import GroupLost, Unscored
from lpo_ray.interfaces import Agents
from lpo_ray.records import Answered, Call, ConversationId, Finished, Prompt, Refusal, Turn
from lpo_ray.verdict import Verdict

KEY_BYTES = 24
"""of chance in a key"""


class Endpoint(Protocol):
    """Endpoint of all sessions, which is replaced when it dies. Raises GroupLost for a session that it has not."""

    url: str
    """the same after a replacement"""

    @property
    def generation(self) -> int:
        """Count of its replacements."""
        ...

    def downtime(self) -> float:
        """Seconds in which it could not be asked, so far."""
        ...

    async def open(self, conversation: ConversationId, key: str, recorded: Sequence[Answered]) -> None:
        """Open a session. ``recorded``: what it was answered before, by an endpoint that died."""
        ...

    async def next(self, conversation: ConversationId) -> Call:
        """Wait for the next call that needs tokens."""
        ...

    async def answer(self, conversation: ConversationId, number: int, answer: Turn | Refusal) -> None:
        """Answer a call of the endpoint that is there now; one that dies meanwhile does not matter."""
        ...

    async def end(self, conversation: ConversationId) -> None:
        """End a session. Never raises."""
        ...

    async def ping(self) -> None:
        """Return once it is there, replaced if it has died."""
        ...


@dataclass(slots=True, eq=False)
class _Session:
    key: str = field(default_factory=lambda: SESSION_KEY + secrets.token_urlsafe(KEY_BYTES), repr=False)
    generation: int = -1
    """of the endpoint that it is open on"""
    program: asyncio.Task[Finished] | None = None
    asking: asyncio.Task[Call] | None = None
    calls: dict[int, tuple[int, Call]] = field(default_factory=dict)
    """unanswered ones, by our number -> generation, call as the endpoint has it"""
    recorded: list[Answered] = field(default_factory=list)
    owed: set[bytes] = field(default_factory=set)
    """requests that an endpoint died with, and that were not made again"""
    numbers: itertools.count[int] = field(default_factory=itertools.count)


class JoinedAgents(Agents):
    """Agents of an endpoint and of programs. Lives in one event loop."""

    def __init__(self, endpoint: Endpoint, programs: Programs) -> None:
        self._endpoint, self._programs = endpoint, programs
        self._sessions: dict[ConversationId, _Session] = {}

    @override
    async def open(self, conversation: ConversationId, prompt: Prompt) -> None:
        session = self._sessions[conversation] = _Session()
        await self._programs.begin(conversation, prompt)
        await self._open(conversation, session)
        access = Access(self._endpoint.url, session.key)
        session.program = asyncio.ensure_future(self._programs.run(conversation, access))

    @override
    async def next(self, conversation: ConversationId) -> Call | Finished:
        session = self._sessions[conversation]
        assert session.program is not None
        if session.asking is None:
            session.asking = asyncio.ensure_future(self._next_call(conversation, session))
        await asyncio.wait({session.asking, session.program}, return_when=asyncio.FIRST_COMPLETED)
        if session.asking.done():
            asking, session.asking = session.asking, None
            return self._numbered(session, asking.result())
        try:
            found = session.program.result()
        except Unscored as failed:
            await self._check_endpoint(conversation, session, redact(failed.reason))
            raise Unscored(*conversation.key, redact(failed.reason)) from None
        except GroupLost as lost:
            raise GroupLost(*conversation.key, redact(lost.reason)) from None
        await self._check_endpoint(conversation, session, "it ended")
        return _without_keys(found)

    @override
    async def answer(self, conversation: ConversationId, number: int, answer: Turn | Refusal) -> None:
        session = self._sessions[conversation]
        generation, call = session.calls.pop(number)
        if isinstance(answer, Turn):
            session.recorded.append(Answered(replace(call, number=number), answer))
        if generation == self._endpoint.generation:
            await self._endpoint.answer(conversation, call.number, answer)

    @override
    async def end(self, conversation: ConversationId) -> str:
        session = self._sessions.pop(conversation, None)
        if session is None:
            return ""
        last_lines, _ = await asyncio.gather(self._programs.end(conversation), self._endpoint.end(conversation))
        tasks: list[asyncio.Task[Any]] = [task for task in (session.asking, session.program) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        return redact(last_lines)

    @override
    def downtime(self) -> float:
        return self._endpoint.downtime()

    async def _open(self, conversation: ConversationId, session: _Session) -> None:
        session.generation = self._endpoint.generation
        session.owed |= {call.request for _, call in session.calls.values()}
        await self._endpoint.open(conversation, session.key, tuple(session.recorded))

    async def _next_call(self, conversation: ConversationId, session: _Session) -> Call:
        while True:
            try:
                return await self._endpoint.next(conversation)
            except GroupLost:
                if session.generation == self._endpoint.generation:
                    raise
                await self._open(conversation, session)

    def _numbered(self, session: _Session, call: Call) -> Call:
        number = next(session.numbers)
        session.calls[number] = session.generation, call
        session.owed.discard(call.request)
        return replace(call, number=number)

    async def _check_endpoint(self, conversation: ConversationId, session: _Session, what: str) -> None:
        """Raise GroupLost for an agent that ended because its endpoint was away: that is no fault of its own."""
        generation = session.generation
        await self._endpoint.ping()
        if generation != self._endpoint.generation or session.owed:
            reason = f"response {conversation.response}: its agent did not outlive the endpoint: {what}"
            raise GroupLost(*conversation.key, reason)


def _without_keys(found: Finished) -> Finished:
    """Cut the keys of sessions out of what a program said."""
    verdict = found.verdict
    if verdict is not None:
        verdict = Verdict(verdict.reward, redact(verdict.detail), verdict.lack)
    output = None if found.output is None else redact(found.output)
    return Finished(verdict, output, redact(found.last_lines))
