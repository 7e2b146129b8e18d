"""Restart budgets: a failed process is restarted a few times within a window, each time after a longer pause."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RestartRule:
    """Limits of a restart budget: ``max_restarts`` within any ``window_seconds``.

    The first restart is immediate; the n-th after it waits backoff_seconds x 2^(n-1).
    """

    max_restarts: int
    window_seconds: float
    backoff_seconds: float


class RestartBudget:
    """Restart budget of one process, or of a group restarted together."""

    def __init__(self, rule: RestartRule, clock: Callable[[], float] = time.monotonic) -> None:
        self._rule, self._clock = rule, clock
        self._recent: deque[float] = deque()
        self.spent = 0
        """restarts so far"""

    def spend(self) -> float | None:
        """Count one restart and return the seconds to wait before it. None: the budget is spent."""
        now = self._clock()
        while self._recent and now - self._recent[0] >= self._rule.window_seconds:
            self._recent.popleft()
        if len(self._recent) >= self._rule.max_restarts:
            return None
        pause = self._rule.backoff_seconds * 2 ** (len(self._recent) - 1) if self._recent else 0.0
        self._recent.append(now)
        self.spent += 1
        return pause

    def __str__(self) -> str:
        rule = self._rule
        return f"{len(self._recent)} of {rule.max_restarts} restarts in {rule.window_seconds:g} s"
