"""The run's observer: turns what the loop reports into metrics, samples, summary, report and progress."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from rich.console import Console

from lpo_ray.config.schema import ProgressKind
from lpo_ray.errors import GroupLost
from lpo_ray.evaluation import Evaluation
from lpo_ray.loop import StepRecord
from lpo_ray.records import WorkerStatus
from lpo_ray.telemetry.advice import Adviser, Setup
from lpo_ray.telemetry.metrics import Value, step_metrics
from lpo_ray.telemetry.progress import Progress
from lpo_ray.telemetry.report import write_report
from lpo_ray.telemetry.samples import samples_path, write_samples
from lpo_ray.telemetry.sinks import MetricsLog, TensorBoard, write_json
from lpo_ray.telemetry.stages import StageClock
from lpo_ray.telemetry.status import StatusFile
from lpo_ray.telemetry.summary import build_summary
from lpo_ray.telemetry.watchdog import Watchdog
from lpo_ray.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class RecorderSettings:
    """What the recorder needs to know of the run."""

    folder: Path
    run: str
    seed: int
    steps: int
    model: str
    task: str
    objective: dict[str, object]
    divergence: str
    pass_reward: float
    samples_every: int
    tensorboard: bool
    entropy_alarm: float
    progress: ProgressKind
    setup: Setup
    stall_seconds: float


class Recorder:
    """Observer of one run. ``resumed`` opens the sinks, ``close`` writes summary and report."""

    def __init__(self, settings: RecorderSettings, console: Console, tokenizer: Tokenizer) -> None:
        self._settings, self._tokenizer = settings, tokenizer
        self._clock = StageClock()
        self._progress = Progress(settings.progress, console, self._clock, settings.steps)
        self._metrics = MetricsLog(settings.folder / "metrics.jsonl")
        self._evaluations_file = settings.folder / "evaluations.json"
        self._tensorboard: TensorBoard | None = None
        self._evaluations: dict[int, dict[str, object]] = {}
        self._last: Mapping[str, Value] = {}
        self._tokens = 0
        self._adviser = Adviser(settings.setup)
        self._status = StatusFile(settings.folder, settings.run, settings.steps)
        self.step = 0

    def stage(self, name: str) -> AbstractContextManager[None]:
        """See loop.Observer."""
        return self._clock.stage(name)

    def watchdog(self) -> Watchdog:
        """What looks at this run, from beside it."""
        return Watchdog(self._clock, self._settings.stall_seconds, self.note, self._status.show_waiting)

    def status(self) -> Mapping[str, object]:
        """What status.json says."""
        return self._status.content()

    def on_cluster(self, address: str) -> None:
        """The run is on the Ray cluster at ``address``."""
        self._status.cluster = address

    def resumed(self, step: int) -> None:
        """The run goes on after ``step`` (0: it starts). What was written beyond it is dropped, to be written again."""
        folder = self._settings.folder
        self._metrics.truncate_after(step)
        for path in (folder / "samples").glob("step_*.parquet"):
            if int(path.stem.removeprefix("step_")) > step:
                path.unlink()
        if self._evaluations_file.exists():
            stored = json.loads(self._evaluations_file.read_text())
            self._evaluations = {int(at): value for at, value in stored.items() if int(at) <= step}
        if self._settings.tensorboard:
            self._tensorboard = TensorBoard(folder / "tensorboard", step + 1)
        self.step = self._status.step = step
        if step:
            self._progress.note(f"resumed after step {step}")

    def lost(self, lost: GroupLost) -> None:
        """See loop.Observer."""
        self._progress.note(str(lost))

    def note(self, text: str) -> None:
        """See interfaces.Events."""
        self._progress.note(text)

    def workers(self, workers: Sequence[WorkerStatus]) -> None:
        """See interfaces.Events."""
        self._status.update_workers(workers)

    def step_done(self, record: StepRecord) -> None:
        """See loop.Observer."""
        settings, seconds = self._settings, self._clock.lap()
        metrics = step_metrics(
            record.step,
            record.targets,
            record.batch,
            record.report,
            pass_reward=settings.pass_reward,
            seconds=seconds,
            groups=record.groups,
            publication=record.publication,
            left_out=record.left_out,
            reused=record.reused,
        )
        self.step = self._status.step = record.step
        self._status.version = str(record.publication.version)
        self._status.write()
        self._tokens += int(str(metrics["tokens"]))
        self._metrics.append(metrics)
        if self._tensorboard is not None:
            self._tensorboard.append(metrics)
        due = settings.samples_every and record.step % settings.samples_every == 0
        if due or metrics["skipped_updates"]:
            write_samples(
                samples_path(settings.folder, record.step),
                record.targets,
                record.report,
                step=record.step,
                learning_rate=record.batch.learning_rate,
                divergence=settings.divergence,
                decode=self._tokenizer.decode,
            )
        self._progress.step(metrics)
        self._last = metrics
        if advice := self._adviser.step(seconds):
            self._progress.note(f"step {record.step}: {advice}")
        if metrics["skipped_updates"]:
            where = "; ".join(cast("list[str]", metrics["not_finite"])[:3])
            self._progress.note(
                f"step {record.step}: {metrics['skipped_updates']} updates skipped, not finite: {where}"
            )
        if float(str(metrics["token_entropy"])) < settings.entropy_alarm:
            self._progress.note(
                f"step {record.step}: token entropy is {metrics['token_entropy']:.4f} nats, below "
                f"telemetry.entropy_alarm={settings.entropy_alarm:g}: the policy hardly explores any more"
            )

    def score(self, name: str) -> float | None:
        """See loop.Observer."""
        found = self._evaluations.get(self.step, {}).get(name, self._last.get(name))
        return float(found) if isinstance(found, int | float) else None

    def evidence(self) -> str:
        """See loop.Observer."""
        return str(samples_path(self._settings.folder, self.step))

    def evaluating(self, done: int, total: int) -> None:
        """How far an evaluation is."""
        self._clock.moved()
        self._progress.doing(f"{done}/{total} prompts" if done < total else "")

    def evaluated(self, step: int, evaluation: Evaluation) -> None:
        """The policy after ``step`` was evaluated."""
        self._evaluations[step] = evaluation.to_json()
        write_json(self._evaluations_file, {str(at): value for at, value in self._evaluations.items()})
        shown = "  ".join(
            f"pass@{k} {value:.3f} [{evaluation.ci95[k][0]:.3f}, {evaluation.ci95[k][1]:.3f}]"
            for k, value in evaluation.pass_at.items()
        )
        self._progress.note(f"evaluation after step {step}: {shown}")
        self._clock.lap()

    def has_evaluated(self, step: int) -> bool:
        """Whether an evaluation of the policy after ``step`` is on record."""
        return step in self._evaluations

    def close(self, groups: dict[str, int], wall_seconds: float) -> None:
        """Write summary.json and report.html from what there is, and give the terminal back."""
        settings = self._settings
        self._progress.close()
        self._status.ended = True
        self._status.write()
        if self._tensorboard is not None:
            self._tensorboard.close()
        write_json(
            settings.folder / "summary.json",
            build_summary(
                run=settings.run,
                seed=settings.seed,
                steps=self.step,
                model=settings.model,
                task=settings.task,
                wall_seconds=wall_seconds,
                objective=settings.objective,
                before=self._evaluations.get(0),
                after=self._evaluations.get(self.step) if self.step else None,
                seconds=self._clock.totals(),
                tokens=self._tokens,
                advice=self._adviser.latest,
                groups=groups,
            ),
        )
        write_report(settings.folder)
