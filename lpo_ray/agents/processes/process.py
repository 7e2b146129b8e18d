"""One child process, seen from the parent: its calls, their limits, and what it means when it is silent or dies."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import sys
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lpo_ray.agents.limits import Hosted
from lpo_ray.agents.processes.child import AT_ONCE
from lpo_ray.agents.processes.launching import START_SECONDS, kill, launch

RESPONSE_SECONDS = 3.0
"""that an event loop may take to answer when one of its calls is silent"""
OUTPUT_CHUNK, OUTPUT_PAUSE = 2**16, 0.01
"""bytes of a process's output that are read at a time, and the seconds between: an endless printer costs little"""
SHOWN_OUTPUT = 2**16
"""bytes of a process's output that are shown"""
EXIT_SECONDS = 2.0
"""that a process may take to end, once it says nothing more: on a busy machine it takes a while"""
OUTPUT_SECONDS = 1.0
"""that what a killed process has printed may take to be read: somebody else may hold the other end of the pipe"""
LAST_WORDS = 500
"""characters of it that a message about its death has"""
SPARE_LINE = 2**20
"""bytes of an answer beside its messages"""


class Refused(Exception):
    """Error of an environment, for which its own conversation has no verdict."""


class Lost(Exception):
    """Error that ended a conversation through no proven fault of its environment."""


@dataclass(slots=True, eq=False)
class _Call:
    number: int
    do: str
    conversation: str
    prompt: str
    seconds: float
    limit: str
    """setting that the limit is from"""
    answer: asyncio.Future[dict[str, Any]]
    timer: asyncio.TimerHandle | None = None
    given_up: str = ""
    """why, when it took too long"""


