"""CPU and memory of a machine that runs several processes: who gets the cores, and who keeps freed memory.

Ranks wait for each other, so one that waits for a core makes all of them wait. Engines and verifiers run ahead of the
learner and have time to spare; so they run at a lower priority.
"""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

import psutil

BEHIND = 15
"""niceness of engines and verifiers; an unprivileged process can raise it and never lower it again"""
KEEP_BLOCKS = {"MALLOC_MMAP_THRESHOLD_": str(2**33), "MALLOC_TRIM_THRESHOLD_": str(2**33)}
"""environment of a rank on CPU: malloc keeps large blocks. Each step needs the same ones again, and having the kernel
map and zero them again costs 7 to 10 % of it. Steps of varied sizes leave gaps, though, which add up"""
SPARE = 0.3
"""share of the machine's memory that has to be available for blocks to be kept"""


def give_way() -> None:
    """Let this process, and those that it starts from now on, run behind the learner ranks of the same machine.

    On a cluster whose ``ray start`` had no RAY_worker_niceness=0 all workers are nice already, and stay as they are.
    """
    niceness = max(BEHIND, os.getpriority(os.PRIO_PROCESS, 0))
    for thread in Path("/proc/self/task").iterdir():  # Linux keeps the niceness of each thread by itself
        try:
            os.setpriority(os.PRIO_PROCESS, int(thread.name), niceness)
        except ProcessLookupError:
            continue  # it ended meanwhile


def give_back_unless_spare() -> bool:
    """Return freed memory to the kernel when the machine runs short of it, and say whether that was done. Without it
    SmolLM2's learner grew from 11 to 16.6 GiB in 40 steps of bf16.
    """
    memory = psutil.virtual_memory()
    if memory.available >= SPARE * memory.total:
        return False
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # of glibc; other C libraries do not know KEEP_BLOCKS either
    return trim is not None and bool(trim(0))
