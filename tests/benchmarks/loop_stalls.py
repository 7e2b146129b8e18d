"""Why an event loop came back late: its process beats, and another one looks at its threads while no beat comes.

Nothing of the loop's own process could look: who waits for the GIL sees nothing. Linux and CPython only.
"""

from __future__ import annotations

import asyncio
import ctypes
import faulthandler
import mmap
import os
import re
import signal
import struct
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

PERIOD = 0.005
"""seconds between two beats"""
LATE = 0.1
"""seconds of a stall that is explained"""
EVERY = 0.01
"""seconds between two looks"""
SHARED = struct.Struct("dQQQ")
"""time of the last beat; of CPython: address of its state, and of the thread that has the GIL; where a thread has its
number
"""
RUNTIME_BYTES = 2**16
"""of CPython's state at least: a thread that waits for the GIL waits at an address in it"""


class Stall(NamedTuple):
    """A time at which the loop came back late. Times are of ``time.monotonic``, in seconds."""

    at: float
    seconds: float
    computing: float
    """of these the loop's thread computed"""
    queueing: float
    """of these it waited for a core"""


class Beats:
    """Beats of the event loop that runs in the main thread of this process."""

    def __init__(self, folder: Path) -> None:
        """Write to ``folder``, which a Looker reads."""
        with (folder / "beats").open("w+b") as file:
            file.truncate(mmap.PAGESIZE)
            self._shared = mmap.mmap(file.fileno(), 0)
        self._stacks = (folder / "stacks").open("w")
        faulthandler.register(signal.SIGUSR1, file=self._stacks, all_threads=True)
        self._layout = _layout()

    async def watch(self, stalls: list[Stall]) -> None:
        """Beat, and note each time that the loop comes back late."""
        with open("/proc/thread-self/schedstat", "rb") as file:
            while True:
                before, computing, queueing = time.monotonic(), *_scheduled(os.pread(file.fileno(), 99, 0))
                SHARED.pack_into(self._shared, 0, before, *self._layout)
                await asyncio.sleep(PERIOD)
                late = time.monotonic() - before - PERIOD
                if late > PERIOD:
                    now = _scheduled(os.pread(file.fileno(), 99, 0))
                    stalls.append(Stall(before + PERIOD, late, now[0] - computing, now[1] - queueing))

    def end(self) -> None:
        """Beat no more."""
        SHARED.pack_into(self._shared, 0, 0.0, *self._layout)


def _scheduled(text: bytes) -> tuple[float, float]:
    """Read seconds of computing and of waiting for a core from a schedstat."""
    computing, queueing, _ = text.split()
    return int(computing) / 1e9, int(queueing) / 1e9


def _layout() -> tuple[int, int, int]:
    """Find by trying, in several threads, where CPython has what ``SHARED`` names."""
    get = ctypes.pythonapi.PyThreadState_Get
    get.restype = ctypes.c_void_p
    runtime = ctypes.addressof(ctypes.c_char.in_dll(ctypes.pythonapi, "_PyRuntime"))

    def places(address: int, words: int, value: int) -> set[int]:
        found = (ctypes.c_uint64 * words).from_address(address)
        return {8 * at for at, word in enumerate(found) if word == value}

    def look() -> None:
        state = get()
        holders.append(places(runtime, 1000, state))
        numbers.append(places(state, 40, threading.get_ident()))

    holders: list[set[int]] = []
    numbers: list[set[int]] = []
    for _ in range(3):
        thread = threading.Thread(target=look)
        thread.start()
        thread.join()
    return runtime, runtime + min(set.intersection(*holders)), min(set.intersection(*numbers))


class _Look(NamedTuple):
    at: float
    waits_for: str
    """disk, the GIL, or something else; empty: it is running, or waits for a core"""
    holder: str
    """thread that has the GIL, as in the stacks"""


