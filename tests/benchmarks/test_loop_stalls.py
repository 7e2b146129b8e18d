"""What an event loop was late for is told apart, from another process."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.benchmarks.loop_stalls import Looker, Stall

LATE = """
import asyncio, gc, json, re, sys, threading, time
from pathlib import Path
from tests.benchmarks.loop_stalls import Beats

def burn():
    re.match(r"(a*)*b", "a" * 24)

async def main():
    beats, stalls = Beats(Path(sys.argv[1])), []
    watch = asyncio.create_task(beats.watch(stalls))
    await asyncio.sleep(0.1)
    thread = threading.Thread(target=burn)
    thread.start()
    while thread.is_alive():
        await asyncio.sleep(0.01)
    time.sleep(0.6)
    await asyncio.sleep(0.05)
    end = time.process_time() + 0.6
    while time.process_time() < end:
        pass
    await asyncio.sleep(0.05)
    beats.end()
    print(json.dumps(stalls))

asyncio.run(main())
"""


@pytest.mark.skipif(not Path("/proc/self/syscall").exists(), reason="the kernel does not say what a thread waits for")
def test_waiting_for_the_gil_sleeping_and_computing_are_told_apart(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", LATE, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    looker = Looker(process.pid, tmp_path)
    looker.start()
    said, _ = process.communicate()
    looker.join()
    stalls = sorted((Stall(*values) for values in json.loads(said)), key=lambda stall: stall.seconds)[-3:]
    gil, asleep, busy = (looker.causes([stall])[0] for stall in sorted(stalls))
    assert any("burn" in stack for stack in gil["gil_held"])  # pyright: ignore
    assert gil["waiting_for_the_gil"] > gil["waiting_for_something_else"]  # pyright: ignore
    assert asleep["waiting_for_something_else"] == pytest.approx(0.6, abs=0.3)
    assert asleep["computing"] < 0.1  # pyright: ignore
    assert busy["computing"] == pytest.approx(0.6, abs=0.1)
    assert "main" in str(busy["loop_at"])
