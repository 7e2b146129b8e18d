"""``lpo-ray evaluate``, once the requests are known to be good."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Sequence

from rich.console import Console
from rich.progress import Progress, TaskID

from lpo_ray.cli.backend import backend_of, check_engine_args
from lpo_ray.cli.console import TABLE_WIDTH, model_of, progress_bar
from lpo_ray.common.files import write_json
from lpo_ray.errors import ConfigError, EvaluationInterrupted, Interrupted
from lpo_ray.evaluation.report import Report
from lpo_ray.evaluation.store import begun_on
from lpo_ray.evaluation.table import render, render_suite
from lpo_ray.run.day import dated
from lpo_ray.run.signals import run_until_signal
from lpo_ray.run.spec import RunSpec, make_spec
from lpo_ray.telemetry.captured_log import CapturedLog
from lpo_ray.tools.evaluate.session import EvaluationRun, opened
from lpo_ray.tools.evaluate.target import EvaluationRequest


def evaluate_command(requests: Sequence[EvaluationRequest], by: str | None, *, fresh: bool, as_json: bool) -> None:
    """Evaluate one model on the task of each request, or continue an evaluation that was ended; show what came out."""
    progress_console = Console(stderr=True)
    specs = [
        make_spec(dated(request.config, None if fresh else begun_on(request.folder)), for_training=False)
        for request in requests
    ]
    check_engine_args(specs[0])
    _check_environments(specs)
    with CapturedLog(), contextlib.ExitStack() as stack:
        model_path = model_of(specs[0], progress_console)
        runs = [
            stack.enter_context(opened(request, spec, model_path, by, fresh=fresh))
            for request, spec in zip(requests, specs, strict=True)
        ]
        lost: list[dict[str, str]] = [{} for _ in runs]
        if any(run.missing for run in runs):
            widest = max(spec.max_model_len for spec in specs)
            lost = _score(runs, specs[0].with_room_for(widest), model_path, progress_console)
        reports = {run.request.name: run.report(why) for run, why in zip(runs, lost, strict=True)}
    _show(requests, reports, as_json=as_json)


def _check_environments(specs: Sequence[RunSpec]) -> None:
    """Check that one set of environments serves all tasks. Raises ConfigError."""
    tasks = [spec.config.task for spec in specs]
    hosted = list(dict.fromkeys((task.environment, task.agent and str(task.agent), *task.tools) for task in tasks))
    if len(hosted) > 1:
        named = [", ".join(str(name) for name in names if name) or "none" for names in hosted[:2]]
        raise ConfigError(
            f"the tasks have environments or tools that differ: {named[0]}; {named[1]}; expected the same for all: "
            "evaluate them with a command each"
        )


def _score(runs: Sequence[EvaluationRun], spec: RunSpec, model_path: str, console: Console) -> list[dict[str, str]]:
    """Score what each run lacks, one after the other on the same engines; returns the lost prompts of each."""
    backend = backend_of(spec.config)

    async def score(progress: Progress) -> list[dict[str, str]]:
        lost = []
        async with backend.open_engines(spec, model_path) as (rollout, verifier):
            for run in runs:
                task = progress.add_task(run.request.name, total=len(run.missing))

                def show(done: int, _: int, task: TaskID = task) -> None:
                    progress.update(task, completed=done)

                lost.append(await run.score(rollout, verifier, show))
        return lost

    try:
        with backend.cluster(), progress_bar(console) as progress:
            return run_until_signal(lambda _: score(progress))
    except Interrupted as stopped:
        raise EvaluationInterrupted(stopped.signal_number, 0) from stopped


def _show(requests: Sequence[EvaluationRequest], reports: dict[str, Report], *, as_json: bool) -> None:
    if len(reports) > 1:
        whole = {name: report.to_json() for name, report in reports.items()}
        write_json(requests[0].folder.parent / "results.json", whole)
    else:
        whole = next(iter(reports.values())).to_json()
    if as_json:
        json.dump(whole, sys.stdout, indent=2)
        sys.stdout.write("\n")
        return
    console = Console(width=None if sys.stdout.isatty() else TABLE_WIDTH)
    for request in requests:
        console.print(render(reports[request.name]))
        console.print(
            f"{request.folder}  (results.json, picture.png, evaluation.jsonl)", highlight=False, soft_wrap=True
        )
    if len(reports) > 1:
        console.print(render_suite(reports))
