"""Sessions of agents: what each asked the policy and was answered. Pure: no HTTP, no engine; one event loop.

```
 requests ──ask──▶ Session ──next──▶ conductor            every distinct request is a Call, and is seen once by ``next``
     ▲                │                  │                a request that is repeated waits for the same answer
     └──── answer ────┴◀─────answer──────┘                whoever asks gets the same, however often and whenever
```
A request that is given up by its client stays a call: its answer is recorded, and waits for the client to ask again.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from lpo_ray.agents.endpoint.api_errors import ApiError, ended_session, unknown_key
from lpo_ray.errors import GroupLost
from lpo_ray.records import Answered, Call, ConversationId, Refusal, Turn

REMEMBERED = 100_000
"""keys of sessions that have ended, which are told so; older ones are unknown"""
Answer = Turn | Refusal


@dataclass(frozen=True, slots=True)
class SessionLimits:
    """Limits of one session, whatever its agent does."""

    calls: int = 1000
    """distinct requests"""
    requests_a_second: float = 20.0
    """on average, repeated ones included; as many at once as in five seconds"""
    messages: int = 2000
    """of one request"""
    body_bytes: int = 4 * 2**20
    """of one request"""


class Outcome(NamedTuple):
    """Answer to a request."""

    answer: Answer
    call: Call | None
    """as the policy was asked; None: someone was told this outcome before"""


class _Asked:
    """A call, and whoever waits for its answer."""

    __slots__ = ("answer", "arrived", "call", "failure", "number")

    def __init__(self, number: int, answer: Answer | None = None, call: Call | None = None) -> None:
        self.number, self.answer, self.call = number, answer, call
        self.failure: ApiError | None = None
        self.arrived = asyncio.Event()
        if answer is not None:
            self.arrived.set()


class Session:
    """One session: the calls of one agent."""

    def __init__(
        self,
        name: ConversationId,
        limits: SessionLimits,
        recorded: Sequence[Answered] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``recorded``: calls of this session that were answered by an endpoint before."""
        self.name, self.limits, self.ended = name, limits, False
        self.recorded = tuple(recorded)
        """what was answered elsewhere"""
        self._by_request = {_digest(each.call.request): _Asked(each.call.number, each.turn) for each in recorded}
        self._by_number = {asked.number: asked for asked in self._by_request.values()}
        self._next_number = max(self._by_number, default=-1) + 1
        self._unseen: deque[Call] = deque()
        self._news = asyncio.Event()
        """there is a call that nobody has seen, or the end"""
        self._clock, self._tokens, self._filled = clock, self._burst, clock()

    @property
    def _burst(self) -> float:
        return max(1.0, 5 * self.limits.requests_a_second)

    def admit(self) -> None:
        """Count a request. Raises ApiError for one of a session that has ended, or that asks too fast."""
        if self.ended:
            raise ended_session()
        now, rate = self._clock(), self.limits.requests_a_second
        self._tokens = min(self._burst, self._tokens + (now - self._filled) * rate)
        self._filled = now
        if self._tokens < 1:
            reason = f"more than {rate:g} requests a second, the session's limit"
            raise ApiError(429, reason, "rate_limit_exceeded", retry_after=math.ceil((1 - self._tokens) / rate))
        self._tokens -= 1

    async def ask(self, call: Call) -> Outcome:
        """Ask for the answer to a call, whose number is set here. One with the same request is not asked again.

        Raises ApiError when the session ends meanwhile, or for one call more than it may make.
        """
        if self.ended:
            raise ended_session()
        name = _digest(call.request)
        asked = self._by_request.get(name)
        if asked is None:
            if len(self._by_request) >= self.limits.calls:
                raise ApiError(403, f"the session has made {self.limits.calls} calls, its limit", "too_many_calls")
            call = replace(call, number=self._next_number)
            asked = _Asked(call.number, call=call)
            self._next_number += 1
            self._by_request[name] = self._by_number[asked.number] = asked
            self._unseen.append(call)
            self._news.set()
        await asked.arrived.wait()
        if asked.answer is None:
            raise asked.failure or ended_session()
        told, asked.call = asked.call, None
        return Outcome(asked.answer, told)

    async def next(self) -> Call:
        """Wait for the next call that needs an answer. Raises GroupLost at the end of the session."""
        while not self._unseen:
            if self.ended:
                raise GroupLost(*self.name.key, f"response {self.name.response}: its session has ended")
            self._news.clear()
            await self._news.wait()
        return self._unseen.popleft()

    def answer(self, number: int, answer: Answer) -> None:
        """Answer a call. Only the first answer counts; that to a call which nobody made is ignored."""
        asked = self._by_number.get(number)
        if asked is None or asked.answer is not None or self.ended:
            return
        asked.answer = answer
        asked.arrived.set()

    def give_up(self, call: Call, error: ApiError) -> None:
        """Tell whoever waits for a call of an error. It is a new call when it is asked again."""
        asked = self._by_number.get(call.number)
        if asked is None or asked.answer is not None:
            return
        del self._by_number[call.number], self._by_request[_digest(call.request)]
        asked.failure = error
        asked.arrived.set()

    def end(self) -> None:
        """End it: whoever waits is told so."""
        self.ended = True
        self._unseen.clear()
        self._news.set()
        for asked in self._by_number.values():
            asked.arrived.set()


