"""Status: which weights are served by which workers, which of them are busy, and what waits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from lpo_ray.records.groups import Key


@dataclass(frozen=True, slots=True)
class WeightsVersion:
    """Identity of published weights: the step that made them and the digest of their bytes."""

    step: int
    digest: str

    def __str__(self) -> str:
        return f"{self.step}:{self.digest[:12]}"


WorkerState = Literal["starting", "serving", "lent", "out", "leaving"]


@dataclass(frozen=True, slots=True)
class WorkerStatus:
    """Status of one rollout worker, as users see it."""

    name: str
    state: WorkerState
    """starting: its engine is being built, or waits for its first weights. serving: it samples. lent: an evaluation has
    it. out: it failed and is being replaced, or was given up. leaving: it finishes its groups and gets no new ones
    """
    version: WeightsVersion | None
    """weights that it has proved to serve"""
    restarts: int
    detail: str
    """why it was last taken out of service; empty if it never was"""


@dataclass(frozen=True, slots=True)
class Process:
    """Process of a component, and where it runs.

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
    """processes that the kernel had killed for lack of memory before this one started"""
    started: int = 0
    """clock ticks from the boot of its machine to its start: another process may get its pid later. 0: not known"""


@dataclass(frozen=True, slots=True)
class BusyWorker:
    """A worker that is busy with a stage. Made by components, read by the watchdog.

    Example: ``BusyWorker("rollout worker 1", "12 groups, oldest train-00000012 attempt 0", 1_700_000_000.0, process)``
    """

    name: str
    doing: str
    since: float | None
    """unix seconds; None: since the stage began"""
    process: Process | None
    """None: it has none yet"""

    @staticmethod
    def of_groups(name: str, groups: Mapping[Key, float], process: Process | None) -> BusyWorker:
        """Make the record of a worker that holds ``groups``, at least one: key -> unix seconds since when."""
        oldest = min(groups, key=lambda key: groups[key])
        count = f"{len(groups)} group{'s' * (len(groups) > 1)}"
        return BusyWorker(name, f"{count}, oldest {oldest[0]} attempt {oldest[1]}", groups[oldest], process)


@dataclass(frozen=True, slots=True)
class Publication:
    """Report of one publish, made by the transport: what arrived where, and how long it took."""

    version: WeightsVersion
    num_bytes: int
    """sent to each engine"""
    seconds: float
    """from the first gather to the last proof"""
    workers: tuple[WorkerStatus, ...]
    difference: float
    """largest difference between the engines' log-probs of the probe and the learner's"""
    phases: Mapping[str, float]
    """prepare, join, gather (of the first bucket), transfer, prove -> seconds, of the attempt that succeeded"""
    proof: Mapping[str, float] = field(default_factory=dict)
    """typical (difference in nats), baseline (with equal weights), typical_limit, limit (of the largest)"""


@dataclass(frozen=True, slots=True)
class Backlog:
    """Groups that the sample lane holds when a step is done.

    Example: ``Backlog(on_the_way=40, waiting=24, num_bytes=9_000_000, sampled_tokens=11_500)``
    """

    on_the_way: int
    """groups that are being sampled or verified"""
    waiting: int
    """scored groups that wait to be trained"""
    num_bytes: int
    """bytes of all groups held, those of the step included; a group on its way counts as the largest possible"""
    sampled_tokens: int
    """response tokens of the groups scored since the step before"""
