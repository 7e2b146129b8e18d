"""What the command line does once the request is known to be good. The only importer of ``actors`` in the library."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import os
import signal
import socket
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import cast

import psutil
import yaml
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as RichProgress
from rich.table import Table

from lpo_ray import accounting, doctor
from lpo_ray.accounting import audit
from lpo_ray.architecture import read_architecture
from lpo_ray.config import dump_config, load_config
from lpo_ray.config.schema import ClusterKind, Config, ProgressKind
from lpo_ray.demand import bundles
from lpo_ray.errors import ChecksFailed, ComponentFailed, ConfigError, DoesNotFit, Interrupted, LedgerUnbalanced
from lpo_ray.evaluation import evaluate
from lpo_ray.forecast import Given, make_forecast
from lpo_ray.forecast_view import render_forecast, render_rows
from lpo_ray.inprocess.components import build_inprocess, build_learner
from lpo_ray.interfaces import Components, Events, Learner
from lpo_ray.machines import Machine, described, this_machine
from lpo_ray.plan import Plan, build_model, make_plan, outline
from lpo_ray.rates import measured_in
from lpo_ray.recorder import Recorder, RecorderSettings
from lpo_ray.records import WorkerStatus
from lpo_ray.redaction import redact
from lpo_ray.replay import OpenLearner, recorded_digests, replay
from lpo_ray.run import Attendant, Build, interrupt_on_signal, run_until_signal, train
from lpo_ray.simulation import run as simulation
from lpo_ray.simulation.run import simulate_each
from lpo_ray.telemetry.advice import Setup
from lpo_ray.telemetry.progress import render_evaluation
from lpo_ray.telemetry.sinks import MetricsSink
from lpo_ray.telemetry.status import read_status, render_status, state_of
from lpo_ray.telemetry.why import place, render_why, why_from_folder
from lpo_ray.warmup import default_cache_dir

ROW_WIDTH = 200
"""columns of a table that is not cut where the output is no terminal"""


def train_command(plan: Plan) -> None:
    """Build the base policy if needed, train, and show what came out."""
    interrupt_on_signal()
    console = Console(stderr=plan.config.telemetry.progress is ProgressKind.quiet)
    model_path = _model(plan, console)
    with _cluster(plan):
        recorder = _recorder(plan, model_path, console)
        attending = _attendant(plan, recorder)
        outcome = run_until_signal(lambda signals: train(plan, model_path, _build(plan), recorder, signals, attending))
    if outcome.before and outcome.after:
        console.print(render_evaluation(outcome.before, outcome.after))
    console.print(f"run folder: {outcome.run_dir}  (report.html, summary.json, checkpoints/)", highlight=False)


def evaluate_command(plan: Plan) -> None:
    """Pass@k of the configured model, as JSON on standard output."""
    if not plan.config.evaluation.num_prompts:
        raise ConfigError("evaluation.num_prompts is 0; expected the number of held-out prompts to evaluate on")
    model_path = _model(plan, Console(stderr=True))
    with _cluster(plan):
        result = run_until_signal(lambda _: _evaluated(plan, model_path))
    json.dump(result, sys.stdout, indent=2)
    sys.stdout.write("\n")


def warmup_command(plan: Plan) -> None:
    """Build the tiny base policy and print its folder."""
    if plan.model_path is not None:
        raise ConfigError(f"model.path is {plan.model_path!r}; warmup builds the tiny base policy, which is null")
    sys.stdout.write(f"{_model(plan, Console(stderr=True))}\n")


def replay_command(run_dir: Path, step: int, *, from_start: bool) -> None:
    """Compute a recorded step again and print one line; ReplayDiffers when the weights are not the recorded ones."""
    recorded_digests(run_dir, step)  # that the step exists, before anything starts
    stored = load_config(run_dir / "config.yaml")
    plan = dataclasses.replace(make_plan(stored, for_training=False), run_dir=run_dir)
    model_path = _model(plan, Console(stderr=True))
    with _cluster(plan):
        line = run_until_signal(lambda _: replay(plan, model_path, step, _open_learner(plan), from_start=from_start))
    sys.stdout.write(f"{line}\n")


def submit_command(config: Config, address: str, working_dir: Path | None, exclude: Sequence[str]) -> str:
    """Start the run of ``config`` as a job of the cluster; returns the job's id. run.dir is taken from here on."""
    from actors.jobs import Jobs

    run = dataclasses.replace(config.run, dir=str(Path(config.run.dir).absolute()))
    cluster = dataclasses.replace(config.cluster, address="auto")
    jobs = Jobs(address)
    job_id = jobs.submit(
        dump_config(dataclasses.replace(config, run=run, cluster=cluster)), run.name, working_dir, exclude
    )
    sys.stdout.write(f"{run.name} is job {job_id} of {address}; its folder there: {run.dir}/{run.name}\n")
    return job_id


