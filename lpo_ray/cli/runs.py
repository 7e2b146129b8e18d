"""Commands about live runs: submit, list, logs, stop, scale, status, ledger, why.

Imports no torch, so that an answer does not wait for it.
"""

from __future__ import annotations

import dataclasses
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, cast

from rich.console import Console
from rich.table import Table

from lpo_ray.common.redaction import redact
from lpo_ray.errors import ComponentFailed, ConfigError, DeadlineExceeded, LedgerUnbalanced, RunNotDone
from lpo_ray.run.signals import run_until_signal
from lpo_ray.telemetry.monitor.why import place, render_why, why_from_folder
from lpo_ray.telemetry.status import driver_of, read_status, render_status, state_of
from lpo_ray.training.ledger_audit import audit, render

if TYPE_CHECKING:
    from lpo_ray.config.schema import Config


END_SECONDS = 10.0
"""from the end of what a job says to the end of the job"""


def submit_command(config: Config, address: str, working_dir: Path | None, exclude: Sequence[str]) -> str:
    """Start the run of ``config`` as a job of the cluster; returns the job's id. run.dir is taken from here on."""
    from actors.control.jobs import Jobs
    from lpo_ray.config import dump_config

    run = dataclasses.replace(config.run, dir=str(Path(config.run.dir).absolute()))
    cluster = dataclasses.replace(config.cluster, address="auto")
    jobs = Jobs(address)
    job_id = jobs.submit(
        dump_config(dataclasses.replace(config, run=run, cluster=cluster)), run.name, working_dir, exclude
    )
    sys.stdout.write(f"{run.name} is job {job_id} of {address}; its folder there: {run.dir}/{run.name}\n")
    return job_id


def follow_command(run: str, address: str, *, follow: bool) -> None:
    """Print what a run says, to its end with ``follow``. Raises ComponentFailed when it failed, and RunNotDone when it
    ended otherwise than by succeeding, or has not ended.
    """
    from actors.control.jobs import Jobs

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
    with suppress(DeadlineExceeded):
        jobs.wait(job.job_id, END_SECONDS)
    ended = jobs.state(job.job_id)
    if ended.state == "FAILED":
        raise ComponentFailed(f"job {job.job_id}", "train", ended.message)
    if ended.state != "SUCCEEDED":
        raise RunNotDone(run, job.job_id, ended.state)
    sys.stdout.write(f"job {job.job_id}: {ended.state}\n")


def list_command(address: str) -> None:
    """Print all runs of the cluster."""
    from actors.control.jobs import Jobs

    table = Table(title=f"runs of {address}", title_justify="left")
    for column in ("run", "state", "job", "submitted", "message"):
        table.add_column(column)
    for job in Jobs(address).runs():
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(job.since))
        table.add_row(job.run, job.state, job.job_id, when, job.message.splitlines()[0] if job.message else "")
    Console().print(table)


def stop_command(run: str, address: str) -> None:
    """Have a run end its update and write a checkpoint; returns when it has ended."""
    from actors.control.jobs import STOP_SECONDS, Jobs

    jobs = Jobs(address)
    job = jobs.find(run)
    if job.state not in ("PENDING", "RUNNING"):
        raise ConfigError(f"run {run} has ended already ({job.state}, job {job.job_id}); expected one that is running")
    jobs.stop(job.job_id)
    sys.stdout.write(f"{run} is asked to stop: it ends its update and writes a checkpoint\n")
    ended = jobs.wait(job.job_id, STOP_SECONDS)
    sys.stdout.write(f"{run} has ended: {ended.state}; continue with run.resume=auto\n")


def stop_here_command(run_dir: Path) -> None:
    """Have a run of this host, by its folder, end its update and write a checkpoint."""
    status = read_status(run_dir)
    driver = driver_of(status)
    try:
        is_asked = not status["ended"] and driver is not None and driver.send(signal.SIGTERM)
    except PermissionError as error:
        raise ConfigError(f"{run_dir}: {driver} is another user's; expected a run of yours") from error
    if not is_asked:
        raise ConfigError(
            f"{run_dir}: {state_of(status)}; expected a run that is live here, or --address of the cluster that has it"
        )
    sys.stdout.write(f"{status['run']} is asked to stop: it ends its update and writes a checkpoint\n")


def scale_command(run: str, address: str | None, role: str, count: int) -> None:
    """Have ``count`` workers of ``role`` in a live run, and print what happens."""
    question = {"kind": "scale", "role": role, "count": count}
    sys.stdout.write(f"{_ask(run, address, question)['answer']}\n")


def status_command(run: str, address: str | None) -> None:
    """Print where a run is and which worker serves which weights."""
    status = read_status(Path(run)) if address is None else _ask(run, address, {"kind": "status"})["status"]
    Console().print(render_status(cast("Mapping", status)))


def ledger_command(run_dir: Path) -> None:
    """Print what became of every prompt. Raises LedgerUnbalanced when the books do not balance."""
    books = audit(run_dir)
    Console().print(render(books))
    if books.violations:
        raise LedgerUnbalanced(str(run_dir), books.violations)


def trace_command(run_dir: Path, prompt: str) -> None:
    """Print what happened to one prompt: its attempts, their responses and how each ended."""
    from lpo_ray.tools.trace import render, trace

    Console().print(render(trace(run_dir, prompt)))


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
        from actors.control.jobs import Jobs

        return Jobs(address).ask(run, question)
    status = read_status(Path(run))
    if status["ended"] or not status.get("cluster"):
        raise ConfigError(f"{run}: {state_of(status)}; expected the folder of a live run on Ray")
    from actors.control.queries import ask_here

    return ask_here(status["cluster"], {"run": status["run"], **question})
