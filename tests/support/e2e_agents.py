"""Agents of e2e tests: functions, in child processes; and, run as a program, a command."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

TURNS = 3
MARKS = "LPO_RAY_TEST_TURNS"
"""environment variable: folder in which an agent before its third turn has a file, named by its process"""


def share_of_digits(said: str) -> float:
    """Verdict on all that the policy said."""
    return sum(letter.isdigit() for letter in said) / max(len(said), 1)


def answer_of(said: str) -> str:
    """What the agent says behind it, in the characters of the tiny policy."""
    return f"={sum(letter.isdigit() for letter in said)}\n"


async def thrice(row: Mapping[str, Any], client: Any, pause: float = 0.0) -> float:
    """Three turns, each answered with how many digits there were; beside the second one another, a branch."""
    messages, said = [{"role": "user", "content": row["prompt"]}], ""
    for number in range(TURNS):
        asked = [client.chat.completions.create(model="policy", messages=messages)]
        if number == 1:
            aside = [*messages, {"role": "user", "content": "*\n"}]
            asked.append(client.chat.completions.create(model="policy", messages=aside))
        reply, *_ = await asyncio.gather(*asked)
        content = reply.choices[0].message.content or ""
        said += content
        with marked() if number == 1 else contextlib.nullcontext():
            await asyncio.sleep(pause)
        messages += [{"role": "assistant", "content": content}, {"role": "user", "content": answer_of(said)}]
    return share_of_digits(said)


async def slow(row: Mapping[str, Any], client: Any) -> float:
    """As thrice, with a pause in which it can be killed."""
    return await thrice(row, client, 0.3)


@contextlib.contextmanager
def marked() -> Iterator[None]:
    """Leave a mark for as long as it lasts."""
    if MARKS not in os.environ:
        yield
        return
    mark = Path(os.environ[MARKS]) / f"{os.getpid()}-{time.monotonic_ns()}"
    mark.touch()
    try:
        yield
    finally:
        mark.unlink(missing_ok=True)


def main() -> None:
    """Ask once by a client of its own, and print the answer."""
    import openai

    row = json.load(sys.stdin)
    client = openai.OpenAI()
    reply = client.chat.completions.create(model="policy", messages=[{"role": "user", "content": row["prompt"]}])
    sys.stdout.write(reply.choices[0].message.content or "")


if __name__ == "__main__":
    main()
