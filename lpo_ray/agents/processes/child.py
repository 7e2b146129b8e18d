"""The program of a child process: environments of many conversations, asked by lines of JSON. Standard library only.

``process.py`` starts it and talks to it. Async methods share one event loop, so what they share (a client, a cache)
works as usual; plain methods run in threads. Standard output and error are not the channel: what is printed cannot mix
with it. The process ends with its parent, and a fork of it never speaks in its name.
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import resource
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NoReturn

from lpo_ray.agents.environment import Environment, Unavailable, prompt_messages
from lpo_ray.agents.environments.solving import Solving
from lpo_ray.agents.environments.table import EnvironmentMaker, environment_of
from lpo_ray.agents.limits import Hosted
from lpo_ray.agents.processes.checking import Refused, checked_messages, checked_step, reply_of
from lpo_ray.agents.tools import ToolEnvironment
from lpo_ray.agents.tools.calls import parser_for
from lpo_ray.agents.user_code import called, text_of
from lpo_ray.common.error_text import error_text

AT_ONCE = 32
"""calls that a process works on at once; more wait in the parent"""
STACK_BYTES = 2**21
"""of a thread"""
LONGEST_REQUEST = 2**30
"""bytes; a row may be long"""
LONGEST_REASON = 1000
_PR_SET_PDEATHSIG = 1


class Host:
    """Host of this process's conversations. Lives in its event loop."""

    def __init__(self, writer: asyncio.StreamWriter, hosted: Hosted, make: EnvironmentMaker) -> None:
        self._writer, self._hosted, self._make = writer, hosted, make
        self._guests: dict[str, Environment] = {}
        self._tasks: dict[int, tuple[str, asyncio.Task[None]]] = {}
        """call -> its conversation, and what works on it"""
        self._limit = hosted.memory_mib * 2**20

    async def serve(self, reader: asyncio.StreamReader) -> None:
        """Answer requests until the parent is gone."""
        while line := await reader.readline():
            request = json.loads(line)
            if request["do"] == "cancel":
                if (working := self._tasks.get(request["of"])) is not None:
                    working[1].cancel()
                self.send({"id": request["id"]})
                continue
            task = asyncio.ensure_future(self._answer(request))
            self._tasks[request["id"]] = request["conversation"], task
            task.add_done_callback(lambda _, number=request["id"]: self._tasks.pop(number, None))

    def send(self, answer: Mapping[str, Any]) -> None:
        """Write one line to the parent."""
        self._writer.write(json.dumps(answer).encode() + b"\n")

    async def _answer(self, request: dict[str, Any]) -> None:
        """Carry out one request and send its answer, whatever happens on the way."""
        started, stuck = time.monotonic(), False
        try:
            answer = await {"open": self._open, "step": self._step, "end": self._end}[request["do"]](request)
            if (size := _characters(answer.get("messages")) + _characters(answer.get("history"))) > (
                most := self._hosted.max_message_chars
            ):
                raise Refused(
                    f"it said {size:,} characters at once; expected at most {most:,} (environment.max_message_chars)"
                )
        except MemoryError:
            answer = {"fault": f"no memory left of {self._hosted.memory_mib} MiB (environment.memory_mib)", "of": "all"}
        except (Unavailable, ConnectionError) as error:
            answer = {"fault": _cut(error_text(error)), "of": "outside"}
        except asyncio.CancelledError:
            answer = {"fault": "it was cancelled"}
            stuck = self._keeps_threads(request)
        except Refused as error:
            answer = {"fault": str(error)}
        except BaseException as error:  # noqa: BLE001 - also what would end the process: none of it is a verdict
            answer = {"fault": f"{_cut(text_of(error))} ({_place(error)})"}
        worn = stuck or _resident_bytes() > self._limit / 2
        self.send({"id": request["id"], "seconds": time.monotonic() - started, "worn": worn, **answer})

    async def _open(self, request: dict[str, Any]) -> dict[str, Any]:
        environment = await called(self._make)
        environment.seed = request["seed"]
        self._guests[request["conversation"]] = environment  # before reset: what it has begun is closed in any case
        messages = await called(environment.reset, request["row"])
        if messages == prompt_messages(request["row"]):  # whose tokens the parent has
            return {"messages": None}
        return {"messages": checked_messages(messages, "reset")}

    async def _step(self, request: dict[str, Any]) -> dict[str, Any]:
        environment = self._guests[request["conversation"]]
        reply = reply_of(request["content"], request["shown"], self._parser(environment, is_plain=request["is_plain"]))
        step = checked_step(await called(environment.step, dict(reply)))
        return {**step, "calls": reply.get("tool_calls", [])}

    def _keeps_threads(self, request: Mapping[str, Any]) -> bool:
        agent = self._guests.get(request["conversation"])
        return isinstance(agent, Solving) and agent.keeps_threads

    def _parser(self, environment: Environment, *, is_plain: bool) -> str | None:
        if self._hosted.parser != "auto":
            return self._hosted.parser
        if not isinstance(environment, ToolEnvironment):
            return None
        return parser_for(None) if is_plain else self._hosted.template_parser

    async def _end(self, request: dict[str, Any]) -> dict[str, Any]:
        environment = self._guests.pop(request["conversation"], None)
        working = [task for name, task in self._tasks.values() if name == request["conversation"]]
        if len(working) > 1:  # this one, and a step that nobody waits for any more
            await asyncio.wait(set(working) - {asyncio.current_task()})
        if environment is not None:
            await called(environment.close)
        return {}


