"""What the endpoint costs: sessions of four turns by HTTP, and the same turns asked of the engine directly.

PYTHONPATH=. .venv/bin/python tests/benchmarks/endpoint.py OUT.json [--config CONFIG] [--sessions 64] [--tokens 128]
    [--rounds 3] [--many 512] [section.key=value ...]

Engine and policy are those of CONFIG, on a Ray cluster of its own; without it the engine is a stand-in that waits.
Clients are another process. Both ways share the machine, in turns: endpoint, engine, endpoint, engine ...
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

os.environ.update(OMP_NUM_THREADS="1", VLLM_NO_USAGE_STATS="1", VLLM_LOGGING_LEVEL="ERROR", TORCHDYNAMO_DISABLE="1")
import httpx
import numpy as np
import psutil

from actors.agents.standalone import Standalone
from lpo_ray.agents.endpoint.settings import EndpointSettings
from lpo_ray.interfaces import TurnEngine
from lpo_ray.records import Prompt, PromptGroup, Sampling, Turn, TurnRequest

KEY, TURNS = "the-key-of-the-benchmark", 4
QUESTION = "Use the numbers {} to make {}. "


async def clients(address: str, sessions: int, run: str) -> None:
    """Ask as ``sessions`` agents do; write seconds of each request."""
    took: list[float] = []

    async def agent(number: int, client: httpx.AsyncClient) -> int:
        messages: list[dict[str, Any]] = [{"role": "user", "content": QUESTION.format(number, run)}]
        for _ in range(TURNS):
            began = time.perf_counter()
            reply = await client.post(
                f"{address}/v1/chat/completions", json={"messages": messages},
                headers={"authorization": f"Bearer {KEY}/{run}-{number}"},
            )  # fmt: skip
            took.append(time.perf_counter() - began)
            reply.raise_for_status()
            said = reply.json()["choices"][0]["message"]["content"]
            messages += [{"role": "assistant", "content": said}, {"role": "user", "content": "Again. "}]
        return TURNS

    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    async with httpx.AsyncClient(timeout=600, limits=limits) as client:
        began = time.perf_counter()
        done = await asyncio.gather(*(agent(number, client) for number in range(sessions)))
        seconds = time.perf_counter() - began
    json.dump({"seconds": seconds, "answered": sum(done), "median_ms": statistics.median(took) * 1e3}, sys.stdout)


async def by_http(address: str, sessions: int, run: str) -> dict[str, Any]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, __file__, "-", "--clients", address, "--sessions", str(sessions), "--run", run,
        stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, _ = await process.communicate()
    return json.loads(out)


class Watched(TurnEngine):
    """Engine that keeps what it was asked."""

    def __init__(self, engine: TurnEngine) -> None:
        self._engine, self.asked = engine, list[TurnRequest]()

    async def sample(self, prompt: Prompt, sampling: Sampling, attempt: int) -> PromptGroup:
        return await self._engine.sample(prompt, sampling, attempt)

    async def turn(self, request: TurnRequest) -> Turn:
        self.asked.append(request)
        return await self._engine.turn(request)


class Waits(TurnEngine):
    """Stand-in for an engine: it waits as long as a turn takes, and answers with any letters."""

    def __init__(self, seconds: float, tokens: int) -> None:
        self._seconds, self._tokens, self._random = seconds, tokens, random.Random(0)

    async def sample(self, prompt: Prompt, sampling: Sampling, attempt: int) -> PromptGroup:
        raise NotImplementedError

    async def turn(self, request: TurnRequest) -> Turn:
        await asyncio.sleep(self._seconds)
        ids = np.array(self._random.choices(range(40, 90), k=self._tokens))
        return Turn(ids, np.zeros(len(ids), dtype=np.float32), np.zeros(len(ids), dtype=np.int64), "length")


async def directly(engine: TurnEngine, asked: list[TurnRequest]) -> float:
    """Ask the engine for the same turns, session by session; returns the seconds."""
    by_session: dict[str, list[TurnRequest]] = {}
    for request in asked:
        by_session.setdefault(request.conversation.prompt_id, []).append(request)

    async def one(requests: list[TurnRequest]) -> None:
        for request in requests:
            await engine.turn(replace(request, conversation=request.conversation._replace(attempt=10**6)))

    began = time.perf_counter()
    await asyncio.gather(*(one(requests) for requests in by_session.values()))
    return time.perf_counter() - began


@asynccontextmanager
async def stand_in(tokens: int) -> AsyncIterator[tuple[TurnEngine, EndpointSettings]]:
    from tests.support.agent_endpoint import model_folder
    from tests.support.chat_tokenizers import CHATML, byte_tokenizer

    folder = model_folder(byte_tokenizer(CHATML, eos="<|im_end|>"), Path(tempfile.mkdtemp()))
    yield Waits(0.05, tokens), EndpointSettings(folder, Sampling(1, 1.0, tokens, 0), 8192, patience_seconds=0)


@asynccontextmanager
async def real(config: str, tokens: int, overrides: list[str]) -> AsyncIterator[tuple[TurnEngine, EndpointSettings]]:
    from rich.console import Console

    from actors.cluster import connect, disconnect, open_engines
    from lpo_ray.cli.console import StandardError, model_of
    from lpo_ray.config import load_config
    from lpo_ray.run.settings import endpoint_settings
    from lpo_ray.run.spec import make_spec

    spec = make_spec(load_config(Path(config), (f"sampling.max_tokens={tokens}", *overrides)), for_training=False)
    spec = spec.with_room_for(spec.context)
    model_path = model_of(spec, Console(stderr=True))
    connect(spec.config)
    try:
        async with open_engines(spec, model_path, StandardError()) as (engine, _):
            yield cast("TurnEngine", engine), endpoint_settings(spec, model_path)
    finally:
        disconnect()


async def measured(arguments: argparse.Namespace) -> dict[str, Any]:
    made = (
        stand_in(arguments.tokens)
        if arguments.config is None
        else real(arguments.config, arguments.tokens, arguments.overrides)
    )
    async with made as (engine, settings):
        watched = Watched(engine)
        served = Standalone(settings, watched, KEY)
        address = await served.start()
        running = asyncio.create_task(served.run())
        process = psutil.Process()
        await by_http(address, 4, "warm")
        rounds = []
        for number in range(arguments.rounds):
            watched.asked.clear()
            before = process.cpu_times()
            found = await by_http(address, arguments.sessions, f"round{number}")
            after = process.cpu_times()
            cpu = (after.user + after.system - before.user - before.system) / (arguments.sessions * TURNS)
            alone = await directly(engine, watched.asked)
            rounds.append({**found, "engine_seconds": alone, "cpu_ms_a_request": 1e3 * cpu})
            sys.stderr.write(f"{rounds[-1]}\n")
        rss = process.memory_info().rss
        began = time.perf_counter()
        many = await by_http(address, arguments.many, "many")
        many |= {"seconds": time.perf_counter() - began, "grown_mib": (process.memory_info().rss - rss) / 2**20}
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await served.close()
    ratios = [each["seconds"] / each["engine_seconds"] for each in rounds]
    return {
        "engine": arguments.config or "stand-in of 50 ms a turn", "sessions": arguments.sessions, "turns": TURNS,
        "tokens": arguments.tokens, "rounds": rounds, "median_ratio": statistics.median(ratios),
        "many": {"sessions": arguments.many, **many}, "rss_mib": process.memory_info().rss / 2**20,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out")
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--config")
    parser.add_argument("--clients")
    parser.add_argument("--run", default="")
    for name, value in (("sessions", 64), ("tokens", 128), ("rounds", 3), ("many", 512)):
        parser.add_argument(f"--{name}", type=int, default=value)
    arguments = parser.parse_intermixed_args()
    if arguments.clients:
        asyncio.run(clients(arguments.clients, arguments.sessions, arguments.run))
        return
    found = asyncio.run(measured(arguments))
    Path(arguments.out).write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
