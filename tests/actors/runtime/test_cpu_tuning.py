"""Memory that is kept while there is some to spare; processes that give way to the learner's ranks."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from actors.runtime.cpu_tuning import KEEP_BLOCKS

LEAVES_GAPS = """
import ctypes, sys
import psutil
from actors.runtime import cpu_tuning
blocks = [bytearray(b"x") * 2**22 for _ in range(100)]
last = bytearray(b"x") * 2**22  # at the top: without it all below would be one block there
del blocks
resident = lambda: psutil.Process().memory_info().rss / 2**20
before = resident()
cpu_tuning.SPARE = float(sys.argv[1])
gave = cpu_tuning.give_back_unless_spare()
print(int(gave), before, before - resident())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs glibc")
@pytest.mark.parametrize(("spare", "gives"), [(0.0, False), (2.0, True)])
def test_gaps_are_given_back_only_when_memory_is_short(spare: float, gives: bool) -> None:
    found = subprocess.run(
        [sys.executable, "-c", LEAVES_GAPS, str(spare)], env={**os.environ, **KEEP_BLOCKS}, capture_output=True,
        text=True, check=True,
    )  # fmt: skip
    gave, before, less = map(float, found.stdout.split())
    assert bool(gave) is gives
    assert before > 400  # kept, though nobody uses them
    assert less > 350 if gives else less < 10
