"""Trackers: a copy of the metrics for Weights & Biases, MLflow, or a function of yours (``telemetry.trackers``).

A tracker never holds the run up: it works on a thread of its own behind a bounded queue, and one that raises or does
not keep up is turned off with a note. metrics.jsonl is the record; a step that is computed again comes here twice.
"""

from __future__ import annotations

import os
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from lpo_ray.common.files import write_text
from lpo_ray.common.plugins import UnknownName, is_installed, resolve
from lpo_ray.errors import ConfigError
from lpo_ray.telemetry.metrics import Value
from lpo_ray.telemetry.sinks import in_group, numbers

QUEUED = 1024
"""steps that may wait for a tracker before it is turned off"""
CLOSE_SECONDS = 15.0
"""for a tracker to send what is queued when the run is over; then it is left behind"""
OPEN_SECONDS = 30.0
"""for W&B's server to answer first"""
PROJECT = "lpo-ray"
"""W&B's project and MLflow's experiment, unless WANDB_PROJECT or MLFLOW_EXPERIMENT_NAME says otherwise"""
PARAMETERS_AT_ONCE = 100
"""MLflow's limit"""
LONGEST_PARAMETER = 500
"""characters; MLflow's own limit has changed over its versions, and was never lower"""


@dataclass(frozen=True, slots=True)
class TrackedRun:
    """Run, as a tracker is told of it."""

    name: str
    folder: Path
    """folder of the run; what a tracker keeps on disk belongs there"""
    config: Mapping[str, object]
    """resolved, by section"""
    run_id: str | None = None
    """name that the tracker gave the run before a resume; None: it is new"""


