"""A pool of child processes that host environments, each of many conversations.

An environment that raises, says too much or is silent for too long is *refused*: its own conversation has no verdict.
A process in which that can be told from the others goes on with them; it takes no new ones after a silence. One that
does not respond at all, or dies, is killed with all that it started, and its conversations are *lost*. Where a single
call was at work its conversation is the guilty one. Where there were several, their prompts get a process of their own
at the next attempt, so that whoever does it again is known.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import logging
import os
import secrets
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lpo_ray.agents.child import AT_ONCE
from lpo_ray.agents.limits import Hosted

START_SECONDS = 120.0
"""that a process may take to import what it hosts"""
RESPONSE_SECONDS = 3.0
"""that an event loop may take to answer when one of its calls is silent"""
CLOSE_SECONDS = 5.0
"""that environments have to close when all end"""
SUSPECTS = 10_000
"""prompts that are remembered"""
OUTPUT_CHUNK, OUTPUT_PAUSE = 2**16, 0.01
"""bytes of a process's output that are read at a time, and the seconds between: an endless printer costs little"""
SHOWN_OUTPUT = 2**16
"""bytes of a process's output that are shown"""
LAST_WORDS = 500
"""characters of it that a message about its death has"""
SPARE_LINE = 2**20
"""bytes of an answer beside its messages"""
MARK = "LPO_RAY_ENVIRONMENT"
"""variable by which what a process has started is known, whatever became of it"""
_BOOT = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from lpo_ray.agents import child; "
    "child.main(int(sys.argv[2]))"
)
logger = logging.getLogger(__name__)


class Refused(Exception):
    """What an environment did, for which its own conversation has no verdict."""


class Lost(Exception):
    """What ended a conversation through no proven fault of its environment."""


@dataclass(slots=True, eq=False)
class _Call:
    number: int
    conversation: str
    prompt: str
    seconds: float
    limit: str
    """setting that the limit is from"""
    answer: asyncio.Future[dict[str, Any]]
    timer: asyncio.TimerHandle | None = None


@dataclass(slots=True)
class _Placed:
    """Where a conversation is, and the time its steps have taken."""

    child: Child
    prompt: str
    alone: bool
    seconds: float = 0.0


