"""Autoscaling: how many rollout workers a run should have, from which lane waited for the other (rollout.autoscale).

Sampling is taken to go with the number of workers. If the learner waits a share w of its time, a step takes
work / (1 - w); for it to wait only the target share, groups must come (1 - target) / (1 - w) times as fast. If the
workers wait a share e of theirs, (1 - e) of them would do, with a little room.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from lpo_ray.telemetry.stage_clock import WAIT, Seconds, shares

STEPS = 4
"""steps between two changes: the first ones after a change show the lanes filling up"""
ROOM = 0.1
"""share of their time that workers should wait, so that a long response does not stall the learner"""
MOST = 2
"""largest factor of one change: more is a guess"""


@dataclass(frozen=True, slots=True)
class AutoscaleRule:
    """Rule to have ``least`` to ``most`` workers, so that the learner waits at most ``target_wait`` of its time."""

    least: int
    most: int
    target_wait: float


class Autoscaler:
    """Collector of steps, that says when another number of workers is wanted."""

    def __init__(self, rule: AutoscaleRule) -> None:
        self._rule = rule
        self._begin(0)

    def step(self, seconds: Seconds, workers: int) -> int | None:
        """Count a step that was done with ``workers`` serving. Returns the number to have from now on, None: as it is.

        The steps of another number of workers (one came, one died, a user scaled) say nothing about this one: the count
        begins again.
        """
        if workers != self._workers:
            self._begin(workers)
        self._steps += 1
        if self._steps == 1:
            return None  # the lanes fill up, after a change or the start
        for total, new in ((self._engines, seconds.engines), (self._learner, seconds.learner)):
            for stage, value in new.items():
                total[stage] = total.get(stage, 0.0) + value
        if self._steps <= STEPS or not workers:
            return None
        wanted = self._wanted(workers)
        self._begin(workers)
        return wanted if wanted != workers else None

    def _begin(self, workers: int) -> None:
        self._workers = workers
        self._steps = 0
        self._engines: dict[str, float] = {}
        self._learner: dict[str, float] = {}

    def _wanted(self, workers: int) -> int:
        rule = self._rule
        learner_waits, workers_wait = shares(self._learner)[WAIT], shares(self._engines)[WAIT]
        wanted = workers
        if learner_waits > rule.target_wait:
            factor = (1 - rule.target_wait) / max(1 - learner_waits, 1e-3)
            wanted = min(math.ceil(workers * factor), MOST * workers)
        elif workers_wait > ROOM:
            wanted = math.ceil(workers * (1 - workers_wait) / (1 - ROOM))
        return min(max(wanted, rule.least), rule.most)
