"""Recorder of a run: turns what the loop reports into metrics, samples, log, summary, report and progress."""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console

from lpo_ray.common.files import write_json
from lpo_ray.common.step_schedule import StepSchedule
from lpo_ray.config.schema import ProgressKind
from lpo_ray.errors import GroupLost
from lpo_ray.learner.settings import GridPoint
from lpo_ray.policy.tokenizer import Tokenizer
from lpo_ray.records import AfterGroup, Evaluation, Key, StepReport, TargetGroup, TrainBatch, WorkerStatus
from lpo_ray.telemetry.difficulty import Difficulty
from lpo_ray.telemetry.evaluations import Evaluations
from lpo_ray.telemetry.log import DRIVER, Level, LogFile, LogLine
from lpo_ray.telemetry.metrics import Value, step_metrics, worker_metrics
from lpo_ray.telemetry.monitor.advice import Adviser, Setup, alarms
from lpo_ray.telemetry.monitor.progress import Progress, step_line
from lpo_ray.telemetry.monitor.report import write_report
from lpo_ray.telemetry.monitor.watchdog import Watchdog
from lpo_ray.telemetry.samples import samples_path, write_samples
from lpo_ray.telemetry.sinks import MetricsLog, MetricsSink, TensorBoard
from lpo_ray.telemetry.stage_clock import Seconds, StageClock
from lpo_ray.telemetry.status import StatusFile
from lpo_ray.telemetry.summary import Summary
from lpo_ray.telemetry.trackers import TrackedRun, tracker_sinks
from lpo_ray.training.loop import StepRecord


@dataclass(frozen=True, slots=True)
class RecorderSettings:
    """Settings of the recorder of one run."""

    folder: Path
    run: str
    seed: int
    steps: int
    model: str
    task: str
    objective: dict[str, object]
    points: StepSchedule[GridPoint]
    """points of the grid, by step"""
    pass_reward: float
    samples_every: int
    tensorboard: bool
    trackers: tuple[str, ...]
    config: Mapping[str, object]
    """resolved configuration, for the trackers"""
    entropy_alarm: float
    progress: ProgressKind
    setup: Setup
    stall_seconds: float


