"""Verifiers that do what the response says. Standard library only: they run in the pool's processes."""

from __future__ import annotations

import os
import time


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
