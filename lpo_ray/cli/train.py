"""``lpo-ray train``, ``warmup`` and ``replay``, once the request is known to be good."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

from rich.console import Console

from lpo_ray.cli.backend import backend_of, check_options
from lpo_ray.cli.console import model_of
from lpo_ray.config import load_config
from lpo_ray.config.schema import ProgressKind
from lpo_ray.errors import ConfigError
from lpo_ray.run import settings
from lpo_ray.run.folder import held
from lpo_ray.run.recorder import Recorder
from lpo_ray.run.signals import interrupt_on_signal, run_until_signal
from lpo_ray.run.spec import RunSpec, make_spec
from lpo_ray.run.train import train
from lpo_ray.telemetry.captured_log import CapturedLog
from lpo_ray.telemetry.monitor.progress import render_evaluation
from lpo_ray.tools.replay import recorded_digests, replay


def train_command(spec: RunSpec) -> None:
    """Build the base policy if needed, train, and show what came out."""
    check_options(spec)
    interrupt_on_signal()
    console = Console(stderr=spec.config.telemetry.progress is ProgressKind.quiet)

    def note(text: str) -> None:
        console.print(text, markup=False, highlight=False)

    with held(spec, note) as folder, CapturedLog() as captured:
        backend = backend_of(spec.config)
        model_path = model_of(spec, console)
        with backend.cluster():
            recorded = settings.recorder_settings(spec, model_path)
            recorder = Recorder(recorded, console, spec.tokenizer(model_path), backend.sinks())
            captured.write_to(recorder.worker_log)
            steerable = backend.steerable(recorder)
            result = run_until_signal(
                lambda signals: train(folder, model_path, backend.build, recorder, signals, steerable)
            )
    if result.before and result.after:
        console.print(render_evaluation(result.before, result.after))
    console.print(f"run folder: {result.run_dir}  (report.html, summary.json, checkpoints/)", highlight=False)


def warmup_command(spec: RunSpec) -> None:
    """Build the tiny base policy and print its folder."""
    if spec.model_path is not None:
        raise ConfigError(f"model.path is {spec.model_path!r}; warmup builds the tiny base policy, which is null")
    with CapturedLog():
        model_path = model_of(spec, Console(stderr=True))
    sys.stdout.write(f"{model_path}\n")


def replay_command(run_dir: Path, step: int, *, from_start: bool) -> None:
    """Compute a recorded step again and print one line. Raises ReplayDiffers when the weights are not the recorded."""
    recorded_digests(run_dir, step)  # that the step exists, before anything starts
    stored = load_config(run_dir / "config.yaml")
    spec = dataclasses.replace(make_spec(stored, for_training=False), run_dir=run_dir)
    backend = backend_of(spec.config)
    packing, seed = settings.packing(spec), spec.config.run.seed
    with CapturedLog():
        model_path = model_of(spec, Console(stderr=True))
        with backend.cluster():
            learner = backend.open_learner(spec, model_path)
            line = run_until_signal(
                lambda _: replay(run_dir, model_path, step, packing, seed, learner, from_start=from_start)
            )
    sys.stdout.write(f"{line}\n")
