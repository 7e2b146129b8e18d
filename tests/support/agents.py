"""Agents made by hand: coroutines that ask through a fake endpoint, which holds its caller to the protocol."""

from __future__ import annotations

import asyncio
import hashlib
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from lpo_ray.errors import GroupLost, Unscored
from lpo_ray.records import Answered, Call, ConversationId, Finished, IntArray, Prompt, Refusal, Sampling, Turn

Agent = Callable[["Client"], Awaitable[Finished]]


class Refused(Exception):
    """What an agent is raised when its call is refused."""


@dataclass(eq=False)
class Client:
    """What an agent asks with: it knows tokens, as a test wants to."""

    name: ConversationId
    prompt: Prompt
    calls: asyncio.Queue[Call | Finished | Exception]
    waiting: dict[int, asyncio.Future[Turn]] = field(default_factory=dict)
    known: dict[bytes, Turn] = field(default_factory=dict)
    numbers: int = 0
    asked: list[tuple[IntArray, IntArray]] = field(default_factory=list)
    """contexts, and what was answered"""

    async def ask(
        self, context: Sequence[int] | IntArray, max_tokens: int | None = None, author: str = "user", began: str = ""
    ) -> list[int]:
        """Ask, and return the tokens of the answer. Raises Refused."""
        context = np.asarray(context, dtype=np.int64)
        request = hashlib.sha256(context.tobytes() + str(max_tokens).encode()).digest()
        if request in self.known:
            return self.known[request].token_ids.tolist()
        number, self.numbers = self.numbers, self.numbers + 1
        self.waiting[number] = asyncio.get_running_loop().create_future()
        await self.calls.put(Call(number, context, request, max_tokens, (), began, author))
        turn = await self.waiting[number]
        self.known[request] = turn
        self.asked.append((context, turn.token_ids))
        return turn.token_ids.tolist()

    async def say(self, context: Sequence[int] | IntArray, **values: object) -> list[int]:
        """Ask, and return all that stands behind the answer."""
        return [*np.asarray(context).tolist(), *await self.ask(context, **values)]  # type: ignore[arg-type]


@dataclass
class FakeAgents:
    """Runs ``agent`` for every session."""

    agent: Agent
    clients: dict[ConversationId, Client] = field(default_factory=dict)
    tasks: dict[ConversationId, asyncio.Task[None]] = field(default_factory=dict)
    ended: Counter[ConversationId] = field(default_factory=Counter)
    asking: set[ConversationId] = field(default_factory=set)
    down: Callable[[], float] = lambda: 0.0

    async def open(self, conversation: ConversationId, prompt: Prompt) -> None:
        assert conversation not in self.clients, f"{conversation} was opened before"
        client = self.clients[conversation] = Client(conversation, prompt, asyncio.Queue())
        self.tasks[conversation] = asyncio.ensure_future(self._run(client))

    async def next(self, conversation: ConversationId) -> Call | Finished:
        assert conversation not in self.asking, f"{conversation} is waited for twice at once"
        self.asking.add(conversation)
        try:
            found = await self.clients[conversation].calls.get()
        finally:
            self.asking.discard(conversation)
        if isinstance(found, Exception):
            raise found
        return found

    async def answer(self, conversation: ConversationId, number: int, answer: Turn | Refusal) -> None:
        waiting = self.clients[conversation].waiting[number]
        if waiting.done():
            return
        if isinstance(answer, Refusal):
            waiting.set_exception(Refused(answer.reason))
        else:
            waiting.set_result(answer)

    def downtime(self) -> float:
        return self.down()

    async def end(self, conversation: ConversationId) -> str:
        self.ended[conversation] += 1
        task = self.tasks.pop(conversation, None)
        if task is None:
            return ""
        still_runs = not task.done()
        task.cancel()
        await asyncio.wait({task})
        return "its last words" if still_runs else ""

    async def _run(self, client: Client) -> None:
        try:
            await client.calls.put(await self.agent(client))
        except (Unscored, GroupLost) as error:
            await client.calls.put(error)
        except Exception as error:  # noqa: BLE001 - whatever a test's agent raises
            text = f"response {client.name.response}: its agent raised {error!r}"
            await client.calls.put(Unscored(*client.name.key, text))


@dataclass
class FakeRecord:
    """A record of calls in memory."""

    calls: dict[str, list[tuple[ConversationId, Answered]]] = field(default_factory=dict)
    slow: float = 0.0

    async def begin(self, prompt_id: str, attempt: int, sampling: Sampling) -> Mapping[int, Sequence[Answered]]:
        if attempt == 0:
            self.calls.pop(prompt_id, None)
        found: dict[int, list[Answered]] = {}
        for name, answered in self.calls.get(prompt_id, ()):
            found.setdefault(name.response, []).append(answered)
        return found

    async def put(self, conversation: ConversationId, answered: Answered, sampling: Sampling) -> None:
        await asyncio.sleep(self.slow)
        self.calls.setdefault(conversation.prompt_id, []).append((conversation, answered))

    async def forget(self, prompt_id: str) -> None:
        self.calls.pop(prompt_id, None)