def _characters(messages: list[dict[str, Any]] | None) -> int:
    return sum(len(json.dumps(message, ensure_ascii=False)) for message in messages or ())


def _resident_bytes() -> int:
    """Return the memory that this process has now; its peak would be that of the parent it was started from."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST_REASON else f"{text[:LONGEST_REASON]}..."


def _place(error: BaseException) -> str:
    """Return file and line that raised ``error``."""
    frames = [(frame.f_code.co_filename, line) for frame, line in traceback.walk_tb(error.__traceback__)]
    return "{}:{}".format(*frames[-1]) if frames else "nowhere"


def _loaded(hosted: Hosted) -> tuple[EnvironmentMaker | None, dict[str, Any]]:
    """Import what is hosted; the answer has the schemas of its tools, or says why it cannot be."""
    try:
        make = environment_of(hosted)
        made = make()
        return make, {"schemas": made.schemas() if isinstance(made, ToolEnvironment) else []}
    except BaseException as error:  # noqa: BLE001 - a user's module may raise anything
        return None, {"fault": _cut(error_text(error))}


def _enter(memory_mib: int, number: int) -> None:
    """Have this process die with its parent, raise MemoryError before the machine's memory is used up, and keep forks
    of it away from the channel, a descriptor of this ``number``.
    """
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (memory_mib * 2**20, hard))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.set_inheritable(number, False)

    def leave() -> None:
        nothing = os.open(os.devnull, os.O_RDWR)
        os.dup2(nothing, number, inheritable=False)
        os.close(nothing)

    os.register_at_fork(after_in_child=leave)
    threading.stack_size(STACK_BYTES)


async def _run(channel: socket.socket, hosted: Hosted, make: EnvironmentMaker | None, said: dict[str, Any]) -> None:
    reader, writer = await asyncio.open_unix_connection(sock=channel, limit=LONGEST_REQUEST)
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(AT_ONCE))
    host = Host(writer, hosted, make or _nothing)
    host.send({"id": 0, **said})
    await host.serve(reader)


def _nothing() -> NoReturn:
    raise RuntimeError("nothing could be loaded")


def main(fd: int) -> None:
    """Serve the parent at the other end of ``fd``; never returns. What is hosted is imported here, by the main thread:
    some of it handles signals.
    """
    channel = socket.socket(fileno=fd)
    try:
        with channel.makefile("rb") as requests:
            hosted = Hosted.from_json(json.loads(requests.readline())["hosted"])
        _enter(hosted.memory_mib, fd)
        make, said = _loaded(hosted)
        asyncio.run(_run(channel, hosted, make, said))
    finally:
        os._exit(0)


if __name__ == "__main__":
    main(int(sys.argv[1]))
