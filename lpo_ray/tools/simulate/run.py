"""One simulated run: the real loop, gate, ledger and pool, and what the controller's process spends on them."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import multiprocessing
import resource
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.table import Table
from typing_extensions import override

from lpo_ray.common.restart_budget import RestartRule
from lpo_ray.common.seeds import derive_seed
from lpo_ray.config.schema import Config
from lpo_ray.errors import ConfigError, GroupLost
from lpo_ray.interfaces import Events, Observer, RolloutEngine
from lpo_ray.records import (
    AfterGroup,
    BusyWorker,
    Key,
    Process,
    Prompt,
    StepRecord,
    StepReport,
    TargetGroup,
    TrainBatch,
    WorkerStatus,
)
from lpo_ray.rollout.conversations import ConversationRollout
from lpo_ray.rollout.pool import PoolSettings, RolloutPool
from lpo_ray.run.settings import loop_settings
from lpo_ray.run.signals import first_cause
from lpo_ray.run.spec import RunSpec
from lpo_ray.telemetry.stage_clock import WAIT, StageClock
from lpo_ray.tools.simulate import virtual_time
from lpo_ray.tools.simulate.components import (
    ANSWER_TOKENS,
    ActiveClock,
    Hardware,
    SimulatedEngine,
    SimulatedEnvironments,
    SimulatedLearner,
    SimulatedTargetBuilder,
    SimulatedTransport,
    SimulatedVerifier,
)
from lpo_ray.training.checkpoint import CheckpointRules
from lpo_ray.training.ledger import Ledger
from lpo_ray.training.ledger_audit import audit
from lpo_ray.training.loop import LoopSettings, TrainingLoop

PROMPT_TOKENS = 64
COLUMNS = (
    "engines", "groups/s", "learner idle", "engines idle", "staleness", "stale", "lost", "core", "us/group", "MiB",
    "books",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class SimulationResult:
    """Result of a simulated run, without its first and last steps, in which the lanes fill up and run empty.

    Seconds are virtual unless the name says otherwise.
    """

    engines: int
    steps: int
    seconds: float
    learner_idle: float
    engines_idle: float
    """share of the engines' slots that held no response"""
    staleness: tuple[float, ...]
    """share of groups trained at staleness 0, 1, ..."""
    groups_per_second: float
    lost: int
    stale: int
    restarts: int
    controller_core: float
    """CPU seconds of this process, the simulated components' included, for each virtual second"""
    controller_microseconds_per_group: float
    peak_mib: float
    """resident memory of this process at most"""
    balances: bool


@dataclass(slots=True)
class _Components:
    """Components that are simulated, around a real pool."""

    pool: RolloutPool[SimulatedEngine]
    rollout: RolloutEngine
    """the pool, or what conducts conversations with it"""
    verifier: SimulatedVerifier
    target_builder: SimulatedTargetBuilder
    learner: SimulatedLearner
    transport: SimulatedTransport

    def lend(self) -> None:
        """Lend no engine: nothing is evaluated here."""

    def busy(self, stage: str) -> list[BusyWorker]:
        """Name nobody: no run is watched here."""
        return []

    def silence_of(self, key: Key) -> float:
        """Return none: an engine that fails says so."""
        return 0.0

    async def inspect(self, process: Process) -> str:
        """Say that there is no process."""
        return "simulated"

    async def scale(self, role: str, count: int) -> str:
        """Aim at ``count`` engines, whatever the role."""
        return self.pool.scale(count)

    async def close(self) -> None:
        """End the engines."""
        await self.pool.close()


class _Source:
    """Source of prompts without text."""

    def train(self, index: int) -> Prompt:
        """Prompt number ``index``: always the same tokens."""
        return Prompt(f"train-{index:08d}", np.ones(PROMPT_TOKENS, np.int64), "", "simulated")

    def heldout(self, count: int) -> Sequence[Prompt]:
        """Return none: nothing is evaluated."""
        return []


@dataclass(frozen=True, slots=True)
class _Moment:
    """Totals at the end of a step."""

    seconds: float
    cpu: float
    decoded: int


