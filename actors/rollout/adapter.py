"""The adapters of an engine: vLLM's arguments for them, and what a request says to be answered with one.

An engine serves one version, in one place, under one name. A publish puts the new one there between two steps of the
engine, as full weights are put in place: so a mode of ``pipeline.inflight`` does with adapters what it does without.
But ``keep_version`` has a place for each version that is alive: what runs ends under the one that it began with.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

from lpo_ray.policy.lora import RANKS, AdapterSettings, peft_config

if TYPE_CHECKING:
    from vllm.lora.request import LoRARequest


def adapter_arguments(adapter: AdapterSettings | None, places: int) -> dict[str, Any]:
    """Arguments of vLLM for an engine with this adapter, in so many versions; none without one."""
    if adapter is None:
        return {}
    rank = next(rank for rank in RANKS if rank >= adapter.rank)
    return {"enable_lora": True, "max_loras": places, "max_cpu_loras": places, "max_lora_rank": rank}


class ServedAdapter:
    """The adapters of one engine, on the side of its worker, in whose event loop all of this runs.

    vLLM knows an adapter by a number. With one place it is always 1. With several each has a number of its own, which
    is never used again: keys and values under it are of one adapter, and so are those who read them.
    """

    def __init__(self, settings: AdapterSettings | None, places: int = 1) -> None:
        """``places``: versions that may be alive at once."""
        self._settings, self.places = settings, places
        self._there: dict[int, str | None] = {}
        """number -> version, of those that vLLM has, oldest first; None: it was not said"""
        self._running = Counter[int]()
        """number -> requests under it that have not ended"""
        self._last = self._newest = self._served = 0
        """numbers: given out last, arrived last, and of what new requests begin with; 0: none"""
        self._ended = asyncio.Condition()

    @property
    def folder(self) -> str | None:
        """PEFT folder of the adapter to begin with."""
        return None if self._settings is None else self._settings.path

    @property
    def config(self) -> dict[str, object] | None:
        """Settings of the adapter, as PEFT's adapter_config.json has them; None: the engine serves the model alone."""
        return None if self._settings is None else peft_config(self._settings)

    async def until_a_place_is_free(self) -> None:
        """Wait until a version can be put beside those that are needed: the served one, and those under which requests
        run. The oldest end first, as none begin under them.
        """
        if self.places == 1:
            return
        async with self._ended:
            await self._ended.wait_for(lambda: len(self._needed()) < self.places)

    def next_place(self) -> tuple[int, list[int]]:
        """Choose the number of the next version, and those that are dropped for it. Raises RuntimeError when all places
        are needed.
        """
        needed = self._needed()
        if self.places == 1:
            return 1, list(self._there)
        if len(needed) >= self.places:
            raise RuntimeError(f"{len(needed)} versions of the adapter are in use; expected {self.places - 1} at most")
        return self._last + 1, [number for number in self._there if number not in needed]

    def put(self, number: int, dropped: list[int], version: str | None) -> None:
        """Note that vLLM has it now. With one place it is what requests read from now on."""
        for old in dropped:
            self._there.pop(old, None)
        self._there[number] = version
        self._last = self._newest = number
        if self.places == 1 or not self._served:
            self._served = number

    def release(self) -> None:
        """Begin new requests with what arrived last: it is proved."""
        self._served = self._newest

    @contextlib.asynccontextmanager
    async def used(self, *, bare: bool, newest: bool) -> AsyncIterator[tuple[LoRARequest | None, str | None]]:
        """Hold the adapter that a request begins with, until it has ended. ``bare``: none; ``newest``: what arrived
        last, proved or not. Yields vLLM's name of it (None: the model alone is to answer) and its version.
        """
        number = 0 if bare else self._newest if newest else self._served
        if not number:
            yield None, None
            return
        self._running[number] += 1
        try:
            yield self._request(number), self._there[number]
        finally:
            self._running[number] -= 1
            async with self._ended:
                self._ended.notify_all()

    def _needed(self) -> set[int]:
        return {self._served} - {0} | {number for number, count in self._running.items() if count > 0}

    def _request(self, number: int) -> LoRARequest:
        """Name an adapter to vLLM. Its path is never read, since the adapter is there. Blocks of the prefix cache have
        its name, so each has one of its own.
        """
        from vllm.lora.request import LoRARequest

        return LoRARequest(f"policy-{number}", number, "in memory")
