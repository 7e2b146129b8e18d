"""Environments and engines of conversations, made by hand: what they say follows from seeds, and is remembered."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import groupby

import numpy as np

from lpo_ray.common.silence import Progress
from lpo_ray.errors import ComponentDied, LpoRayError
from lpo_ray.records import (
    ConversationId,
    IntArray,
    Observation,
    Process,
    Prompt,
    PromptGroup,
    Response,
    Sampling,
    Turn,
    TurnRequest,
)
from lpo_ray.verdict import Verdict

END = 7
"""token that ends a turn"""


def drawn(request: TurnRequest, engine: int | None = None, version: int = 0) -> Turn:
    """A turn that follows from its seed alone: 1 to 4 tokens, cut at max_tokens."""
    rng = np.random.default_rng(request.seed())
    tokens = [*rng.integers(10, 99, rng.integers(0, 4)).tolist(), END]
    ids = np.array(tokens[: request.max_tokens])
    finish = "stop" if len(tokens) <= request.max_tokens else "length"
    return Turn(ids, -ids.astype(np.float32) / 100, np.full(len(ids), version), finish, engine)


@dataclass
class Speaker:
    """A worker that takes ``seconds`` for each turn, and dies when it is told to."""

    name: str
    seconds: Callable[[TurnRequest], float] = lambda request: 1.0
    asked: list[TurnRequest] = field(default_factory=list)
    broken: asyncio.Future[None] | None = None
    drew: int = 0

    async def start(self, seconds: float) -> Process:
        await asyncio.sleep(5)
        self.broken = asyncio.get_running_loop().create_future()
        return Process(0, "node", "host", ())

    async def sample(self, prompt: Prompt, sampling: Sampling, attempt: int) -> PromptGroup:
        raise NotImplementedError

    async def turn(self, request: TurnRequest) -> Turn:
        assert self.broken is not None
        self.asked.append(request)
        await asyncio.wait({self.broken}, timeout=self.seconds(request))
        if self.broken.done():
            raise ComponentDied(self.name, "killed")
        self.drew += 1
        return drawn(request)

    async def progress(self) -> Progress:
        return Progress(asyncio.get_running_loop().time())

    async def inspect(self) -> str:
        return "seen from outside"

    async def close(self, seconds: float) -> None:
        pass

    def kill(self) -> None:
        if self.broken is not None and not self.broken.done():
            self.broken.set_result(None)


@dataclass
class Told:
    """All that happened to one conversation."""

    context: IntArray
    events: list[tuple[str, IntArray]] = field(default_factory=list)
    """("turn" | "appended" | "context", token ids), in order"""

    def contexts(self) -> list[IntArray]:
        """Context of each turn, as an engine must have been given it."""
        now, found = self.context, []
        for kind, ids in self.events:
            if kind == "turn":
                found.append(now)
            now = ids if kind == "context" else np.concatenate([now, ids])
        return found


@dataclass
class FakeEnvironments:
    """Environments that answer as ``answer`` says, and hold their caller to the protocol."""

    answer: Callable[[ConversationId, int], Observation | LpoRayError]
    """(conversation, number of the turn) -> what is said behind it"""
    first: Callable[[ConversationId], IntArray | LpoRayError] = lambda name: np.array([1, 2, 3])
    seconds: Callable[[ConversationId, int], float] = lambda name, turn: 0.0
    """(conversation, number of the turn, -1 for the first context) -> how long it takes"""
    told: dict[ConversationId, Told] = field(default_factory=dict)
    open_now: set[ConversationId] = field(default_factory=set)
    ended: Counter[ConversationId] = field(default_factory=Counter)
    working: Counter[ConversationId] = field(default_factory=Counter)
    step_of: Counter[ConversationId] = field(default_factory=Counter)

    async def open(self, conversation: ConversationId, prompt: Prompt) -> IntArray:
        assert conversation not in self.told, f"{conversation} was opened before"
        self.open_now.add(conversation)
        await self._work(conversation, -1)
        context = self.first(conversation)
        if isinstance(context, LpoRayError):
            raise context
        self.told[conversation] = Told(context)
        return context

    async def reply(self, conversation: ConversationId, turn: Turn) -> Observation:
        assert conversation in self.open_now, f"{conversation} is not open"
        assert not self.working[conversation], f"{conversation} is asked twice at once"
        number = self.step_of[conversation]
        self.step_of[conversation] += 1
        told = self.told[conversation]
        told.events.append(("turn", turn.token_ids))
        await self._work(conversation, number)
        found = self.answer(conversation, number)
        if isinstance(found, LpoRayError):
            raise found
        if found.context_ids is not None:
            told.events.append(("context", found.context_ids))
        elif found.appended_ids is not None:
            told.events.append(("appended", found.appended_ids))
        return found

    async def end(self, conversation: ConversationId) -> None:
        self.open_now.discard(conversation)
        self.ended[conversation] += 1

    async def _work(self, conversation: ConversationId, number: int) -> None:
        self.working[conversation] += 1
        try:
            await asyncio.sleep(self.seconds(conversation, number))
        finally:
            self.working[conversation] -= 1


def said(*ids: int, author: str = "user", seconds: float = 0.0) -> Observation:
    """What an environment says, and the policy answers."""
    return Observation(np.array(ids, dtype=np.int64), author=author, seconds=seconds)


def done(reward: float | None = None, author: str = "") -> Observation:
    """The end, with a verdict or without."""
    verdict = None if reward is None else Verdict.scored(reward, "the environment says so")
    return Observation(None, done=True, verdict=verdict, author=author)


def contexts_of(response: Response, prompt_ids: IntArray) -> Iterator[IntArray]:
    """Context of each run of sampled tokens, by the record."""
    for segment in response.segments:
        start = 0
        context = prompt_ids if segment.context_ids is None else segment.context_ids
        for sampled, run in groupby(segment.sampled):
            length = len(list(run))
            if sampled:
                yield np.concatenate([context, segment.token_ids[:start]])
            start += length
