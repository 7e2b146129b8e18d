"""What the command line does before anything is trained: plan, data, doctor, simulate."""

from __future__ import annotations

import dataclasses
import json
import socket
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from lpo_ray.config import load_config
from lpo_ray.config.schema import ClusterKind, Config
from lpo_ray.errors import ChecksFailed, ConfigError, DoesNotFit
from lpo_ray.run.spec import RunSpec, data_spec, outline
from lpo_ray.tasks.base_policy import character_tokenizer, default_cache_dir
from lpo_ray.tools import data_report as data_view
from lpo_ray.tools import doctor
from lpo_ray.tools.plan.architecture import read_architecture
from lpo_ray.tools.plan.forecast import Assumptions, make_forecast
from lpo_ray.tools.plan.machines import Machine, described, this_machine
from lpo_ray.tools.plan.render import render_forecast, render_rows
from lpo_ray.tools.plan.requirements import bundles
from lpo_ray.tools.plan.throughput import measured_in
from lpo_ray.tools.simulate import run as simulation
from lpo_ray.tools.simulate.run import simulate_each

ROW_WIDTH = 200
"""columns of a table that is not cut where the output is no terminal"""


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


def plan_command(
    config: Config,
    clusters: Sequence[str],
    address: str | None,
    from_run: Path | None,
    given: Assumptions,
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


def _machines(plan: RunSpec, clusters: Sequence[str], address: str | None) -> list[tuple[str, list[Machine]]]:
    """Name and machines of each cluster that was asked for."""
    if clusters and address is not None:
        raise ConfigError(f"--cluster {clusters[0]} and --address {address} are both given; expected one of them")
    if clusters:
        return [(name, described(name)) for name in clusters]
    if (address := address or plan.config.cluster.address) is not None:
        from actors.runtime.machines import nodes_at

        return [(address, nodes_at(address))]
    return [("this machine", [this_machine(sum(bundle.cpus for bundle in bundles(plan)) + 1)])]


def _measured(given: Assumptions, run_dir: Path) -> Assumptions:
    """``given``, with the rates and the length of responses of the run in ``run_dir`` where nothing else is said."""
    if not (run_dir / "config.yaml").is_file():
        raise ConfigError(f"--from-run {run_dir} has no config.yaml; expected the folder of a run")
    stored = load_config(run_dir / "config.yaml")
    world_size = 1 if stored.cluster.kind is ClusterKind.inprocess else stored.learner.world_size
    found = measured_in(run_dir, num_workers=stored.rollout.num_workers, world_size=world_size)
    length = given.response_tokens if given.response_tokens is not None else found.response_tokens
    return dataclasses.replace(given, measured=found.rates, response_tokens=length)


def data_command(config: Config, *, as_json: bool) -> None:
    """Print the first prompts of a run as the engine will get them, and what is in its data. DataError when that cannot
    be used.
    """
    plan = data_spec(config)
    path = plan.model_path
    report = data_view.read(plan, character_tokenizer() if path is None else plan.tokenizer(path))
    if as_json:
        sys.stdout.write(json.dumps(report.to_json(), indent=2) + "\n")
    else:
        Console(highlight=False).print(data_view.render(report))


def doctor_command(address: str | None, *, as_json: bool, quick: bool) -> None:
    """Print what was found on this machine, or on every node of the cluster at ``address``; ChecksFailed names what
    fails.
    """
    surroundings = doctor.Surroundings(Path("runs").absolute(), default_cache_dir(), Path(tempfile.gettempdir()))
    if address is None:
        groups = {socket.gethostname(): doctor.examine(doctor.CHECKS, surroundings, quick=quick)}
    else:
        from actors.doctor.nodes import examine_cluster

        groups = examine_cluster(address, surroundings, quick=quick)
    if as_json:
        sys.stdout.write(json.dumps(doctor.as_json(groups), indent=2) + "\n")
    else:
        Console(width=None if sys.stdout.isatty() else doctor.WIDTH).print(doctor.render(groups))
    if failed := doctor.failures(groups):
        raise ChecksFailed(failed)
