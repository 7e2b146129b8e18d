"""What the command line does once the request is known to be good. It, ``run_commands`` and ``check_commands`` are the
only importers of ``actors`` in the library.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import signal
import sys
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from pathlib import Path

import yaml
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as RichProgress

from lpo_ray.common.files import write_json
from lpo_ray.common.redaction import redact
from lpo_ray.config import dump_config, load_config
from lpo_ray.config.schema import ClusterKind, Config, ProgressKind
from lpo_ray.errors import ConfigError, EvaluationInterrupted, Interrupted
from lpo_ray.evaluation.table import render, render_suite
from lpo_ray.interfaces import Components, Events, Learner, RolloutEngine, Verifier
from lpo_ray.records import WorkerStatus
from lpo_ray.run.inprocess import InprocessVerifier, build_engine, build_inprocess, build_learner
from lpo_ray.run.recorder import Recorder, RecorderSettings
from lpo_ray.run.signals import call_off_ray_alarm, interrupt_on_signal, run_until_signal
from lpo_ray.run.spec import RunSpec, build_model, make_spec
from lpo_ray.run.train import Build, Steerable, train
from lpo_ray.telemetry.captured_log import CapturedLog
from lpo_ray.telemetry.monitor.advice import Setup
from lpo_ray.telemetry.monitor.progress import render_evaluation
from lpo_ray.telemetry.sinks import MetricsSink
from lpo_ray.tools.evaluate.session import EvaluationRun, opened
from lpo_ray.tools.evaluate.target import EvaluationRequest
from lpo_ray.tools.replay import OpenLearner, recorded_digests, replay

TABLE_WIDTH = 160
"""columns of a table where the output is no terminal"""


def train_command(spec: RunSpec) -> None:
    """Build the base policy if needed, train, and show what came out."""
    interrupt_on_signal()
    console = Console(stderr=spec.config.telemetry.progress is ProgressKind.quiet)
    model_path = _model(spec, console)
    with CapturedLog() as captured, _cluster(spec):
        recorder = _recorder(spec, model_path, console)
        captured.write_to(recorder.worker_log)
        attending = _attendant(spec, recorder)
        outcome = run_until_signal(lambda signals: train(spec, model_path, _build(spec), recorder, signals, attending))
    if outcome.before and outcome.after:
        console.print(render_evaluation(outcome.before, outcome.after))
    console.print(f"run folder: {outcome.run_dir}  (report.html, summary.json, checkpoints/)", highlight=False)


def evaluate_command(requests: Sequence[EvaluationRequest], by: str | None, *, fresh: bool, as_json: bool) -> None:
    """Evaluate one model on the task of each request, or go on where a call before was ended; show what came out."""
    console = Console(width=None if sys.stdout.isatty() else TABLE_WIDTH)
    progress_console = Console(stderr=True)
    plans = [make_spec(request.config, for_training=False) for request in requests]
    model_path = _model(plans[0], progress_console)
    with CapturedLog(), contextlib.ExitStack() as stack:
        runs = [
            stack.enter_context(opened(request, spec, model_path, by, fresh=fresh))
            for request, spec in zip(requests, plans, strict=True)
        ]
        lost: list[dict[str, str]] = [{} for _ in runs]
        if any(run.missing for run in runs):
            try:
                with _cluster(plans[0]), _bar(progress_console) as progress:
                    lost = run_until_signal(lambda _: _evaluated(runs, model_path, progress))
            except Interrupted as stopped:
                raise EvaluationInterrupted(stopped.signal_number, 0) from stopped
        reports = {run.request.name: run.report(why) for run, why in zip(runs, lost, strict=True)}
    if len(reports) > 1:
        whole = {name: report.to_json() for name, report in reports.items()}
        write_json(requests[0].folder.parent / "results.json", whole)
    else:
        whole = next(iter(reports.values())).to_json()
    if as_json:
        json.dump(whole, sys.stdout, indent=2)
        sys.stdout.write("\n")
        return
    for request in requests:
        console.print(render(reports[request.name]))
        console.print(
            f"{request.folder}  (results.json, picture.png, evaluation.jsonl)", highlight=False, soft_wrap=True
        )
    if len(reports) > 1:
        console.print(render_suite(reports))


def warmup_command(spec: RunSpec) -> None:
    """Build the tiny base policy and print its folder."""
    if spec.model_path is not None:
        raise ConfigError(f"model.path is {spec.model_path!r}; warmup builds the tiny base policy, which is null")
    sys.stdout.write(f"{_model(spec, Console(stderr=True))}\n")


def replay_command(run_dir: Path, step: int, *, from_start: bool) -> None:
    """Compute a recorded step again and print one line; ReplayDiffers when the weights are not the recorded ones."""
    recorded_digests(run_dir, step)  # that the step exists, before anything starts
    stored = load_config(run_dir / "config.yaml")
    spec = dataclasses.replace(make_spec(stored, for_training=False), run_dir=run_dir)
    model_path = _model(spec, Console(stderr=True))
    with CapturedLog(), _cluster(spec):
        line = run_until_signal(lambda _: replay(spec, model_path, step, _open_learner(spec), from_start=from_start))
    sys.stdout.write(f"{line}\n")


class StandardError:
    """Events of a command that records no run."""

    def note(self, text: str) -> None:
        """See interfaces.Events."""
        sys.stderr.write(f"{redact(text)}\n")

    def workers(self, workers: Sequence[WorkerStatus]) -> None:
        """See interfaces.Events. What needs a reader's attention is noted."""

    def starting(self, name: str, seconds: float) -> AbstractContextManager[None]:
        """Show nothing: a command that records no run has no watchdog."""
        return contextlib.nullcontext()