class Child:
    """One process, seen from the parent. Lives in one event loop."""

    def __init__(self, hosted: Hosted, on_suspects: Callable[[set[str]], None]) -> None:
        self._hosted, self._on_suspects = hosted, on_suspects
        self.conversations: set[str] = set()
        self.retired = False
        """it takes no new conversations, and ends with its last one"""
        self.dead = ""
        """why it ended"""
        self.broke = False
        """it ended without being told to"""
        self._calls: dict[int, _Call] = {}
        self._numbers = itertools.count(1)
        self._slots = asyncio.Semaphore(AT_ONCE)
        self._output = b""
        self._mark = secrets.token_hex(12)
        self._tasks: set[asyncio.Task[None]] = set()
        self._process, self._channel, self._printed = _started(self._mark)
        self._writer: asyncio.StreamWriter | None = None
        self.ready = asyncio.ensure_future(self._start())
        self.ready.add_done_callback(lambda ready: ready.cancelled() or ready.exception())

    async def ask(self, do: str, conversation: str, prompt: str, seconds: float, limit: str,
                  **values: Any) -> dict[str, Any]:  # fmt: skip  # noqa: ANN401 - any JSON
        """Make one call and return its answer. Raises Refused or Lost."""
        await asyncio.shield(self.ready)
        await self._slots.acquire()
        if self.dead:
            self._slots.release()
            raise Lost(self.dead)
        call = self._call(conversation, prompt, seconds, limit)
        call.answer.add_done_callback(lambda _: self._slots.release())
        self._send({"id": call.number, "do": do, "conversation": conversation, **values})
        return await asyncio.shield(call.answer)

    def retire(self) -> None:
        """Take no new conversations, and end with the last one."""
        self.retired = True
        if not self.conversations and not self._calls:
            self._end("it was retired")

    def fail(self, reason: str) -> None:
        """End a process that broke. Whoever was at work alone has done it."""
        if self.dead:
            return
        self.broke = True
        calls = [call for call in self._calls.values() if call.conversation]
        if len(calls) == 1:
            self._settle(calls[0], Refused(reason))
        elif calls:
            self._on_suspects({call.prompt for call in calls})
            reason = f"{reason}; {len(calls)} calls were at work in it"
        self._end(reason)

    async def close(self) -> None:
        """End the process and wait until nothing of it is left."""
        if not self.dead:
            self._end("the environments were closed")
        self.ready.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _end(self, reason: str) -> None:
        """End the process with all that it started. Calls that are left are lost."""
        self.dead = reason
        for call in list(self._calls.values()):
            self._settle(call, Lost(reason))
        if self._writer is not None:
            self._writer.close()
        self._keep(self._killed())

    async def _start(self) -> None:
        """Wait until the process has imported what it hosts. Raises Lost."""
        most = SPARE_LINE + 16 * self._hosted.max_message_chars
        reader, self._writer = await asyncio.open_unix_connection(sock=self._channel, limit=most)
        self._keep(self._drain())
        self._send({"hosted": self._hosted.to_json()})
        call = self._call("", "", START_SECONDS, "", number=0)
        self._keep(self._read(reader))
        try:
            await call.answer
        except Refused as error:
            self.fail(f"environments cannot be loaded: {error}")
            raise Lost(self.dead) from error

    def _call(self, conversation: str, prompt: str, seconds: float, limit: str, number: int | None = None) -> _Call:
        loop = asyncio.get_running_loop()
        call = _Call(next(self._numbers) if number is None else number, conversation, prompt, seconds, limit,
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
            await asyncio.sleep(0.05)  # until it is dead altogether
            code = self._process.poll()
            ended = "closed its channel" if code is None else f"ended with exit code {code}"
            self.fail(f"its process {ended}{self._last_words()}")
        except (OSError, ValueError, KeyError, TypeError, RecursionError, asyncio.LimitOverrunError) as error:
            self.fail(f"its process wrote what is no answer: {type(error).__name__} {error}"[:300])

    def _take(self, call: _Call, answer: dict[str, Any]) -> None:
        fault = answer.get("fault")
        if fault is None:
            self._settle(call, answer)
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
            self.fail(f"environments were not loaded within {call.seconds:g} s{self._last_words()}")
            return
        reason = f"no answer within {call.seconds:g} s ({call.limit})"
        probe = self._call("", "", RESPONSE_SECONDS + 1, "")
        assert probe.timer is not None
        probe.timer.cancel()
        self._send({"id": probe.number, "do": "cancel", "of": call.number})
        done, _ = await asyncio.wait({probe.answer}, timeout=RESPONSE_SECONDS)
        if done and not self.dead:
            self._settle(call, Refused(reason))
            self.retire()
        else:
            self.fail(f"{reason}, and its process does not respond")

    async def _drain(self) -> None:
        """Read what the process prints, so that it never waits for that; show the beginning, keep the end."""
        loop, reader = asyncio.get_running_loop(), asyncio.StreamReader(limit=OUTPUT_CHUNK)
        await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), self._printed)
        shown = 0
        while data := await reader.read(OUTPUT_CHUNK):
            self._output = (self._output + data)[-4 * LAST_WORDS :]
            if shown < SHOWN_OUTPUT:
                sys.stderr.write(data[: SHOWN_OUTPUT - shown].decode(errors="replace"))
                shown += len(data)
            await asyncio.sleep(OUTPUT_PAUSE)

    def _last_words(self) -> str:
        text = self._output.decode(errors="replace").strip()[-LAST_WORDS:]
        return f"; it printed last: {text}" if text else ""

    async def _killed(self) -> None:
        await asyncio.to_thread(_kill, self._process, self._mark)
        self._printed.close()

    def _keep(self, work: Any) -> None:  # noqa: ANN401 - a coroutine
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


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

    async def step(self, conversation: str, content: str, shown: str) -> dict[str, Any]:
        """Give the environment what the policy said. Raises Refused or Lost."""
        return await self._ask("step", conversation, content=content, shown=shown)

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
        for child in sorted(accepting, key=lambda child: len(child.conversations))[: max(0, len(accepting) - processes)]:
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
        answer = await placed.child.ask(do, conversation, placed.prompt, max(0.05, min(turn, left)), limit, **values)
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
            child.conversations.discard(conversation)
            if child.retired and not child.dead:
                child.retire()
            if placed.alone:
                self._alone.release()
                if not child.broke:
                    self._suspects.pop(placed.prompt, None)
            self._children = [child for child in self._children if not child.dead]

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


def _started(mark: str) -> tuple[subprocess.Popen[bytes], socket.socket, Any]:
    """Start a child: its process, this end of its channel, and what it prints."""
    ours, theirs = socket.socketpair()
    path = json.dumps([os.getcwd() if not entry else entry for entry in sys.path])
    reading, writing = os.pipe()
    try:
        process = subprocess.Popen(
            [sys.executable, "-c", _BOOT, path, str(theirs.fileno())],
            stdin=subprocess.DEVNULL, stdout=writing, stderr=writing, pass_fds=[theirs.fileno()],
            start_new_session=True, env={**os.environ, MARK: mark, "MALLOC_ARENA_MAX": "2"},
        )  # fmt: skip
    except BaseException:
        os.close(reading)
        ours.close()
        raise
    finally:
        os.close(writing)
        theirs.close()
    return process, ours, os.fdopen(reading, "rb", buffering=0)


def _kill(process: subprocess.Popen[bytes], mark: str) -> None:
    """Kill a process, its group, and whatever else it has started, until nothing of it is left."""
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for _ in range(100):
        found = _marked(mark)
        if not found:
            return
        for pid in found:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
    logger.warning("processes that an environment started are not ended: %s", found)


def _marked(mark: str) -> list[int]:
    """List the processes whose environment variables have the mark."""
    wanted, found = f"{MARK}={mark}".encode(), []
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            with contextlib.suppress(OSError):
                if wanted in (folder / "environ").read_bytes().split(b"\0"):
                    found.append(int(folder.name))
    return found
