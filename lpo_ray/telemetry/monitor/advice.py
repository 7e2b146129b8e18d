"""Advice and alarms: what to change so that neither lane waits for the other, and what in a step deserves a warning."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import cast

from lpo_ray.telemetry.metrics import Value
from lpo_ray.telemetry.stage_clock import Seconds, shares

FIRST_STEPS = 10
"""steps before the first advice: the first ones also warm caches up"""
EVERY_STEPS = 50
"""steps between two pieces of advice"""
LIMIT = 0.25
"""share of a lane's time that it may wait without advice"""
MOST = 4
"""factor by which more of something is proposed, at most: beyond it one has to measure again"""


@dataclass(frozen=True, slots=True)
class Setup:
    """Settings that decide which lane waits for the other."""

    max_staleness: int
    num_workers: int
    world_size: int
    num_processes: int
    """processes of the verifier"""
    in_process: bool = False
    """whether everything runs in one process: no count can be raised, and nothing overlaps"""


def advise(engines: Mapping[str, float], learner: Mapping[str, float], setup: Setup) -> str | None:
    """Return one line, or None when no lane waits for more than LIMIT of its time. ``engines`` and ``learner`` are
    shares by stage.

    The numbers proposed are ratios of busy times: if one worker samples for 0.9 of the time and the learner works for
    0.3 of it, three workers keep the learner busy. That supposes that work divides without loss.
    """
    if setup.in_process:
        return None
    sampling, verifying = engines["sample"], engines["verify"]
    learning = learner["project"] + learner["anchor"]
    engines_wait, learner_waits = engines["wait"], learner["wait"]
    if verifying > LIMIT and sampling:
        wanted = _times(setup.num_processes, (sampling + verifying) / sampling)
        return (
            f"engines have nothing to sample for {_percent(verifying)} of the time, while groups are verified: add "
            f"verifier processes (verifier.num_processes={wanted})"
        )
    if engines_wait > LIMIT and learner_waits > LIMIT:
        behaviour = "" if setup.max_staleness else " with objective.behaviour=engine"
        return (
            f"learner waits {_percent(learner_waits)}, engines wait {_percent(engines_wait)}: they take turns; "
            f"pipeline.max_staleness={setup.max_staleness + 1}{behaviour} lets them overlap"
        )
    if learner_waits > LIMIT and sampling > learning > 0:
        wanted = _times(setup.num_workers, sampling / learning)
        how = f"lpo-ray scale RUN rollout={wanted}, or rollout.num_workers={wanted}"
        return f"learner waits {_percent(learner_waits)} for groups: add rollout workers ({how})"
    if engines_wait > LIMIT and learning > sampling > 0:
        wanted = _times(setup.world_size, learning / sampling)
        enough = math.ceil(setup.num_workers * sampling / learning)
        fewer = f" or fewer rollout workers (lpo-ray scale RUN rollout={enough})" if enough < setup.num_workers else ""
        return (
            f"engines wait {_percent(engines_wait)} for the learner: more learner ranks (learner.world_size={wanted})"
            f"{fewer}"
        )
    return None


def alarms(metrics: Mapping[str, Value], entropy_alarm: float) -> Iterator[str]:
    """Yield one sentence for each thing in a step's metrics that deserves a warning: skipped updates, and a mean token
    entropy below ``entropy_alarm`` nats.
    """
    step, entropy = metrics["step"], float(str(metrics["token_entropy"]))
    if metrics["skipped_updates"]:
        where = "; ".join(cast("list[str]", metrics["not_finite"])[:3])
        yield f"step {step}: {metrics['skipped_updates']} updates skipped, NaN or Inf in {where}"
    if entropy < entropy_alarm:
        yield (
            f"step {step}: token entropy is {entropy:.4f} nats, below telemetry.entropy_alarm={entropy_alarm:g}: the "
            "policy hardly explores any more"
        )


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _times(count: int, factor: float) -> int:
    """Multiply ``count`` by ``factor``, rounded up, and by MOST at most."""
    return min(math.ceil(count * factor), MOST * count)


class Adviser:
    """Collector of steps that advises on them: after FIRST_STEPS, then after every EVERY_STEPS on those since."""

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._steps, self._due = 0, FIRST_STEPS
        self._engines: dict[str, float] = {}
        self._learner: dict[str, float] = {}
        self.latest: str | None = None
        """last advice; None when all was well, or too few steps are done"""

    def step(self, seconds: Seconds) -> str | None:
        """Add a step that is done. Returns advice when it is due and there is some."""
        for total, new in ((self._engines, seconds.engines), (self._learner, seconds.learner)):
            for stage, value in new.items():
                total[stage] = total.get(stage, 0.0) + value
        self._steps += 1
        if self._steps < self._due:
            return None
        self.latest = advise(shares(self._engines), shares(self._learner), self._setup)
        self._steps, self._due, self._engines, self._learner = 0, EVERY_STEPS, {}, {}
        return self.latest
