"""Who gets the CPU when there are more busy processes than cores: the learner ranks first, then those that feed them.

Ranks wait for each other, so one that waits for a core makes all of them wait; engines and verifiers run ahead of the
learner and have time to spare.
"""

from __future__ import annotations

import os
from pathlib import Path

BEHIND = 15
"""niceness of what gives way; an unprivileged process can raise it and never lower it again"""


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
