"""Where the time goes: every instant of a run belongs to exactly one stage, so the shares add up to one."""

from __future__ import annotations

import contextlib
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator

PRIORITY = ("start", "project", "publish", "anchor", "evaluate", "sample", "verify", "checkpoint")
"""when several stages are at work, the instant belongs to the first of them: sampling that goes on behind a projection,
or a checkpoint behind sampling, costs the run nothing"""
WAIT = "wait"
"""no stage is at work"""


class StageClock:
    """Counts seconds by stage. Not thread-safe: one event loop."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now, self._since = now, now()
        self._active: Counter[str] = Counter()
        self._total: defaultdict[str, float] = defaultdict(float)
        self._lap: defaultdict[str, float] = defaultdict(float)

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """``name`` (one of PRIORITY) is at work inside; may be entered many times at once."""
        if name not in PRIORITY:
            raise ValueError(f"stage {name!r}; expected one of {', '.join(PRIORITY)}")
        self._attribute()
        self._active[name] += 1
        try:
            yield
        finally:
            self._attribute()
            self._active[name] -= 1

    def active(self) -> dict[str, int]:
        """Stages at work and how many times."""
        return {name: self._active[name] for name in PRIORITY if self._active[name]}

    def totals(self) -> dict[str, float]:
        """Seconds by stage since the start."""
        self._attribute()
        return {name: self._total[name] for name in (*PRIORITY, WAIT)}

    def lap(self) -> dict[str, float]:
        """Seconds by stage since the last lap."""
        self._attribute()
        seconds = {name: self._lap[name] for name in (*PRIORITY, WAIT)}
        self._lap.clear()
        return seconds

    def _attribute(self) -> None:
        now = self._now()
        name = next((name for name in PRIORITY if self._active[name]), WAIT)
        for counter in (self._total, self._lap):
            counter[name] += now - self._since
        self._since = now