def _open_learner(spec: RunSpec) -> OpenLearner:
    if spec.config.cluster.kind is ClusterKind.inprocess:
        return _open_inprocess_learner
    from actors.cluster import open_learner

    return functools.partial(open_learner, events=StandardError())


@contextlib.asynccontextmanager
async def _open_inprocess_learner(spec: RunSpec, model_path: str) -> AsyncIterator[Learner]:
    yield build_learner(spec.learner_settings(model_path))


@contextlib.contextmanager
def _cluster(spec: RunSpec) -> Iterator[None]:
    """A Ray cluster around the command, joined or started; nothing without Ray."""
    if spec.config.cluster.kind is ClusterKind.inprocess:
        yield
        return
    from actors.cluster import check, connect, disconnect

    check(spec.config)
    try:
        connect(spec.config)
        interrupt_on_signal()  # Ray has put its own handler in place, which would end with exit code 15
        yield
    except SystemExit as stopped:
        call_off_ray_alarm()
        raise Interrupted(signal.SIGTERM, 0) from stopped
    finally:
        disconnect()


def _attendant(spec: RunSpec, recorder: Recorder) -> Steerable | None:
    if spec.config.cluster.kind is ClusterKind.inprocess:
        return None
    from actors.cluster import address, attendant

    recorder.on_cluster(address())
    return attendant(spec.config, recorder.note, recorder.worker_log)


def _build(spec: RunSpec) -> Build:
    if spec.config.cluster.kind is ClusterKind.inprocess:
        return _build_inprocess
    from actors.cluster import build_cluster

    return build_cluster


async def _build_inprocess(spec: RunSpec, model_path: str, events: Events) -> Components:
    return build_inprocess(
        spec.learner_settings(model_path), spec.target_rule(), spec.context, spec.tolerance,
        spec.overlong(), spec.sandbox(), spec.config.rollout.max_num_seqs,
    )  # fmt: skip


def _bar(console: Console) -> RichProgress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return RichProgress(*columns, console=console, transient=True)


def _model(spec: RunSpec, console: Console) -> str:
    """The model's folder; the tiny base policy is built here, with a progress bar, when it is not cached."""
    if spec.model_path is not None:
        return spec.model_path
    with _bar(console) as progress:
        task = progress.add_task("warm start of the base policy", total=None, start=False)

        def show(step: int, steps: int, loss: float) -> None:
            progress.start_task(task)
            progress.update(task, completed=step, total=steps, description=f"warm start, loss {loss:.3f}")

        started = time.monotonic()
        path = build_model(spec, show)
    console.print(f"base policy: {path}  ({time.monotonic() - started:.0f} s)", highlight=False, soft_wrap=True)
    return path


async def _evaluated(runs: Sequence[EvaluationRun], model_path: str, progress: RichProgress) -> list[dict[str, str]]:
    """One task after the other on the same engines; the lost prompts of each."""
    spec = runs[0].spec
    lost = []
    async with _open_engines(spec, model_path) as (rollout, verifier):
        for run in runs:
            task = progress.add_task(run.request.name, total=len(run.missing))

            def show(done: int, _: int, task: TaskID = task) -> None:
                progress.update(task, completed=done)

            lost.append(await run.score(rollout, verifier, show))
    return lost


def _open_engines(spec: RunSpec, model_path: str) -> AbstractAsyncContextManager[tuple[RolloutEngine, Verifier]]:
    """What evaluates: no learner."""
    if spec.config.cluster.kind is ClusterKind.inprocess:
        return _open_inprocess_engine(spec, model_path)
    from actors.cluster import open_engines

    return open_engines(spec, model_path, StandardError())


@contextlib.asynccontextmanager
async def _open_inprocess_engine(spec: RunSpec, model_path: str) -> AsyncIterator[tuple[RolloutEngine, Verifier]]:
    settings, tokenizer = spec.learner_settings(model_path), spec.tokenizer(model_path)
    engine = build_engine(settings, tokenizer, spec.config.rollout.max_num_seqs)
    yield engine, InprocessVerifier(tokenizer, spec.overlong(), spec.sandbox())


def _recorder(spec: RunSpec, model_path: str, console: Console) -> Recorder:
    config = spec.config
    objective = config.objective
    clip = objective.token_clip
    settings = RecorderSettings(
        folder=spec.run_dir,
        run=config.run.name,
        seed=config.run.seed,
        steps=config.run.steps,
        model=config.model.path or Path(model_path).name,
        task=config.task.name,
        objective={
            "divergence": objective.divergence,
            "target_temperature": objective.target_temperature,
            "token_clip": f"{clip.kind} {clip.low:g}/{clip.high:g}",
            "length_norm": objective.length_norm.value,
        },
        points=spec.points(),
        pass_reward=config.evaluation.pass_reward,
        samples_every=config.telemetry.samples_every,
        tensorboard=config.telemetry.tensorboard,
        trackers=tuple(config.telemetry.trackers),
        config=yaml.safe_load(dump_config(config)),
        entropy_alarm=config.telemetry.entropy_alarm,
        progress=config.telemetry.progress,
        setup=Setup(
            max_staleness=config.pipeline.max_staleness,
            num_workers=config.rollout.num_workers,
            world_size=config.learner.world_size,
            num_processes=config.verifier.num_processes,
        ),
        stall_seconds=config.telemetry.stall_seconds,
    )
    return Recorder(settings, console, spec.tokenizer(model_path), _cluster_sinks(config))


def _cluster_sinks(config: Config) -> list[MetricsSink]:
    """Where the cluster itself shows the metrics."""
    if config.cluster.kind is ClusterKind.inprocess:
        return []
    from actors.runtime.ray_metrics import RayMetrics

    return [RayMetrics(config.run.name)]