def follow_command(run: str, address: str, *, follow: bool) -> None:
    """Print what a run says, to its end with ``follow``; then how it ended. Raises ComponentFailed when it failed."""
    from actors.jobs import Jobs

    jobs = Jobs(address)
    job = jobs.find(run)
    if not follow:
        sys.stdout.write(jobs.logs(job.job_id))
        return

    async def print_all() -> None:
        async for text in jobs.follow(job.job_id):
            sys.stdout.write(text)
            sys.stdout.flush()

    run_until_signal(lambda _: print_all())
    ended = jobs.state(job.job_id)
    if ended.state == "FAILED":
        raise ComponentFailed(f"job {job.job_id}", "train", ended.message)
    sys.stdout.write(f"job {job.job_id}: {ended.state}\n")


def list_command(address: str) -> None:
    """Print all runs of the cluster."""
    from actors.jobs import Jobs

    table = Table(title=f"runs of {address}", title_justify="left")
    for column in ("run", "state", "job", "submitted", "message"):
        table.add_column(column)
    for job in Jobs(address).runs():
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(job.since))
        table.add_row(job.run, job.state, job.job_id, when, job.message.splitlines()[0] if job.message else "")
    Console().print(table)


def stop_command(run: str, address: str) -> None:
    """Have a run end its update and write a checkpoint; returns when it has ended."""
    from actors.jobs import STOP_SECONDS, Jobs

    jobs = Jobs(address)
    job = jobs.find(run)
    if job.state not in ("PENDING", "RUNNING"):
        raise ConfigError(f"run {run} has ended already ({job.state}, job {job.job_id}); expected one that goes on")
    jobs.stop(job.job_id)
    sys.stdout.write(f"{run} is asked to stop: it ends its update and writes a checkpoint\n")
    ended = jobs.wait(job.job_id, STOP_SECONDS)
    sys.stdout.write(f"{run} has ended: {ended.state}; go on with run.resume=auto\n")


def stop_here_command(run_dir: Path) -> None:
    """The same for a run of this host, by its folder."""
    status = read_status(run_dir)
    if status["ended"] or status["host"] != socket.gethostname() or not psutil.pid_exists(status["pid"]):
        raise ConfigError(
            f"{run_dir}: {state_of(status)}; expected a run that goes on here, or --address of the cluster that has it"
        )
    os.kill(status["pid"], signal.SIGTERM)
    sys.stdout.write(f"{status['run']} is asked to stop: it ends its update and writes a checkpoint\n")


def scale_command(run: str, address: str | None, role: str, count: int) -> None:
    """Have ``count`` workers of ``role`` in a run that goes on, and print what happens."""
    question = {"kind": "scale", "role": role, "count": count}
    sys.stdout.write(f"{_ask(run, address, question)['answer']}\n")


def status_command(run: str, address: str | None) -> None:
    """Print where a run is and which worker serves which weights."""
    status = read_status(Path(run)) if address is None else _ask(run, address, {"kind": "status"})["status"]
    Console().print(render_status(cast("Mapping", status)))


def ledger_command(run_dir: Path) -> None:
    """Print what became of every prompt; LedgerUnbalanced when the books do not balance."""
    books = audit(run_dir)
    Console().print(accounting.render(books))
    if books.violations:
        raise LedgerUnbalanced(str(run_dir), books.violations)


def simulate_command(config: Config, engines: str, *, as_json: bool) -> None:
    """Simulate the configuration for each of the comma-separated numbers of engines."""
    try:
        numbers = [int(part) for part in engines.split(",")] if engines else [config.rollout.num_workers]
    except ValueError:
        raise ConfigError(f"--engines is {engines!r}; expected numbers such as 16,256,4096") from None
    if min(numbers) < 1:
        raise ConfigError(f"--engines is {engines!r}; expected numbers above 0")
    outcomes = []
    for outcome in simulate_each(config, numbers):
        outcomes.append(outcome)
        if as_json:
            sys.stdout.write(json.dumps(dataclasses.asdict(outcome)) + "\n")
            sys.stdout.flush()
    if not as_json:
        Console().print(simulation.render(outcomes))