class Tracker(Protocol):
    """Open run at a tracker. All calls come from the thread that opened it, and may raise anything."""

    run_id: str
    """name by which the same run is opened again"""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Send values after ``step``: more than once for a step, and not in order when a run went back."""
        ...

    def close(self) -> None:
        """Send what is left."""
        ...


Open = Callable[[TrackedRun], Tracker]


class WandbTracker:
    """Run at Weights & Biases. W&B's own variables say where: WANDB_MODE, WANDB_BASE_URL, WANDB_ENTITY, ..."""

    def __init__(self, run: TrackedRun) -> None:
        import wandb  # pyright: ignore[reportMissingImports] - of an extra

        settings = wandb.Settings(
            console="off",
            silent=True,
            disable_git=True,
            x_disable_stats=True,
            # W&B waits for its server when the process exits, too: without end, were it not told otherwise.
            init_timeout=OPEN_SECONDS,
            finish_timeout=CLOSE_SECONDS,
        )
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=run.name,
            id=run.run_id,
            resume=None if run.run_id is None else "allow",
            dir=str(run.folder),
            config=dict(run.config),
            settings=settings,
        )
        # W&B's own step can only grow; ours goes back when a run does.
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")
        self.run_id = self._run.id

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Send values after ``step``, which is a value too."""
        self._run.log({"step": step, **{in_group(name): value for name, value in values.items()}})

    def close(self) -> None:
        """Send what is left, and finish the run."""
        self._run.finish()


class MlflowTracker:
    """Run at MLflow: at MLFLOW_TRACKING_URI, or in the run's folder."""

    def __init__(self, run: TrackedRun) -> None:
        from mlflow import MlflowClient  # pyright: ignore[reportMissingImports] - of an extra
        from mlflow.entities import Metric, Param  # pyright: ignore[reportMissingImports]

        uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{run.folder.absolute() / 'mlflow.db'}"
        self._client, self._metric = MlflowClient(tracking_uri=uri), Metric
        if run.run_id is not None:
            self.run_id = run.run_id
            self._client.update_run(self.run_id, status="RUNNING")
            return
        experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        found = self._client.get_experiment_by_name(experiment)
        experiment_id = self._client.create_experiment(experiment) if found is None else found.experiment_id
        self.run_id = self._client.create_run(experiment_id, run_name=run.name).info.run_id
        flat = [Param(name, str(value)[:LONGEST_PARAMETER]) for name, value in flatten(run.config).items()]
        for start in range(0, len(flat), PARAMETERS_AT_ONCE):
            self._client.log_batch(self.run_id, params=flat[start : start + PARAMETERS_AT_ONCE])

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Send values after ``step`` in one call."""
        now = int(time.time() * 1000)
        points = [self._metric(mlflow_name(name), value, now, step) for name, value in values.items()]
        self._client.log_batch(self.run_id, metrics=points)

    def close(self) -> None:
        """Mark the run as finished."""
        self._client.set_terminated(self.run_id)


TRACKERS: dict[str, Open] = {"wandb": WandbTracker, "mlflow": MlflowTracker}
"""trackers by name, which is that of the module they need and of our extra that installs it"""


def tracker_named(name: str) -> Open:
    """Return a row of TRACKERS, or what "module:function" names. Raises ConfigError if it or its package is missing."""
    try:
        found = resolve(name, TRACKERS, "telemetry.trackers")
    except UnknownName as error:
        raise ConfigError(str(error)) from error
    if name in TRACKERS and not is_installed(name):
        raise ConfigError(
            f"telemetry.trackers has {name!r}, but the package {name} is not installed; expected it with our extra: "
            f"pip install 'lpo-ray[{name}]', or take {name} out of telemetry.trackers"
        )
    return found


class TrackerSink:
    """Sink of metrics that hands them to one tracker."""

    def __init__(
        self,
        name: str,
        run: TrackedRun,
        note: Callable[[str], None],
        *,
        queued: int = QUEUED,
        close_seconds: float = CLOSE_SECONDS,
    ) -> None:
        """Call ``note`` at most once, from the caller's thread. Raises ConfigError as tracker_named."""
        self._name, self._run, self._note, self._close_seconds = name, run, note, close_seconds
        self._open = tracker_named(name)
        self._id_file = run.folder / "trackers" / name.replace(":", ".")
        self._queue: queue.Queue[tuple[int, Mapping[str, float]] | None] = queue.Queue(queued)
        self._trouble: str | None = None
        """reason for which the thread ended; written by it"""
        self._thread: threading.Thread | None = None
        self._off = False

    def resumed(self, step: int) -> None:
        """Open the tracker in the background, for the same run as before a resume."""
        self._thread = threading.Thread(target=self._work, name=f"tracker {self._name}", daemon=True)
        self._thread.start()

    def append(self, metrics: Mapping[str, Value]) -> None:
        """Queue the numbers of a step. Returns at once."""
        self._put((int(str(metrics["step"])), numbers(metrics)))

    def evaluated(self, step: int, scores: Mapping[str, float]) -> None:
        """Queue the scores. Returns at once."""
        self._put((step, scores))

    def changed(self, values: Mapping[str, int]) -> None:
        """Do nothing: the next step has it."""

    def close(self) -> None:
        """Give the tracker time to end, and leave it behind otherwise: it cannot hold the process up."""
        if self._thread is None:
            return
        self._put(None)
        if self._off:
            return
        self._thread.join(self._close_seconds)
        if self._thread.is_alive():
            self._turn_off(f"it did not end within {self._close_seconds:g} s after the run")
        elif self._trouble is not None:
            self._turn_off(self._trouble)

    def _put(self, item: tuple[int, Mapping[str, float]] | None) -> None:
        if self._off:
            return
        if self._trouble is not None:
            return self._turn_off(self._trouble)
        try:
            self._queue.put_nowait(item)
        except queue.Full:
            self._turn_off(f"{self._queue.maxsize} steps wait for it: it does not answer, or is slower than the run")

    def _turn_off(self, why: str) -> None:
        self._off = True
        self._note(f"telemetry.trackers: {self._name} is off from here on: {why}. The run continues without it")

    def _work(self) -> None:
        try:
            run_id = self._id_file.read_text(encoding="utf-8").strip() if self._id_file.exists() else None
            tracker = self._open(replace(self._run, run_id=run_id or None))
            self._id_file.parent.mkdir(parents=True, exist_ok=True)
            write_text(self._id_file, f"{tracker.run_id}\n")
            while (item := self._queue.get()) is not None:
                tracker.log(*item)
            tracker.close()
        except BaseException as error:  # noqa: BLE001 - whatever a tracker does, it must not end the run
            self._trouble = f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"


def tracker_sinks(names: Sequence[str], run: TrackedRun, note: Callable[[str], None]) -> list[TrackerSink]:
    """Make one sink for each name. Raises ConfigError as tracker_named."""
    return [TrackerSink(name, run, note) for name in names]


def flatten(config: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    """Flatten ``{"run": {"seed": 0}}`` to ``{"run.seed": 0}``."""
    flat: dict[str, object] = {}
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def mlflow_name(name: str) -> str:
    """Return a metric's name in the letters that MLflow takes: "evaluation/evaluation_pass_at_1"."""
    return in_group(name.replace("@", "_at_"))
