"""Agents that are commands: each session is a process of its own, in a folder of its own, with what it may take.

Where the machine allows it the process is in a sandbox: it reads the machine's files and writes to its own folder only,
sees no other process, and reaches the endpoint and nothing else.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import secrets
import subprocess
import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from typing_extensions import override

from lpo_ray.agents.conversations import row_of
from lpo_ray.agents.processes.launching import MARK, Started, kill
from lpo_ray.agents.processes.process import Lost, Refused
from lpo_ray.agents.programs.command_box import Box, environment_of_command, trouble_with_sandbox
from lpo_ray.agents.programs.program import Access, AgentSettings, HostedPrograms, faults_of_agent
from lpo_ray.records import ConversationId, Finished, Prompt

LAST_CHARACTERS = 500
"""of what a command printed, that messages about it have"""
CHUNK, PAUSE = 2**16, 0.01
"""bytes of output that are read at a time, and the seconds between: an endless printer costs little"""
PIPE_SECONDS = 2.0
"""for the rest of its output, when a command has ended"""
KILLED = (-9, 137)
logger = logging.getLogger(__name__)


class _Run:
    """One command that runs."""

    def __init__(self, started: Started, box: Box, most: int) -> None:
        self.started, self.box, self._most = started, box, most
        self.stdout, self._tail = bytearray(), b""

    @property
    def last_lines(self) -> str:
        return self._tail.decode(errors="replace").strip()[-LAST_CHARACTERS:]

    @property
    def output(self) -> str:
        return self.stdout.decode(errors="replace")[: self._most]

    async def ended(self) -> int:
        """Wait for its end, reading what it prints meanwhile; returns its exit code."""
        process = self.started.process
        assert process.stdout is not None
        assert process.stderr is not None
        reading = [
            asyncio.ensure_future(self._read(process.stdout.fileno(), keep=True)),
            asyncio.ensure_future(self._read(process.stderr.fileno(), keep=False)),
        ]
        try:
            code = await _exit_code(process)
            await asyncio.wait(reading, timeout=PIPE_SECONDS)  # longer if somebody else still has the pipe
        finally:
            for task in reading:
                task.cancel()
            await asyncio.gather(*reading, return_exceptions=True)
        return code

    async def _read(self, number: int, *, keep: bool) -> None:
        loop, reader = asyncio.get_running_loop(), asyncio.StreamReader(limit=CHUNK)
        pipe = os.fdopen(os.dup(number), "rb", buffering=0)
        transport, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), pipe)
        try:
            while data := await reader.read(CHUNK):
                if keep and len(self.stdout) < 4 * self._most:
                    self.stdout += data
                self._tail = (self._tail + data)[-4 * LAST_CHARACTERS :]
                await asyncio.sleep(PAUSE)
        finally:
            transport.close()


class AgentCommands(HostedPrograms):
    """Runs a command for every session. Lives in one event loop."""

    def __init__(self, settings: AgentSettings) -> None:
        self._settings, self._free = settings, settings.hosted.processes
        self._room = asyncio.Condition()
        self._rows: dict[ConversationId, Mapping[str, object]] = {}
        self._runs: dict[ConversationId, _Run] = {}
        self._ending: set[asyncio.Task[None]] = set()
        self._suspects: set[str] = set()
        """prompts whose command was killed by somebody else once"""
        _say_what_is_missing(settings.network)

    @override
    async def begin(self, conversation: ConversationId, prompt: Prompt) -> None:
        async with self._room:
            await self._room.wait_for(lambda: self._free > 0)
            self._free -= 1
        self._rows[conversation] = row_of(prompt)

    @override
    async def run(self, conversation: ConversationId, access: Access) -> Finished:
        with faults_of_agent(conversation):
            row = self._rows.get(conversation)
            if row is None:
                raise Lost("its command did not begin here: its service was replaced")
            run = await asyncio.to_thread(self._start, row, access)
            if conversation not in self._rows:  # it was ended meanwhile
                await self._killed(run)
                raise Lost("its session was ended")
            self._runs[conversation] = run
            code = await run.ended()
            if conversation not in self._runs:
                raise Lost("its session was ended")
            self._judge(conversation, code, run.last_lines)
            return Finished(None, run.output, run.last_lines)

    @override
    async def end(self, conversation: ConversationId) -> str:
        run, last_lines = self._runs.pop(conversation, None), ""
        if run is not None:
            if run.started.process.poll() is None:
                last_lines = run.last_lines
            self._ending.add(ending := asyncio.ensure_future(self._killed(run)))
            ending.add_done_callback(self._ending.discard)
            await asyncio.shield(ending)
        if self._rows.pop(conversation, None) is not None:
            async with self._room:
                self._free += 1
                self._room.notify_all()
        return last_lines

    @override
    def resize(self, processes: int) -> None:
        self._free += processes - self._settings.hosted.processes
        self._settings = self._settings.with_processes(processes)

        async def tell() -> None:
            async with self._room:
                self._room.notify_all()

        self._ending.add(telling := asyncio.ensure_future(tell()))
        telling.add_done_callback(self._ending.discard)

    @override
    async def close(self) -> None:
        await asyncio.gather(*(self.end(name) for name in list(self._runs)), *self._ending, return_exceptions=True)

    def _judge(self, conversation: ConversationId, code: int, last_lines: str) -> None:
        """Raise what an exit code other than 0 means."""
        if code == 0:
            return
        said = f"; it printed last: {last_lines}" if last_lines else ""
        reason = f"its command ended with exit code {code}{said}"
        if code in KILLED and conversation.prompt_id not in self._suspects:
            self._suspects.add(conversation.prompt_id)  # whoever did it: the next time it is its own affair
            raise Lost(reason)
        raise Refused(reason)

    def _start(self, row: Mapping[str, object], access: Access) -> _Run:
        settings, mark = self._settings, secrets.token_hex(12)
        folder = Path(tempfile.mkdtemp(prefix="lpo-ray-agent-"))
        box = Box(folder, access.url, settings)
        written = folder.with_suffix(".row")
        try:
            written.write_text(json.dumps(row, default=str, skipkeys=True), encoding="utf-8")
            with written.open("rb") as given:
                process = subprocess.Popen(
                    box.command(), stdin=given, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=folder,
                    env={**environment_of_command(access, folder), MARK: mark}, start_new_session=True,
                )  # fmt: skip
        except OSError as error:
            box.close()
            raise Refused(f"its command does not start: {error}") from error
        finally:
            written.unlink(missing_ok=True)
        assert process.stderr is not None
        return _Run(Started(process, os.fstat(process.stderr.fileno()), mark), box, settings.hosted.max_message_chars)

    async def _killed(self, run: _Run) -> None:
        await asyncio.to_thread(kill, run.started)
        await asyncio.to_thread(run.box.close)
        for pipe in (run.started.process.stdout, run.started.process.stderr):
            if pipe is not None:
                pipe.close()


async def _exit_code(process: subprocess.Popen[bytes]) -> int:
    """Wait for a process without a thread, and without a handler of signals."""
    pause = 0.005
    while (code := process.poll()) is None:
        await asyncio.sleep(pause)
        pause = min(pause * 1.5, 0.1)
    return code


@cache
def _say_what_is_missing(network: bool) -> None:
    if (trouble := trouble_with_sandbox()) is not None:
        open_to = "" if network else ", reach the network"
        logger.warning(
            "agents' commands run without a sandbox (%s): they may write wherever this user may%s; they see other "
            "processes", trouble, open_to,
        )  # fmt: skip