class Sessions:
    """All sessions of an endpoint, by name and by key. No key is kept, only its digest."""

    def __init__(self, limits: SessionLimits, clock: Callable[[], float] = time.monotonic) -> None:
        self._limits, self._clock = limits, clock
        self._by_name: dict[ConversationId, tuple[bytes, Session]] = {}
        self._by_key: dict[bytes, Session] = {}
        self._ended: OrderedDict[bytes, None] = OrderedDict()
        self._opened = asyncio.Condition()

    @property
    def names(self) -> list[ConversationId]:
        """Names of the sessions that are open."""
        return list(self._by_name)

    async def open(self, name: ConversationId, key: str, recorded: Sequence[Answered] = ()) -> Session:
        """Open a session; one of the same name ends. ``recorded``: see Session."""
        if name in self._by_name:
            self.end(name)
        session, digest = Session(name, self._limits, recorded, self._clock), _digest(key.encode())
        self._ended.pop(digest, None)
        self._by_name[name], self._by_key[digest] = (digest, session), session
        async with self._opened:
            self._opened.notify_all()
        return session

    async def find(self, key: str, patience: float = 0.0) -> Session:
        """Find the session of a key, which may be opened within ``patience`` seconds. Raises ApiError without one."""
        digest = _digest(key.encode())
        if digest not in self._by_key and digest not in self._ended and patience > 0:
            try:
                async with asyncio.timeout(patience), self._opened:
                    await self._opened.wait_for(lambda: digest in self._by_key)
            except TimeoutError:
                pass
        if digest in self._ended:
            raise ended_session()
        if digest not in self._by_key:
            raise unknown_key()
        return self._by_key[digest]

    def of(self, name: ConversationId) -> Session:
        """Return the session of a name. Raises GroupLost without one."""
        if name not in self._by_name:
            raise GroupLost(*name.key, f"response {name.response}: it has no session here: it ended, or never began")
        return self._by_name[name][1]

    def answer(self, name: ConversationId, number: int, answer: Answer) -> None:
        """Answer a call. Ignored for a session that has ended."""
        if name in self._by_name:
            self._by_name[name][1].answer(number, answer)

    def end(self, name: ConversationId) -> None:
        """End a session with its key, if there is one."""
        digest, session = self._by_name.pop(name, (b"", None))
        if session is None:
            return
        session.end()
        if self._by_key.get(digest) is session:
            del self._by_key[digest]
            self._ended[digest] = None
            while len(self._ended) > REMEMBERED:
                self._ended.popitem(last=False)

    def close(self) -> None:
        """End all of them."""
        for name in list(self._by_name):
            self.end(name)


def _digest(value: bytes) -> bytes:
    return hashlib.blake2b(value, digest_size=32).digest()
