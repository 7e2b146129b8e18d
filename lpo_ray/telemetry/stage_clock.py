"""Clock of the stages: every instant of a run belongs to exactly one stage, so the shares add up to one.

The same holds for each of the two lanes that work at the same time, the engines and the learner: the run's own stages
do not show what one of them does while the other holds the run up.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

PRIORITY: tuple[str, ...] = ("start", "project", "publish", "anchor", "evaluate", "sample", "verify", "checkpoint")
"""order of the stages: when several are at work, the instant belongs to the first. Sampling that continues behind a
projection, or a checkpoint behind sampling, costs the run nothing"""
ENGINES: tuple[str, ...] = ("start", "publish", "sample", "evaluate", "verify")
"""PRIORITY for the engines alone: publish comes first, as nothing is decoded meanwhile; verify counts only when there
is nothing to sample"""
LEARNER: tuple[str, ...] = ("start", "project", "anchor", "publish", "evaluate", "checkpoint")
"""PRIORITY for the learner alone"""
WAIT = "wait"
"""name of the time in which no stage is at work"""


@dataclass(frozen=True, slots=True)
class Seconds:
    """Seconds by stage, of the run and of both lanes; all three have the same sum."""

    run: Mapping[str, float]
    """stages of PRIORITY, and wait"""
    engines: Mapping[str, float]
    """stages of ENGINES, and wait: there was nothing to sample, as the gate was closed"""
    learner: Mapping[str, float]
    """stages of LEARNER, and wait: there were no groups to train"""


@dataclass(frozen=True, slots=True)
class Start:
    """Start of one component."""

    since: float
    """on the clock of StageClock"""
    limit: float
    """seconds that it may take"""


class StageClock:
    """Counter of seconds by stage. Not thread-safe: one event loop."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self.now, self._since = now, now()
        self._active: dict[str, int] = {}
        self.active_since: dict[str, float] = {}
        """stages at work, and when the first of each was entered"""
        self.starts: dict[str, Start] = {}
        """components that are starting, by name"""
        self.moved_at = self._since
        """time of the last progress: a stage entered or left, or a call of ``moved``"""
        self._total, self._lap = _Lanes(), _Lanes()

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Count ``name``, one of PRIORITY, as at work inside. May be entered many times at once."""
        if name not in PRIORITY:
            raise ValueError(f"stage {name!r}; expected one of {', '.join(PRIORITY)}")
        if name not in self._active:
            self._attribute()
        self._active[name] = self._active.get(name, 0) + 1
        self.moved()
        self.active_since.setdefault(name, self.moved_at)
        try:
            yield
        finally:
            self._active[name] -= 1
            self.moved()
            if not self._active[name]:
                self._attribute()
                del self._active[name], self.active_since[name]

    @contextlib.contextmanager
    def starting(self, name: str, seconds: float) -> Iterator[None]:
        """Count the component ``name``, which may take ``seconds``, as starting inside."""
        self.moved()
        self.starts[name] = Start(self.moved_at, seconds)
        try:
            yield
        finally:
            del self.starts[name]
            self.moved()

    def moved(self) -> None:
        """Note progress inside a stage, such as one group of an evaluation."""
        self.moved_at = self.now()

    def active(self) -> dict[str, int]:
        """Return the stages at work, and how many times each."""
        return {name: self._active[name] for name in PRIORITY if name in self._active}

    def totals(self) -> Seconds:
        """Return the seconds since the start."""
        self._attribute()
        return self._total.seconds()

    def lap(self) -> Seconds:
        """Return the seconds since the last lap."""
        self._attribute()
        seconds, self._lap = self._lap.seconds(), _Lanes()
        return seconds

    def _attribute(self) -> None:
        now = self.now()
        for lanes in (self._total, self._lap):
            lanes.add(now - self._since, self._active)
        self._since = now


class _Lanes:
    """Counters behind one Seconds."""

    def __init__(self) -> None:
        self._lanes = [(order, dict.fromkeys((*order, WAIT), 0.0)) for order in (PRIORITY, ENGINES, LEARNER)]

    def add(self, seconds: float, active: Mapping[str, int]) -> None:
        for order, counter in self._lanes:
            counter[next((name for name in order if name in active), WAIT)] += seconds

    def seconds(self) -> Seconds:
        return Seconds(*(dict(counter) for _, counter in self._lanes))


def shares(seconds: Mapping[str, float]) -> dict[str, float]:
    """Return each stage's share of the time since the components were up: 0..1, sum 1; all 0 when none has passed."""
    counted = {name: value for name, value in seconds.items() if name != "start"}
    total = sum(counted.values())
    return {name: value / total if total else 0.0 for name, value in counted.items()}
