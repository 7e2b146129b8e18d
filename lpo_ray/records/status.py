"""Status: which weights are served, by which workers, who is busy, and what waits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from lpo_ray.records.groups import Key


@dataclass(frozen=True, slots=True)
class WeightsVersion:
    """Identity of published weights: the step that made them and the digest of the bytes."""

    step: int
    digest: str

    def __str__(self) -> str:
        return f"{self.step}:{self.digest[:12]}"


WorkerState = Literal["starting", "serving", "lent", "out", "leaving"]


@dataclass(frozen=True, slots=True)
class WorkerStatus:
    """One rollout worker, as users see it."""

    name: str
    state: WorkerState
    """starting: its engine is being built, or waits for its first weights; out: it failed and is being replaced, or was
    given up; leaving: it gets no new groups, and ends those that it has
    """
    version: WeightsVersion | None
    """of the weights it has proved to serve"""
    restarts: int
    detail: str
    """why it was taken out last; empty if it never was"""


@dataclass(frozen=True, slots=True)
class Process:
    """Where a component runs.

    Example: ``Process(4711, "0f3c...", "10.0.0.3", ("/tmp/ray/.../worker-1.out", "/tmp/ray/.../worker-1.err"))``
    """

    pid: int
    node_id: str
    """Ray's name of the machine; empty without Ray"""
    host: str
    """address or name of the machine"""
    logs: tuple[str, ...]
    """files of its standard output and error"""
    oom_kills: int = 0
    """processes that the machine's kernel had killed for lack of memory when this one started"""


@dataclass(frozen=True, slots=True)
class BusyWorker:
    """Who is at work on a stage, and on what. Made by components, read by the watchdog.

    Example: ``BusyWorker("rollout worker 1", "12 groups, oldest train-00000012 attempt 0", 1_700_000_000.0, process)``
    """

    name: str
    doing: str
    since: float | None
    """unix seconds; None: for as long as the stage"""
    process: Process | None
    """None: it has none, such as a worker whose process is being started"""

    @staticmethod
    def of_groups(name: str, groups: Mapping[Key, float], process: Process | None) -> BusyWorker:
        """Who holds ``groups``, at least one: key -> unix seconds since when."""
        oldest = min(groups, key=lambda key: groups[key])
        count = f"{len(groups)} group{'s' * (len(groups) > 1)}"
        return BusyWorker(name, f"{count}, oldest {oldest[0]} attempt {oldest[1]}", groups[oldest], process)


@dataclass(frozen=True, slots=True)
class Publication:
    """One publish: what arrived where, and what it took. Made by the transport, read by telemetry."""

    version: WeightsVersion
    num_bytes: int
    """sent to each engine"""
    seconds: float
    """from the first gather to the last proof"""
    workers: tuple[WorkerStatus, ...]
    difference: float
    """largest, between the engines' log-probs of the probe and the learner's"""
    phases: Mapping[str, float]
    """prepare, transfer, prove -> seconds, of the attempt that succeeded"""


@dataclass(frozen=True, slots=True)
class Backlog:
    """What the sample lane holds when a step is done. Made by the sample lane, read by telemetry.

    Example: ``Backlog(on_the_way=40, waiting=24, num_bytes=9_000_000, sampled_tokens=11_500)``
    """

    on_the_way: int
    """groups that are being sampled or verified"""
    waiting: int
    """scored groups that wait to be trained"""
    num_bytes: int
    """of the groups that have a place, those of the step included; a group on its way counts as the largest possible"""
    sampled_tokens: int
    """response tokens of the groups that were scored since the step before"""