class Child:
    """One process, seen from the parent. Lives in one event loop."""

    def __init__(self, hosted: Hosted, on_suspects: Callable[[set[str]], None]) -> None:
        self._hosted, self._on_suspects = hosted, on_suspects
        self.conversations: set[str] = set()
        """those whose environments are in it: each is added before it is opened, and gone once its end is answered"""
        self.retired = False
        """it takes no new conversations, and ends with its last one"""
        self.dead = ""
        """why it ended"""
        self.gone = False
        """nothing of it is left"""
        self.broke = False
        """it ended without being told to"""
        self._calls: dict[int, _Call] = {}
        self._numbers = itertools.count(1)
        self._slots = asyncio.Semaphore(AT_ONCE)
        self._output = b""
        self._tasks: set[asyncio.Task[None]] = set()
        self._launched = launch()
        self._draining = asyncio.ensure_future(self._drain())
        self._writer: asyncio.StreamWriter | None = None
        self._starting = asyncio.ensure_future(self._start())

    async def ask(self, do: str, conversation: str, prompt: str, seconds: float, limit: str,
                  **values: Any) -> dict[str, Any]:  # fmt: skip  # noqa: ANN401 - any JSON
        """Make one call and return its answer. Raises Refused or Lost."""
        await asyncio.wait({self._starting})
        await self._slots.acquire()
        if self.dead:
            self._slots.release()
            raise Lost(self.dead)
        call = self._call(do, conversation, prompt, seconds, limit)
        call.answer.add_done_callback(lambda _: self._slots.release())
        self._send({"id": call.number, "do": do, "conversation": conversation, **values})
        return await asyncio.shield(call.answer)

    def is_busy(self, conversation: str) -> bool:
        """Whether something is being done for a conversation."""
        return any(call.conversation == conversation for call in self._calls.values())

    async def cancel(self, conversation: str, reason: str) -> None:
        """Give up what is being done for a conversation; the process, too, when it does not end at that."""
        for call in [call for call in self._calls.values() if call.conversation == conversation]:
            call.given_up = reason
            self._send({"id": next(self._numbers), "do": "cancel", "of": call.number})
            await asyncio.wait({call.answer}, timeout=RESPONSE_SECONDS)
            if not call.answer.done():
                await self._silent(call)

    def retire(self) -> None:
        """Take no new conversations, and end with the last one."""
        self.retired = True
        if not self.conversations and not self._calls:
            self._end("it was retired")

    async def close(self) -> None:
        """End the process and wait until nothing of it is left."""
        if not self.dead:
            self._end("the environments were closed")
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _fail(self, reason: str, at_work: Sequence[_Call] | None = None) -> None:
        """End a process that broke. Whoever was at work alone has done it.

        ``at_work``: the calls that were when it broke, for what came later has no part in it; None: those that are now.
        """
        if self.dead:
            return
        self.broke = True
        calls = self._at_work() if at_work is None else at_work
        if len(calls) == 1:
            self._settle(calls[0], Refused(reason))
        elif calls:
            self._on_suspects({call.prompt for call in calls})
            reason = f"{reason}; {len(calls)} calls were at work in it"
        self._end(reason)

    def _end(self, reason: str) -> None:
        """End the process with all that it started. Calls that are left are lost."""
        self.dead = reason
        self._starting.cancel()
        for call in list(self._calls.values()):
            self._settle(call, Lost(reason))
        self._keep(self._killed())

    async def _start(self) -> None:
        """Wait until the process has imported what it hosts; one that cannot is ended."""
        most = SPARE_LINE + 16 * self._hosted.max_message_chars
        try:
            reader, self._writer = await asyncio.open_unix_connection(sock=self._launched.channel, limit=most)
            self._send({"hosted": self._hosted.to_json()})
            call = self._call("load", "", "", START_SECONDS, "", number=0)
            self._keep(self._read(reader))
            await call.answer
        except (Refused, OSError) as error:
            self._fail(f"environments cannot be loaded: {error}")
        except Lost:
            pass  # it has ended

    def _call(self, do: str, conversation: str, prompt: str, seconds: float, limit: str,
              number: int | None = None) -> _Call:  # fmt: skip
        loop = asyncio.get_running_loop()
        call = _Call(next(self._numbers) if number is None else number, do, conversation, prompt, seconds, limit,
                     loop.create_future())  # fmt: skip
        call.answer.add_done_callback(lambda answer: answer.cancelled() or answer.exception())
        call.timer = loop.call_later(seconds, lambda: self._keep(self._silent(call)))
        self._calls[call.number] = call
        return call

    def _send(self, request: Mapping[str, Any]) -> None:
        assert self._writer is not None
        self._writer.write(json.dumps(request, default=str, skipkeys=True).encode() + b"\n")

    def _settle(self, call: _Call, found: dict[str, Any] | Exception) -> None:
        self._calls.pop(call.number, None)
        if call.do == "end":  # here: the next answer may be read before whoever waits for this one goes on
            self.conversations.discard(call.conversation)
        if call.timer is not None:
            call.timer.cancel()
        if call.answer.done():
            return
        if isinstance(found, Exception):
            call.answer.set_exception(found)
        else:
            call.answer.set_result(found)

    async def _read(self, reader: asyncio.StreamReader) -> None:
        """Hand out answers until the process says nothing more."""
        try:
            while line := await reader.readuntil(b"\n"):
                answer = json.loads(line)
                call = self._calls.get(answer["id"])
                if call is not None:
                    self._take(call, answer)
        except asyncio.IncompleteReadError:
            self.retired, at_work = True, self._at_work()
            code = await self._exit_code()
            ended = "closed its channel" if code is None else f"ended with exit code {code}"
            self._fail(f"its process {ended}{self._last_words()}", at_work)
        except (OSError, ValueError, KeyError, TypeError, RecursionError, asyncio.LimitOverrunError) as error:
            self._fail(f"its process wrote what is no answer: {type(error).__name__} {error}"[:300])

    def _at_work(self) -> list[_Call]:
        return [call for call in self._calls.values() if call.conversation]

    async def _exit_code(self) -> int | None:
        """Wait a moment for a process that says nothing more to be dead altogether. None: it lives."""
        deadline = asyncio.get_running_loop().time() + EXIT_SECONDS
        while (code := self._launched.process.poll()) is None and asyncio.get_running_loop().time() < deadline:
            await asyncio.sleep(0.02)
        return code

    def _take(self, call: _Call, answer: dict[str, Any]) -> None:
        fault = call.given_up or answer.get("fault")
        if fault is None:
            self._settle(call, answer)
        elif answer.get("of") == "outside" and not call.given_up:
            self._settle(call, Lost(str(fault)))
        elif answer.get("of") == "all" and len(self.conversations) > 1:
            self._on_suspects({call.prompt})
            self._settle(call, Lost(f"{fault}; its process had other conversations"))
        else:
            self._settle(call, Refused(str(fault)))
        if answer.get("worn") or answer.get("of") == "all":
            self.retire()

    async def _silent(self, call: _Call) -> None:
        """Give up a call that took too long: it alone when the process still responds, else the process."""
        if call.number == 0:
            self._fail(f"environments were not loaded within {call.seconds:g} s{self._last_words()}")
            return
        reason = call.given_up = call.given_up or f"no answer within {call.seconds:g} s ({call.limit})"
        probe = self._call("cancel", "", "", RESPONSE_SECONDS + 1, "")
        assert probe.timer is not None
        probe.timer.cancel()
        self._send({"id": probe.number, "do": "cancel", "of": call.number})
        done, _ = await asyncio.wait({probe.answer}, timeout=RESPONSE_SECONDS)
        if done and not self.dead:
            self._settle(call, Refused(reason))
            self.retire()
        else:
            self._fail(f"{reason}, and its process does not respond")

    async def _drain(self) -> None:
        """Read what the process prints, so that it never waits for that; show the beginning, keep the end. Nobody else
        closes the pipe: its number would be another's while the event loop still listens to it.
        """
        loop, reader = asyncio.get_running_loop(), asyncio.StreamReader(limit=OUTPUT_CHUNK)
        pipe, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), self._launched.printed)
        shown = 0
        try:
            while data := await reader.read(OUTPUT_CHUNK):
                self._output = (self._output + data)[-4 * LAST_WORDS :]
                if shown < SHOWN_OUTPUT:
                    with contextlib.suppress(OSError, ValueError):  # ours is closed, or its reader is gone
                        sys.stderr.write(data[: SHOWN_OUTPUT - shown].decode(errors="replace"))
                    shown += len(data)
                await asyncio.sleep(OUTPUT_PAUSE)
        finally:
            pipe.close()

    @property
    def last_words(self) -> str:
        """End of what the process printed."""
        return self._output.decode(errors="replace").strip()[-LAST_WORDS:]

    def _last_words(self) -> str:
        return f"; it printed last: {self.last_words}" if self.last_words else ""

    async def _killed(self) -> None:
        """Kill the process with all that it started, and let go of what led to it: by itself it would end first, and
        nothing would say any more whose those were that it started.
        """
        await asyncio.to_thread(kill, self._launched)
        await asyncio.wait({self._starting, self._draining}, timeout=OUTPUT_SECONDS)
        self._draining.cancel()
        await asyncio.wait({self._starting, self._draining})
        if self._writer is None:  # it was ended before it was spoken to
            self._launched.channel.close()
        else:
            self._writer.transport.abort()  # what it was not sent yet nobody reads
        self.gone = True

    def _keep(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
