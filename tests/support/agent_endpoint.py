"""An endpoint in this process, with a conductor that answers calls with made tokens in place of engines."""

from __future__ import annotations

import asyncio
import contextlib
import json
import tempfile
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any, TypeVar

import anthropic
import numpy as np
import openai
from transformers import LlamaConfig

from actors.agents.endpoint import Endpoint
from lpo_ray.agents.endpoint.settings import EndpointSettings
from lpo_ray.errors import GroupLost
from lpo_ray.policy.tokenizer import Tokenizer
from lpo_ray.records import Answered, Call, ConversationId, Refusal, Sampling, Turn

T = TypeVar("T")
SAMPLING = Sampling(4, 1.0, 64, 0)
VERSION = 12


def model_folder(tokenizer: Tokenizer, folder: Path | None = None) -> str:
    """A model's folder without weights: the endpoint reads none."""
    folder = folder or Path(tempfile.mkdtemp())
    tokenizer.save(folder)
    LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=4096,
    ).save_pretrained(folder)  # fmt: skip
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "architectures": ["LlamaForCausalLM"]}))
    return str(folder)


def turn_of(ids: Sequence[int], finish: str = "stop", version: int = VERSION) -> Turn:
    count = len(ids)
    return Turn(np.array(ids), np.linspace(-1, -0.1, count, dtype=np.float32), np.full(count, version), finish)


Said = str | Turn | Refusal
Client = TypeVar("Client", openai.AsyncOpenAI, anthropic.AsyncAnthropic)


class Conducted:
    """One session, and what its conductor saw and says."""

    def __init__(self, running: Running, name: ConversationId, key: str) -> None:
        self.name, self.key, self._running = name, key, running
        self.calls: list[Call] = []
        self.turns: dict[int, Turn] = {}
        self.says: Callable[[Call], Said] = lambda call: f"answer {call.number}"
        self.asleep = False
        """hold back answers"""

    @property
    def answered(self) -> list[Answered]:
        return [Answered(call, self.turns[call.number]) for call in self.calls if call.number in self.turns]

    def text(self, place: int = -1) -> str:
        return self._running.tokenizer.show(self.calls[place].context_ids)

    def goes_on(self, place: int = -1, from_place: int | None = None) -> bool:
        """Whether a call's context begins with another's and all that was sampled."""
        earlier = self.calls[place - 1 if from_place is None else from_place]
        before = [*earlier.context_ids, *self.turns[earlier.number].token_ids]
        return self.calls[place].context_ids[: len(before)].tolist() == before

    def openai(self, **settings: object) -> openai.AsyncOpenAI:
        made = {"max_retries": 0, "timeout": 120, **settings}
        address = f"{self._running.endpoint.address}/v1"
        return self._running.keep(openai.AsyncOpenAI(base_url=address, api_key=self.key, **made))

    def anthropic(self, **settings: object) -> anthropic.AsyncAnthropic:
        made = {"max_retries": 0, "timeout": 120, **settings}
        address = self._running.endpoint.address
        return self._running.keep(anthropic.AsyncAnthropic(base_url=address, api_key=self.key, **made))

    async def conduct(self) -> None:
        with contextlib.suppress(GroupLost):
            while True:
                call = await self._running.endpoint.sessions.of(self.name).next()
                self.calls.append(call)
                self._answer(call)

    def _answer(self, call: Call) -> None:
        if self.asleep:
            return
        said = self.says(call)
        if isinstance(said, str):
            tokenizer = self._running.tokenizer
            said = turn_of([*tokenizer.encode(said), tokenizer.eos_token_id])
        if isinstance(said, Turn):
            self.turns[call.number] = said
        self._running.endpoint.sessions.answer(self.name, call.number, said)

    def wake(self) -> None:
        """Answer what was held back."""
        self.asleep = False
        for call in self.calls:
            if call.number not in self.turns:
                self._answer(call)


class Running:
    """An endpoint that runs."""

    def __init__(self, endpoint: Endpoint, tokenizer: Tokenizer, settings: EndpointSettings) -> None:
        self.endpoint, self.tokenizer, self.settings = endpoint, tokenizer, settings
        self._count = 0
        self._tasks: list[asyncio.Task[None]] = []
        self._clients: list[openai.AsyncOpenAI | anthropic.AsyncAnthropic] = []

    def keep(self, client: Client) -> Client:
        """Close a client with the endpoint. One that nobody closes is closed when it is collected, maybe in another
        test: by the numbers of its sockets, which by then may be those of others.
        """
        self._clients.append(client)
        return client

    async def session(
        self, key: str | None = None, recorded: Sequence[Answered] = (), says: Callable[[Call], Said] | None = None
    ) -> Conducted:
        self._count += 1
        conducted = Conducted(self, ConversationId("p", 0, self._count), key or f"key-of-session-{self._count}")
        if says is not None:
            conducted.says = says
        await self.endpoint.sessions.open(conducted.name, conducted.key, recorded)
        self._tasks.append(asyncio.create_task(conducted.conduct()))
        return conducted

    async def close(self) -> None:
        for client in self._clients:
            await client.close()
        await self.endpoint.close()
        await asyncio.gather(*self._tasks)


@contextlib.asynccontextmanager
async def running(settings: EndpointSettings) -> AsyncIterator[Running]:
    endpoint = Endpoint(settings)
    await endpoint.start()
    made = Running(endpoint, Tokenizer.load(settings.model_path), settings)
    try:
        yield made
    finally:
        await made.close()


def answers(*texts: Said) -> Callable[[Call], Said]:
    """Say these, in turn, and the last one again."""
    left = list(texts)
    return lambda _: left.pop(0) if len(left) > 1 else left[0]


class InThread:
    """An endpoint in a thread with a loop of its own, for tests that are not asynchronous."""

    def __init__(self, settings: EndpointSettings, says: Callable[[Call], Said]) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._made = running(settings)
        self.running = self._done(self._made.__aenter__())
        self.session = self._done(self.running.session(says=says))

    def _done(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(60)

    def close(self) -> None:
        self._done(self._made.__aexit__(None, None, None))
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
