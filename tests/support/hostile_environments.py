"""Environments and tools that go wrong, each in one way. Child processes import this file by its path."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import math
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

from lpo_ray.agents import Environment, Step, Unavailable
from lpo_ray.verdict import Verdict

HELD: list[bytes] = []
AGAIN = {"role": "user", "content": "again"}


class Kind(Environment):
    """What is done is the row's ``do``, at ``step`` unless the row has another ``at``."""

    async def reset(self, row):
        self.row = row
        if row.get("at") == "reset":
            await self._do()
        return [{"role": "user", "content": "go "}]

    async def step(self, reply):
        if reply["content"] == "well":
            return Step([AGAIN], verdict=0.25)
        return await self._do() or Step([AGAIN])

    async def close(self):
        if self.row.get("at") == "close":
            await self._do()
        if "closed" in self.row:
            Path(self.row["closed"]).write_text("closed")

    async def _do(self):
        return await asyncio.to_thread(plain, self.row["do"], self.row) or await on_loop(self.row["do"])


class Plain(Kind):
    """The same in plain methods."""

    def reset(self, row):
        self.row = row
        if row.get("at") == "reset":
            plain(row["do"], row)
        return [{"role": "user", "content": "go "}]

    def step(self, reply):
        if reply["content"] == "well":
            return Step([AGAIN], verdict=0.25)
        return plain(self.row["do"], self.row) or Step([AGAIN])


class OnLoop(Kind):
    """The same on the event loop, which it blocks."""

    async def _do(self):
        return plain(self.row["do"], self.row)


class Odd(Kind):
    """Says what can hardly be said."""

    async def reset(self, row):
        return [
            {"role": "user", "content": "\x00\u202e\ud800\U0001f600"},
            {"role": "user", "content": [{"text": "<eos>"}]},
        ]

    async def step(self, reply):
        return Step([{"role": "user", "content": "\udfff\n", "more": ["\ud83d"]}])


class NotNumber:
    def __repr__(self):
        raise RuntimeError("no repr")

    def __float__(self):
        return 1.0


async def on_loop(do):
    if do == "wait":
        await asyncio.Event().wait()
    if do == "ignore cancellation":
        while True:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(60)


def plain(do, row):
    """Go wrong; what is returned is the step's."""
    number = RETURNED.get(do)
    if number is not None:
        return number()
    action = ACTIONS.get(do)
    return action(row) if action is not None else None


def _spin(row):
    while True:
        pass


def _hold(row):
    """Hold the interpreter's lock: no thread of the process runs."""
    ctypes.PyDLL(None).sleep(100)


def _print(row):
    while True:
        print("x" * 10_000)  # noqa: T201


def _print_bytes(row):
    while True:
        os.write(1, b"\xff\x00" * 30_000)


def _exit(row):
    sys.exit(0)


def _end(row):
    os._exit(0)


def _crash(row):
    ctypes.string_at(0)


def _close(row):
    os.closerange(0, 100)
    time.sleep(0.3)


def _hang_up(row):
    """End the channel, and the process with this call."""
    for number in range(3, 100):
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(number)) as channel:
            channel.shutdown(socket.SHUT_RDWR)
    time.sleep(1.0)


def _say(row, calls=(4711,)):
    """Write answers into every descriptor there is."""
    said = '{"id": %d, "messages": [], "done": true, "verdict": {"reward": 1, "detail": ""}, "history": null}\n'
    for number in range(3, 100):
        with contextlib.suppress(OSError):
            os.write(number, "".join(said % call for call in calls).encode())
    raise RuntimeError("said it")


def _fork_and_say(row):
    child = os.fork()
    if child == 0:
        with contextlib.suppress(RuntimeError):
            _say(row, range(100))
        os._exit(0)
    os.waitpid(child, 0)


def _garbage(row):
    for number in range(3, 100):
        with contextlib.suppress(OSError):
            os.write(number, b"\xff\x00 no JSON at all\n" * 10)
    time.sleep(0.3)


def _fork(row):
    """Children that stay, in a group and session of their own, and one that comes back."""
    for _ in range(3):
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                while True:
                    time.sleep(1)
            os._exit(0)
    subprocess.Popen(["sleep", "1000"], start_new_session=True)
    Path(row["pids"]).write_text(" ".join(map(str, _descendants())))
    if os.fork() == 0:
        return
    raise RuntimeError("forked")


def _fork_and_return(row):
    child = os.fork()
    if child:
        Path(row["pids"]).write_text(str(child))