class Recorder:
    """Observer of one run. ``resumed`` opens the sinks, ``close`` writes summary and report."""

    def __init__(
        self, settings: RecorderSettings, console: Console, tokenizer: Tokenizer, sinks: Sequence[MetricsSink] = ()
    ) -> None:
        """Write to ``sinks`` beside metrics.jsonl and what the settings name."""
        folder = settings.folder
        self._settings, self._tokenizer = settings, tokenizer
        self._clock = StageClock()
        self._progress = Progress(settings.progress, console, self._clock, settings.run, settings.steps)
        self._log = LogFile(folder / "log.jsonl")
        self._metrics = MetricsLog(folder / "metrics.jsonl")
        self._sinks: list[MetricsSink] = [self._metrics]
        if settings.tensorboard:
            self._sinks.append(TensorBoard(folder / "tensorboard"))
        self._sinks += tracker_sinks(settings.trackers, TrackedRun(settings.run, folder, settings.config), self.note)
        self._sinks += sinks
        self._evaluations = Evaluations(folder / "evaluations.json")
        self._last: Mapping[str, Value] = {}
        """metrics of the step that was written last"""
        self._seconds = self._clock.totals()
        """where the time of that step went"""
        self._tokens = 0
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="samples")
        self._difficulty = Difficulty(settings.pass_reward)
        self._adviser = Adviser(settings.setup)
        self._status = StatusFile(folder, settings.run, settings.steps)
        self.step = 0
        self.on_step: Callable[[Seconds], None] | None = None
        """called after each step with where its time went"""

    def stage(self, name: str) -> AbstractContextManager[None]:
        """Time what happens within as stage ``name``."""
        return self._clock.stage(name)

    def starting(self, name: str, seconds: float) -> AbstractContextManager[None]:
        """Show the component ``name``, which may take ``seconds``, as starting within."""
        return self._clock.starting(name, seconds)

    def watchdog(self) -> Watchdog:
        """Make the watchdog of this run."""
        return Watchdog(self._clock, self._settings.stall_seconds, self.note, self._status.show_waiting)

    def status(self) -> Mapping[str, object]:
        """Return what status.json says."""
        return self._status.content()

    def serving(self) -> int:
        """Count the rollout workers that serve; 0 while others come or go."""
        states = [worker["state"] for worker in self._status.workers.values()]
        return len(states) if all(state == "serving" for state in states) else 0

    def on_cluster(self, address: str) -> None:
        """Note that the run is on the Ray cluster at ``address``."""
        self._status.cluster = address

    def resumed(self, step: int) -> None:
        """Continue after ``step`` (0: start). What was written beyond it is dropped, to be written again."""
        kept = []
        for path in sorted((self._settings.folder / "samples").glob("step_*.parquet")):
            if int(path.stem.removeprefix("step_")) > step:
                path.unlink()
            else:
                kept.append(path)
        self._difficulty.resumed(kept)
        self._evaluations.resumed(step)
        for sink in self._sinks:
            sink.resumed(step)
        self._progress.resumed(self._metrics.read())
        self.step = self._status.step = step
        if step:
            self.note(f"resumed after step {step}")

    def lost(self, lost: GroupLost) -> None:
        """Log that a group was lost and is issued again."""
        self.log(self._line("warning", str(lost)))

    def left_out(self, prompt_id: str, reason: str) -> None:
        """Log that a prompt is left out for good."""
        self.log(self._line("warning", f"prompt {prompt_id} is left out: {reason}"))

    def note(self, text: str) -> None:
        """Log one line of the driver."""
        self.log(self._line("info", text))

    def ended(self, error: BaseException) -> None:
        """Log the error that ends the run."""
        self._log.append(self._line("error", str(error) or type(error).__name__))  # who runs the command shows it

    def log(self, line: LogLine) -> None:
        """Write a line of the driver or of a worker to log.jsonl, and show it where it is for the user."""
        self._progress.say(self._log.append(line))

    def worker_log(self, line: LogLine) -> None:
        """Log what a logger said, here or in a worker, with the step that was done last."""
        self.log(replace(line, step=self.step))

    def workers(self, workers: Sequence[WorkerStatus]) -> None:
        """Write the state of the rollout workers to status.json and the sinks."""
        self._status.update_workers(workers)
        self.measured(worker_metrics(workers))

    def measured(self, values: Mapping[str, int]) -> None:
        """Write counts that changed since the last step to the sinks."""
        for sink in self._sinks:
            sink.changed(values)

    async def learned(
        self,
        batch: TrainBatch,
        targets: Sequence[TargetGroup],
        report: StepReport,
        after: Mapping[Key, AfterGroup],
    ) -> None:
        """Write the samples of a step, if they are due. A thread decodes and encodes them, one step after the other."""
        settings, step = self._settings, batch.step + 1
        due = settings.samples_every and step % settings.samples_every == 0
        if not due and all(update.norms.applied for update in report.updates):
            return
        write = functools.partial(
            write_samples,
            samples_path(settings.folder, step),
            targets,
            report,
            step=step,
            learning_rate=batch.learning_rate,
            divergence=settings.points.at(batch.step).divergence,
            after=after,
            decode=self._tokenizer.decode,
        )
        await asyncio.get_running_loop().run_in_executor(self._writer, write)

    def step_ends(self) -> Callable[[StepRecord], None]:
        """Return what writes the metrics of the step that ends now, in a thread while it is being committed."""
        self._seconds = self._clock.lap()
        return self._write_step

    def _write_step(self, record: StepRecord) -> None:
        metrics = step_metrics(record, pass_reward=self._settings.pass_reward, seconds=self._seconds)
        metrics |= self._difficulty.step(record.targets)
        for sink in self._sinks:
            sink.append(metrics)
        self._last = metrics

    def step_done(self, record: StepRecord) -> None:
        """Say that a step is committed, whose metrics were written last."""
        settings, seconds, metrics = self._settings, self._seconds, self._last
        self.step = self._status.step = record.step
        self._status.version = str(record.publication.version)
        self._status.write()
        self._tokens += int(str(metrics["tokens"]))
        if self.on_step is not None:
            self.on_step(seconds)
        self._progress.step(metrics, self._log.append(self._line("info", step_line(metrics, settings.steps))))
        if advice := self._adviser.step(seconds):
            self.note(f"step {record.step}: {advice}")
        for alarm in alarms(metrics, settings.entropy_alarm):
            self.log(self._line("warning", alarm))

    def score(self, name: str) -> float | None:
        """Return a metric, or a value of the newest evaluation, for the last step; None: not measured."""
        evaluated = self._evaluations.after(self.step) or {}
        found = evaluated.get(name, self._last.get(name))
        return float(found) if isinstance(found, int | float) else None

    def evidence(self) -> str:
        """Name the file with the groups of the last step."""
        return str(samples_path(self._settings.folder, self.step))

    def evaluating(self, done: int, total: int) -> None:
        """Show how far an evaluation is."""
        self._clock.moved()
        self._progress.doing(f"{done}/{total} prompts" if done < total else "")

    async def evaluated(self, step: int, evaluation: Evaluation) -> None:
        """Write the evaluation of the policy after ``step``."""
        await asyncio.to_thread(self._evaluations.add, step, evaluation)
        scores = {f"evaluation_pass@{k}": value for k, value in evaluation.pass_at.items()}
        scores |= {f"evaluation_{name}": value for name, (value, _) in evaluation.of_turns.items()}
        for sink in self._sinks:
            sink.evaluated(step, scores)
        shown = "  ".join(
            f"pass@{k} {value:.3f} [{evaluation.ci95[k][0]:.3f}, {evaluation.ci95[k][1]:.3f}]"
            for k, value in evaluation.pass_at.items()
        )
        turns = f"  turns {evaluation.of_turns['turns'][0]:.2f}" if evaluation.of_turns else ""
        self.note(f"evaluation after step {step}: {shown}{turns}")
        self._clock.lap()

    def has_evaluated(self, step: int) -> bool:
        """Tell whether an evaluation of the policy after ``step`` is on record."""
        return self._evaluations.after(step) is not None

    def close(self, groups: dict[str, int], wall_seconds: float) -> None:
        """Write summary.json and report.html from what there is, and give the terminal back. Takes seconds."""
        settings = self._settings
        self._writer.shutdown()
        self._progress.close()
        self._status.ended = True
        self._status.write()
        summary = Summary(
            run=settings.run,
            seed=settings.seed,
            steps=self.step,
            model=settings.model,
            task=settings.task,
            wall_seconds=wall_seconds,
            objective=settings.objective,
            before=self._evaluations.after(0),
            after=self._evaluations.after(self.step) if self.step else None,
            seconds=self._clock.totals(),
            tokens=self._tokens,
            advice=self._adviser.latest,
            groups=groups,
        )
        write_json(settings.folder / "summary.json", summary.to_json())
        write_report(settings.folder)
        for sink in self._sinks:
            sink.close()
        self._log.close()

    def _line(self, level: Level, text: str) -> LogLine:
        return LogLine(time.time(), level, DRIVER, "", self.step, text)