def doctor_command(address: str | None, *, as_json: bool, quick: bool) -> None:
    """Print what was found on this machine, or on every node of the cluster at ``address``; ChecksFailed names what
    fails.
    """
    surroundings = doctor.Surroundings(Path("runs").absolute(), default_cache_dir(), Path(tempfile.gettempdir()))
    if address is None:
        groups = {socket.gethostname(): doctor.examine(doctor.CHECKS, surroundings, quick=quick)}
    else:
        from actors.doctor_cluster import examine_cluster

        groups = examine_cluster(address, surroundings, quick=quick)
    if as_json:
        sys.stdout.write(json.dumps(doctor.as_json(groups), indent=2) + "\n")
    else:
        Console(width=None if sys.stdout.isatty() else doctor.WIDTH).print(doctor.render(groups))
    if failed := doctor.failures(groups):
        raise ChecksFailed(failed)


def plan_command(
    config: Config,
    clusters: Sequence[str],
    address: str | None,
    from_run: Path | None,
    given: Given,
    *,
    as_json: bool,
) -> None:
    """Print what the configuration needs on each of ``clusters``, else on the live cluster at ``address`` (or
    cluster.address), else on this machine. DoesNotFit when it fits none of them.
    """
    model = read_architecture(config.model.path)
    plan = outline(config, model.context)
    if from_run is not None:
        given = _measured(given, from_run)
    forecasts = [(name, make_forecast(plan, model, found, given)) for name, found in _machines(plan, clusters, address)]
    if as_json:
        numbers = [{"name": name, **forecast.to_json()} for name, forecast in forecasts]
        sys.stdout.write(json.dumps(numbers if len(clusters) > 1 else numbers[0], indent=2) + "\n")
    else:
        console = Console(highlight=False, soft_wrap=True)
        if len(forecasts) > 1:
            console.width = max(console.width, ROW_WIDTH)
        console.print(render_rows(forecasts) if len(forecasts) > 1 else render_forecast(forecasts[0][1]))
    where: dict[str, list[str]] = {}
    for name, forecast in forecasts:
        for problem in forecast.problems:
            where.setdefault(problem, []).append(name)
    if all(forecast.problems for _, forecast in forecasts):
        raise DoesNotFit([f"{', '.join(names)}: {problem}" for problem, names in where.items()])
    for problem, names in where.items():
        sys.stderr.write(f"{', '.join(names)}: {problem}\n")


def _machines(plan: Plan, clusters: Sequence[str], address: str | None) -> list[tuple[str, list[Machine]]]:
    """Name and machines of each cluster that was asked for."""
    if clusters and address is not None:
        raise ConfigError(f"--cluster {clusters[0]} and --address {address} are both given; expected one of them")
    if clusters:
        return [(name, described(name)) for name in clusters]
    if (address := address or plan.config.cluster.address) is not None:
        from actors.inventory import nodes_at

        return [(address, nodes_at(address))]
    return [("this machine", [this_machine(sum(bundle.cpus for bundle in bundles(plan)) + 1)])]


def _measured(given: Given, run_dir: Path) -> Given:
    """``given``, with the rates and the length of responses of the run in ``run_dir`` where nothing else is said."""
    if not (run_dir / "config.yaml").is_file():
        raise ConfigError(f"--from-run {run_dir} has no config.yaml; expected the folder of a run")
    stored = load_config(run_dir / "config.yaml")
    world_size = 1 if stored.cluster.kind is ClusterKind.inprocess else stored.learner.world_size
    found = measured_in(run_dir, num_workers=stored.rollout.num_workers, world_size=world_size)
    length = given.response_tokens if given.response_tokens is not None else found.response_tokens
    return dataclasses.replace(given, measured=found.rates, response_tokens=length)


def why_command(run: str, address: str | None) -> None:
    """Print what a run waits for, who has it, and what they are doing."""
    if address is None:
        sys.stdout.write(f"{redact(why_from_folder(Path(run)))}\n")
        return
    found = _ask(run, address, {"kind": "why"})
    seen = cast("Mapping[str, str]", found["seen"])
    text = render_why(cast("Mapping", found["status"]), lambda process: seen.get(place(process)))
    sys.stdout.write(f"{redact(text)}\n")