class _Notes(Observer, Events):
    """Counter of what the result is made of, between the end of two steps."""

    def __init__(self, first: int, last: int, engines: ActiveClock) -> None:
        """Counts the steps after ``first`` up to ``last``."""
        self._clock = StageClock(lambda: asyncio.get_running_loop().time())
        self._first, self._last, self._engines = first, last, engines
        self.begin = self.end = _Moment(0.0, 0.0, 0)
        self.staleness: Counter[int] = Counter()
        self.idle, self.groups, self.restarts = 0.0, 0, 0

    @override
    def stage(self, name: str) -> contextlib.AbstractContextManager[None]:
        return self._clock.stage(name)

    @override
    async def learned(
        self,
        batch: TrainBatch,
        targets: Sequence[TargetGroup],
        report: StepReport,
        after: Mapping[Key, AfterGroup],
    ) -> None:
        pass

    @override
    def step_ends(self) -> Callable[[StepRecord], None]:
        return lambda record: None

    @override
    def step_done(self, record: StepRecord) -> None:
        lap = self._clock.lap()
        now = _Moment(asyncio.get_running_loop().time(), time.process_time(), self._engines.decoded)
        if record.step == self._first:
            self.begin = now
        elif self._first < record.step <= self._last:
            self.end = now
            self.idle += lap.learner[WAIT]
            self.groups += len(record.targets)
            self.staleness.update(record.step - 1 - target.group.oldest_version for target in record.targets)

    @override
    def lost(self, lost: GroupLost) -> None:
        pass

    @override
    def left_out(self, prompt_id: str, reason: str) -> None:
        pass

    @override
    def score(self, name: str) -> float | None:
        return None

    @override
    def evidence(self) -> str:
        return ""

    @override
    def note(self, text: str) -> None:
        pass

    @override
    def workers(self, workers: Sequence[WorkerStatus]) -> None:
        self.restarts = sum(worker.restarts for worker in workers)

    @override
    def measured(self, values: Mapping[str, int]) -> None:
        pass

    def starting(self, name: str, seconds: float) -> AbstractContextManager[None]:
        """Show nothing."""
        return contextlib.nullcontext()


def simulate(config: Config, engines: int) -> SimulationResult:
    """Run the loop of ``config`` to its last step in virtual time, with ``engines`` engines, and with groups and
    learner ranks in proportion to those it has for rollout.num_workers.
    """
    least = 2 * config.pipeline.max_staleness + 2
    if config.run.steps < least:
        raise ConfigError(
            f"run.steps is {config.run.steps}; with pipeline.max_staleness={config.pipeline.max_staleness} a "
            f"simulation needs {least} or more: in the first and last steps the lanes fill up and run empty"
        )
    sim, scale = config.simulation, engines / config.rollout.num_workers
    pipeline = config.pipeline
    per_update = max(1, round(pipeline.groups_per_step * scale / pipeline.updates_per_step))
    world_size = max(1, round(config.learner.world_size * scale))
    config = dataclasses.replace(
        config,
        pipeline=dataclasses.replace(pipeline, groups_per_step=per_update * pipeline.updates_per_step),
        learner=dataclasses.replace(config.learner, world_size=world_size),
    )
    turns = 1
    if sim.mean_turns > 1:
        turns = config.sampling.max_turns
        config = dataclasses.replace(config, task=dataclasses.replace(config.task, environment="simulated"))
    spec = RunSpec(config, Path(), None, PROMPT_TOKENS + turns * (config.sampling.max_tokens + ANSWER_TOKENS), "")
    hardware = Hardware(
        mean_tokens=sim.mean_tokens,
        length_variation=sim.length_variation,
        slots=config.rollout.max_num_seqs,
        decode_rate=sim.decode_rate,
        train_rate=sim.train_rate * world_size,
        anchor_share=sim.anchor_share,
        verify_seconds=sim.verify_seconds,
        publish_seconds=sim.publish_seconds,
        mean_turns=sim.mean_turns,
        environment_seconds=sim.environment_seconds,
        hours_between_failures=sim.hours_between_failures,
        restart_seconds=sim.restart_seconds,
    )
    with tempfile.TemporaryDirectory(prefix="lpo-ray-simulation-") as name:
        rules = CheckpointRules(Path(name) / "checkpoints", every=0, keep=1, best=None)
        settings = dataclasses.replace(loop_settings(spec), checkpoints=rules, evaluate_every=0)
        try:
            return virtual_time.run(_simulated(settings, hardware, engines, spec.max_model_len, Path(name)))
        except BaseExceptionGroup as group:
            raise first_cause(group) from None


