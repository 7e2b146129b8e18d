"""Agents that are functions, of every kind that a run must live through. They run in child processes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
import time
from typing import Any

from lpo_ray.verdict import Verdict

USER = [{"role": "user", "content": "go"}]


async def asking(row: dict, client: Any) -> float:
    found = await client.chat.completions.create(model="policy", messages=USER)
    assert found.choices[0].message.content == "the answer"
    return float(row["answer"])


def plain(row: dict, client: Any) -> Verdict:
    found = client.chat.completions.create(model="policy", messages=USER)
    return Verdict.scored(0.5, found.choices[0].message.content)


async def text(row: dict, client: Any) -> str:
    return f"the answer is {row['answer']}"


async def nothing(row: dict, client: Any) -> None:
    sys.stdout.write("I say nothing\n")


async def raising(row: dict, client: Any) -> None:
    raise ValueError(f"my key is {client.api_key}")


async def not_a_number(row: dict, client: Any) -> float:
    return float("nan")


async def an_object(row: dict, client: Any) -> object:
    return object()


async def leaving(row: dict, client: Any) -> None:
    sys.exit(0)


async def dying(row: dict, client: Any) -> None:
    sys.stdout.write("these are my last words\n")
    sys.stdout.flush()
    os._exit(3)


async def sleeping(row: dict, client: Any) -> None:
    sys.stdout.write("I sleep\n")
    sys.stdout.flush()
    await asyncio.sleep(1000)


def sleeping_in_a_thread(row: dict, client: Any) -> None:
    time.sleep(1000)


async def blocking(row: dict, client: Any) -> None:
    time.sleep(1000)


async def holding_on(row: dict, client: Any) -> None:
    while True:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(1000)


async def forking(row: dict, client: Any) -> None:
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"], start_new_session=True)
    await asyncio.sleep(1000)


async def flooding(row: dict, client: Any) -> None:
    while True:
        sys.stdout.write("x" * 10000)
        await asyncio.sleep(0)


async def hoarding(row: dict, client: Any) -> None:
    await asyncio.to_thread(lambda: bytearray(10**10))


async def talking(row: dict, client: Any) -> str:
    return "x" * 10**7


async def half_a_character(row: dict, client: Any) -> str:
    return "half \ud83d of it"


async def act(row: dict, client: Any) -> object:
    """Do what the row says: one process is enough for many kinds."""
    return await globals()[row["kind"]](row, client)


def wrong(row: dict) -> float:
    return 1.0
