"""A pool of child processes that host environments, each of many conversations.

An environment that raises, says too much or is silent for too long is *refused*: its own conversation has no verdict.
A process in which that can be told from the others goes on with them; it takes no new ones after a silence. One that
does not respond at all, or dies, is killed with all that it started, and its conversations are *lost*. Where a single
call was at work its conversation is the guilty one. Where there were several, their prompts get a process of their own
at the next attempt, so that whoever does it again is known.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lpo_ray.agents.limits import Hosted
from lpo_ray.agents.processes.process import Child, Lost, Refused

CLOSE_SECONDS = 5.0
"""that environments have to close when all end"""
SUSPECTS = 10_000
"""prompts that are remembered"""
LEAST_SECONDS = 0.05
"""of a call"""
logger = logging.getLogger(__name__)


@dataclass(slots=True)
class _Placed:
    """Where a conversation is, and the time its steps have taken."""

    child: Child
    prompt: str
    alone: bool
    seconds: float = 0.0


class EnvironmentPool:
    """Child processes with environments. Lives in one event loop."""

    def __init__(self, hosted: Hosted) -> None:
        self._hosted, self._processes = hosted, hosted.processes
        self._children: list[Child] = []
        self._placed: dict[str, _Placed] = {}
        self._suspects: dict[str, None] = {}
        self._alone = asyncio.Semaphore(max(4, 2 * hosted.processes))
        self._closing: set[asyncio.Future[None]] = set()
        self.given = 0
        """calls that were answered"""

    async def open(self, conversation: str, prompt: str, row: Mapping[str, Any], seed: int) -> dict[str, Any]:
        """Make the environment of a conversation. Raises Refused or Lost."""
        alone = prompt in self._suspects
        if alone:
            await self._alone.acquire()
        child = self._new() if alone else self._roomiest()
        child.conversations.add(conversation)
        child.retired |= alone
        self._placed[conversation] = _Placed(child, prompt, alone)
        return await self._ask("open", conversation, row=dict(row), seed=seed)

    async def step(self, conversation: str, content: str, shown: str, *, is_plain: bool) -> dict[str, Any]:
        """Give the environment what the policy said; ``is_plain``: no chat template says how calls are written. Raises
        Refused or Lost.
        """
        return await self._ask("step", conversation, content=content, shown=shown, is_plain=is_plain)

    async def cancel(self, conversation: str, reason: str) -> str:
        """Give up what is being done for a conversation, and return what its process printed last; empty when nothing
        was.
        """
        placed = self._placed.get(conversation)
        if placed is None or placed.child.dead or not placed.child.is_busy(conversation):
            return ""
        await placed.child.cancel(conversation, reason)
        return placed.child.last_words

    def last_words(self, conversation: str) -> str:
        """Return what the process of a conversation printed last."""
        placed = self._placed.get(conversation)
        return "" if placed is None else placed.child.last_words

    def end(self, conversation: str) -> None:
        """Forget a conversation; its environment is closed in the background."""
        placed = self._placed.pop(conversation, None)
        if placed is None:
            return
        closing = asyncio.ensure_future(self._closed(conversation, placed))
        self._closing.add(closing)
        closing.add_done_callback(self._closing.discard)

    def resize(self, processes: int) -> None:
        """Use another number of processes from now on. Those that are too many end with their last conversation."""
        self._processes = processes
        accepting = [child for child in self._children if not child.retired and not child.dead]
        for child in sorted(accepting, key=lambda child: len(child.conversations))[
            : max(0, len(accepting) - processes)
        ]:
            child.retire()

    async def close(self) -> None:
        """End every process, after the environments of conversations that have ended had a moment to close."""
        if self._closing:
            await asyncio.wait(self._closing, timeout=CLOSE_SECONDS)
        await asyncio.gather(*(child.close() for child in self._children))

    async def _ask(self, do: str, conversation: str, **values: Any) -> dict[str, Any]:  # noqa: ANN401 - any JSON
        placed = self._placed.get(conversation)
        if placed is None:
            raise Lost("there is no such conversation: it was ended, or its process was")
        left = self._hosted.conversation_seconds - placed.seconds
        turn = self._hosted.turn_seconds
        limit = ("environment.turn_seconds" if turn <= left else "environment.conversation_seconds, of which the steps "
                 f"before took {placed.seconds:.3g} s")  # fmt: skip
        answer = await placed.child.ask(
            do, conversation, placed.prompt, max(LEAST_SECONDS, min(turn, left)), limit, **values
        )
        placed.seconds += float(answer.get("seconds", 0.0))
        self.given += 1
        return answer

    async def _closed(self, conversation: str, placed: _Placed) -> None:
        child = placed.child
        try:
            if not child.dead:
                await child.ask("end", conversation, placed.prompt, self._hosted.turn_seconds,
                                "environment.turn_seconds")  # fmt: skip
        except Refused as error:
            logger.warning("the environment of %s did not close: %s", conversation, error)
        except Lost:
            pass  # with its process
        finally:
            if child.retired and not child.dead:
                child.retire()
            if placed.alone:
                self._alone.release()
                if not child.broke:
                    self._suspects.pop(placed.prompt, None)
            self._children = [child for child in self._children if not child.gone]

    def _roomiest(self) -> Child:
        accepting = [child for child in self._children if not child.retired and not child.dead]
        if len(accepting) < self._processes:
            return self._new()
        return min(accepting, key=lambda child: len(child.conversations))

    def _new(self) -> Child:
        child = Child(self._hosted, self._suspect)
        self._children.append(child)
        return child

    def _suspect(self, prompts: set[str]) -> None:
        self._suspects.update(dict.fromkeys(prompts))
        while len(self._suspects) > SUSPECTS:
            del self._suspects[next(iter(self._suspects))]