def simulate_each(config: Config, engines: Sequence[int]) -> Iterator[SimulationResult]:
    """Run ``simulate`` for each number of engines, in a process of its own, so that its memory can be told apart."""
    context = multiprocessing.get_context("spawn")
    for number in engines:
        with ProcessPoolExecutor(1, mp_context=context) as process:
            yield process.submit(simulate, config, number).result()


def render(outcomes: Sequence[SimulationResult]) -> Table:
    """Make a table with a row for each number of engines."""
    table = Table(title="in virtual time, without the steps in which lanes fill up or run empty", title_justify="left")
    for column in COLUMNS:
        table.add_column(column, justify="right", no_wrap=True)
    for o in outcomes:
        mean = sum(age * share for age, share in enumerate(o.staleness))
        table.add_row(
            f"{o.engines:,}", f"{o.groups_per_second:.1f}", f"{o.learner_idle:.1%}", f"{o.engines_idle:.1%}",
            f"{mean:.2f}", str(o.stale), str(o.lost), f"{o.controller_core:.3f}",
            f"{o.controller_microseconds_per_group:.0f}", f"{o.peak_mib:.0f}", "balance" if o.balances else "DO NOT",
        )  # fmt: skip
    return table


async def _simulated(
    settings: LoopSettings, hardware: Hardware, engines: int, most_tokens: int, folder: Path
) -> SimulationResult:
    clock = ActiveClock()
    ahead = settings.selection.max_staleness
    notes = _Notes(ahead + 1, settings.steps - ahead, clock)
    made: list[SimulatedEngine] = []

    def spawn(index: int, name: str) -> SimulatedEngine:
        seed = derive_seed(settings.batch.seed, "engine", index, len(made))
        replaces = len(made) >= engines  # the run begins with engines that are up
        made.append(SimulatedEngine(name, hardware, clock, seed, hardware.restart_seconds if replaces else 0.0))
        return made[-1]

    always = RestartRule(10**9, 1.0, 0.0)
    limits = PoolSettings(
        silence_seconds=1e6, start_seconds=1e6, place_seconds=0.0, drain_seconds=60.0, slots=2 * hardware.slots,
        restarts=always,
    )  # fmt: skip
    pool = RolloutPool(spawn, engines, settings=limits, events=notes)
    has_turns = hardware.mean_turns > 1
    components = _Components(
        pool,
        ConversationRollout(pool, SimulatedEnvironments(hardware), most_tokens) if has_turns else pool,
        SimulatedVerifier(hardware.verify_seconds),
        SimulatedTargetBuilder(),
        SimulatedLearner(hardware, settings.batch.packing.world_size),
        SimulatedTransport(pool, clock, hardware.publish_seconds),
    )
    await pool.start()
    first = (await components.transport.publish(0)).version
    ledger = Ledger(folder / "ledger.sqlite")
    try:
        await TrainingLoop(components, _Source(), ledger, settings, notes).run(first)
        counts = ledger.counts()
    finally:
        ledger.close()
        await components.close()
    seconds, cpu = notes.end.seconds - notes.begin.seconds, notes.end.cpu - notes.begin.cpu
    decoded = notes.end.decoded - notes.begin.decoded
    trained = sum(notes.staleness.values())
    return SimulationResult(
        engines=engines,
        steps=settings.steps,
        seconds=seconds,
        learner_idle=notes.idle / seconds,
        engines_idle=1 - decoded / hardware.decode_rate / (engines * hardware.slots * seconds),
        staleness=tuple(notes.staleness[age] / trained for age in range(settings.selection.max_staleness + 1)),
        groups_per_second=notes.groups / seconds,
        lost=counts["lost"],
        stale=counts["stale"],
        restarts=notes.restarts,
        controller_core=cpu / seconds,
        controller_microseconds_per_group=1e6 * cpu / notes.groups,
        peak_mib=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        balances=not audit(folder).violations,
    )