def _ask(run: str, address: str | None, question: Mapping[str, object]) -> Mapping[str, object]:
    """Put a question to a run: by its name at ``address``, or by its folder on a machine of its cluster."""
    if address is not None:
        from actors.jobs import Jobs

        return Jobs(address).ask(run, question)
    status = read_status(Path(run))
    if status["ended"] or not status.get("cluster"):
        raise ConfigError(f"{run}: {state_of(status)}; expected the folder of a run that goes on, on Ray")
    from actors.questions import ask_here

    return ask_here(status["cluster"], {"run": status["run"], **question})


class StandardError:
    """Events of a command that records no run."""

    def note(self, text: str) -> None:
        """See interfaces.Events."""
        sys.stderr.write(f"{redact(text)}\n")

    def workers(self, workers: Sequence[WorkerStatus]) -> None:
        """See interfaces.Events. What needs a reader's attention is noted."""


def _open_learner(plan: Plan) -> OpenLearner:
    if plan.config.cluster.kind is ClusterKind.inprocess:
        return _open_inprocess_learner
    from actors.cluster import open_learner

    return functools.partial(open_learner, events=StandardError())


@contextlib.asynccontextmanager
async def _open_inprocess_learner(plan: Plan, model_path: str) -> AsyncIterator[Learner]:
    yield build_learner(plan.learner_settings(model_path))


@contextlib.contextmanager
def _cluster(plan: Plan) -> Iterator[None]:
    """A Ray cluster around the command, joined or started; nothing without Ray."""
    if plan.config.cluster.kind is ClusterKind.inprocess:
        yield
        return
    from actors.cluster import check, connect, disconnect

    check(plan.config)
    try:
        connect(plan.config)
        interrupt_on_signal()  # Ray has put its own handler in place, which would end with exit code 15
        yield
    except SystemExit as stopped:
        raise Interrupted(signal.SIGTERM, 0) from stopped
    finally:
        disconnect()


def _attendant(plan: Plan, recorder: Recorder) -> Attendant | None:
    if plan.config.cluster.kind is ClusterKind.inprocess:
        return None
    from actors.cluster import address, attendant

    recorder.on_cluster(address())
    return attendant(plan.config, recorder.note)


def _build(plan: Plan) -> Build:
    if plan.config.cluster.kind is ClusterKind.inprocess:
        return _build_inprocess
    from actors.cluster import build_cluster

    return build_cluster


async def _build_inprocess(plan: Plan, model_path: str, events: Events) -> Components:
    return build_inprocess(plan.learner_settings(model_path), plan.target_rule(), plan.context, plan.tolerance)


def _model(plan: Plan, console: Console) -> str:
    """The model's folder; the tiny base policy is built here, with a progress bar, when it is not cached."""
    if plan.model_path is not None:
        return plan.model_path
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with RichProgress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("warm start of the base policy", total=None, start=False)

        def show(step: int, steps: int, loss: float) -> None:
            progress.start_task(task)
            progress.update(task, completed=step, total=steps, description=f"warm start, loss {loss:.3f}")

        started = time.monotonic()
        path = build_model(plan, show)
    console.print(f"base policy: {path}  ({time.monotonic() - started:.0f} s)", highlight=False, soft_wrap=True)
    return path


async def _evaluated(plan: Plan, model_path: str) -> dict[str, object]:
    """Publish (which proves the engines' weights), then evaluate."""
    evaluation = plan.config.evaluation
    source = plan.source(plan.tokenizer(model_path))
    components = await _build(plan)(plan, model_path, StandardError())
    try:
        await components.transport.publish(0)
        result = await evaluate(
            components.rollout,
            components.verifier,
            source.heldout(evaluation.num_prompts),
            plan.evaluation_sampling(),
            ks=evaluation.ks,
            pass_reward=evaluation.pass_reward,
            max_in_flight=plan.max_in_flight,
        )
    finally:
        await components.close()
    return result.to_json()


def _recorder(plan: Plan, model_path: str, console: Console) -> Recorder:
    config = plan.config
    objective = config.objective
    clip = objective.token_clip
    settings = RecorderSettings(
        folder=plan.run_dir,
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
        divergence=objective.divergence,
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
    return Recorder(settings, console, plan.tokenizer(model_path), _cluster_sinks(config))


def _cluster_sinks(config: Config) -> list[MetricsSink]:
    """Where the cluster itself shows the metrics."""
    if config.cluster.kind is ClusterKind.inprocess:
        return []
    from actors.metrics import RayMetrics

    return [RayMetrics(config.run.name)]