def _escape(row):
    """Processes with a session and variables of their own; the second prints nowhere."""
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    started = [
        subprocess.Popen(["sleep", "1000"], env={}, start_new_session=True, **more)
        for more in ({}, quiet)[: row["many"]]
    ]
    Path(row["pids"]).write_text(" ".join(str(process.pid) for process in started))
    if row["many"] == 1:
        os._exit(1)
    raise RuntimeError("escaped")


def _descendants():
    mark = os.environ["LPO_RAY_ENVIRONMENT"].encode()
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal() and int(folder.name) != os.getpid():
            try:
                if mark in (folder / "environ").read_bytes():
                    found.append(int(folder.name))
            except OSError:
                pass
    return found


def _hoard(row):
    held = []
    while True:
        held.append(bytearray(16 * 2**20))


def _until(row):
    while not Path(row["until"]).exists():
        time.sleep(0.01)


def _hoard_after(row):
    _until(row)
    time.sleep(0.3)
    _hoard(row)


def _threads(row):
    for _ in range(20):
        threading.Thread(target=_spin, args=(row,), daemon=False).start()
    raise RuntimeError("threads")


def _recurse(row):
    return _recurse(row)


def _raise_base(row):
    raise KeyboardInterrupt


def _nested():
    value = []
    for _ in range(100_000):
        value = [value]
    return value


class _BadText(Exception):
    def __str__(self):
        raise RuntimeError("no text")


def _bad_text(row):
    raise _BadText


ACTIONS = {
    "raise": lambda row: (_ for _ in ()).throw(ValueError("the row is bad")),
    "raise without text": _bad_text, "interrupt": _raise_base, "exit": _exit, "end": _end, "crash": _crash,
    "spin": _spin, "hold": _hold, "sleep": lambda row: time.sleep(1000), "print": _print, "print bytes": _print_bytes,
    "close": _close, "hang up": _hang_up, "say": _say, "garbage": _garbage, "fork": _fork, "hoard": _hoard,
    "threads": _threads, "fork and say": _fork_and_say, "fork and return": _fork_and_return,
    "escape": _escape, "until": _until, "hoard after": _hoard_after,
    "recurse": _recurse, "fail": lambda row: (_ for _ in ()).throw(Unavailable("no network")),
}  # fmt: skip
RETURNED = {
    "text": lambda: "well done",
    "dict": lambda: {"messages": [AGAIN], "verdict": 1.0},
    "keep": lambda: HELD.append(b"x" * 150 * 2**20),
    "nothing": lambda: Step(),
    "long": lambda: Step([{"role": "user", "content": "x" * 10_000_000}]),
    "many": lambda: Step([{"role": "user", "content": "x"}] * 200_000),
    "long history": lambda: Step([AGAIN], history=[{"role": "user", "content": "x" * 10_000_000}]),
    "nan": lambda: Step([AGAIN], verdict=math.nan),
    "infinite": lambda: Step(verdict=math.inf, done=True),
    "verdict text": lambda: Step(verdict="1.0", done=True),
    "verdict list": lambda: Step(verdict=[1.0, 2.0], done=True),
    "verdict object": lambda: Step(verdict=NotNumber(), done=True),
    "verdict forged": lambda: Step(verdict=_forged(), done=True),
    "no verdict": lambda: Step(verdict=Verdict.unscored("cannot say"), done=True),
    "messages text": lambda: Step("hello"),
    "message text": lambda: Step(["hello"]),
    "no role": lambda: Step([{"content": "x"}]),
    "no content": lambda: Step([{"role": "user"}]),
    "content number": lambda: Step([{"role": "user", "content": 5}]),
    "nested": lambda: Step([{"role": "user", "content": "x", "more": _nested()}]),
    "no json": lambda: Step([{"role": "user", "content": "x", "more": object()}]),
}


def _forged():
    verdict = Verdict.scored(1.0)
    object.__setattr__(verdict, "reward", math.inf)
    return verdict


# --- tools ----


def double(number: int, note: str = "") -> int:
    """Double a number."""
    return 2 * number


def opaque(number: int) -> object:
    """Return what is no JSON."""
    return {1: object(), "nan": math.nan}


def cyclic() -> list:
    """Return what contains itself."""
    found: list = []
    found.append(found)
    return found


def endless(number: int) -> str:
    """Return very much."""
    return "y" * 10_000_000


def quits(number: int) -> str:
    """End the process."""
    sys.exit(3)


def raises(number: int) -> str:
    """Raise."""
    raise ValueError(f"{number} is too small")


def offline(number: int) -> str:
    """Fail through no fault of the caller's."""
    raise Unavailable("the search engine is down")


async def slowly(number: int) -> int:
    """Take a moment."""
    await asyncio.sleep(0.01)
    return number + 1