class Looker(threading.Thread):
    """Looks, from another process, at one whose ``Beats`` do not come, until it has ended."""

    def __init__(self, pid: int, folder: Path) -> None:
        super().__init__(daemon=True)
        self._pid, self._folder = pid, folder
        self._looks: list[_Look] = []
        self._asked: list[tuple[float, int]] = []
        """when stacks were asked for, and where in the file they begin"""
        self._spent: list[tuple[float, dict[str, float]]] = []
        """when, and the seconds that each thread had computed by then"""
        self._memory: int | None = None

    def run(self) -> None:
        """Look again and again."""
        while Path(f"/proc/{self._pid}").exists():
            with suppress(OSError, struct.error):  # it has not begun, or has ended
                self._look()
            time.sleep(EVERY)

    def _look(self) -> None:
        beat, runtime, current, number = SHARED.unpack_from((self._folder / "beats").read_bytes())
        late = time.monotonic() - beat
        if beat and late > LATE / 2:
            self._look_at(runtime, current, number)
            if late > LATE and (not self._asked or self._asked[-1][0] < max(beat, time.monotonic() - LATE)):
                self._ask_for_stacks()

    def _look_at(self, runtime: int, current: int, number: int) -> None:
        main = Path(f"/proc/{self._pid}/task/{self._pid}")
        state = (main / "stat").read_text().rpartition(")")[2].split()[0]
        call = (main / "syscall").read_text().split()
        waits_for = ""
        if state != "R":
            at = int(call[1], 16) if len(call) > 1 and call[0] == "202" else 0  # a futex
            in_runtime = runtime <= at < runtime + RUNTIME_BYTES
            waits_for = "disk" if state == "D" else "GIL" if in_runtime else "else"
        self._looks.append(_Look(time.monotonic(), waits_for, self._holder(current, number)))
        spent = {}
        for task in Path(f"/proc/{self._pid}/task").iterdir():
            with suppress(OSError, ValueError):
                spent[f"{(task / 'comm').read_text().strip()} {task.name}"] = _scheduled(
                    (task / "schedstat").read_bytes()
                )[0]
        self._spent.append((time.monotonic(), spent))

    def _holder(self, current: int, number: int) -> str:
        if self._memory is None:
            self._memory = os.open(f"/proc/{self._pid}/mem", os.O_RDONLY)
        [state] = struct.unpack("Q", os.pread(self._memory, 8, current))
        return f"{struct.unpack('Q', os.pread(self._memory, 8, state + number))[0]:016x}" if state else ""

    def _ask_for_stacks(self) -> None:
        self._asked.append((time.monotonic(), (self._folder / "stacks").stat().st_size))
        os.kill(self._pid, signal.SIGUSR1)

    def causes(self, stalls: Sequence[Stall]) -> list[dict[str, object]]:
        """Explain those of ``stalls`` that are longer than LATE, the longest first: where their seconds went, what the
        loop was at, and what the threads that had the GIL were at.
        """
        found = sorted((stall for stall in stalls if stall.seconds > LATE), key=lambda s: s.seconds, reverse=True)
        return [self._cause(stall) for stall in found]

    def _cause(self, stall: Stall) -> dict[str, object]:
        end = stall.at + stall.seconds
        looks = [look for look in self._looks if stall.at <= look.at <= end]
        waiting = Counter(look.waits_for for look in looks if look.waits_for)
        left = max(stall.seconds - stall.computing - stall.queueing, 0.0)
        share = {name: left * count / waiting.total() for name, count in waiting.items()}
        stacks = self._stacks(stall.at, end)
        holders = Counter(look.holder for look in looks if look.waits_for == "GIL" and look.holder)
        spent = [spent for at, spent in self._spent if stall.at <= at <= end]
        most = Counter({name: spent[-1][name] - spent[0].get(name, 0.0) for name in spent[-1]}) if spent else Counter()
        return {
            "seconds": round(stall.seconds, 3),
            "computing": round(stall.computing, 3),
            "waiting_for_a_core": round(stall.queueing, 3),
            "waiting_for_disk": round(share.get("disk", 0.0), 3),
            "waiting_for_the_gil": round(share.get("GIL", 0.0), 3),
            "waiting_for_something_else": round(share.get("else", 0.0), 3),
            "not_seen": 0.0 if waiting else round(left, 3),
            "loop_at": stacks.get("main", ""),
            "gil_held": {stacks.get(who, who): f"{count} of {len(looks)} looks" for who, count in holders.items()},
            "computed_most": {name: round(seconds, 3) for name, seconds in most.most_common(3) if seconds > 0.02},
        }

    def _stacks(self, start: float, end: float) -> Mapping[str, str]:
        """Return the innermost frames of each thread, by its number, at the first time they were asked for in a stall;
        "main" is the loop's, which is the last of a dump.
        """
        at = next((number for number, (when, _) in enumerate(self._asked) if start <= when <= end), None)
        if at is None:
            return {}
        after = [offset for _, offset in self._asked[at + 1 :]]
        with (self._folder / "stacks").open() as file:
            file.seek(self._asked[at][1])
            text = file.read(after[0] - self._asked[at][1] if after else -1)
        found = {}
        for block in text.split("\n\n"):
            head, *frames = block.strip().splitlines() or [""]
            if number := re.search(r"hread 0x([0-9a-f]+)", head):
                names = [re.sub(r'.*?([^/"]+)", line (\d+) in (.*)', r"\1:\2 \3", frame) for frame in frames[:7]]
                found[number[1]] = found["main"] = " < ".join(names)
        return found
