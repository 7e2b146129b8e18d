"""Verifiers that do what the response says. Standard library only: they run in the pool's processes."""

from __future__ import annotations

import os
import time
from typing import Any


def length(response: str) -> float | None:
    if response == "spin":
        while True:
            pass
    if response == "die":
        os._exit(7)
    if response == "raise":
        raise RuntimeError("no network")
    if response == "none":
        return None
    if response.startswith("sleep"):
        time.sleep(0.5)
    if response == "hog":
        bytearray(2**31)
    return float(len(response))


def process(response: str) -> int:
    if response == "grow":
        bytearray(600 * 2**20)[:: 2**12] = b"x" * (600 * 2**8)
    return os.getpid()


def quick_size(completions: list[str], **kwargs: Any) -> list[float]:
    return [float(len(completions))] * len(completions)


def slow_size(completions: list[str], **kwargs: Any) -> list[float]:
    time.sleep(0.06)  # more than a chunk should take
    return quick_size(completions)


def shortest(completions: list[str], **kwargs: Any) -> list[float]:
    if "die" in completions:
        os._exit(7)
    if "raise" in completions:
        raise RuntimeError("no network")
    return [float(len(c) == min(map(len, completions))) for c in completions]


def shortest_or_none(completions: list[str], **kwargs: Any) -> list[float | None]:
    return [None if c == "none" else reward for c, reward in zip(completions, shortest(completions), strict=True)]


class OwnEnd(BaseException):
    """No Exception, and without a text."""

    def __str__(self) -> str:
        raise RuntimeError("no text")


def run_it(response: str, answer: str) -> float:
    """Run the response here, as functions of users do."""
    exec(response)
    return 1.0
