"""``lpo-ray plan``."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from lpo_ray.cli.backend import check_engine_args
from lpo_ray.cli.console import ROW_WIDTH
from lpo_ray.config import load_config
from lpo_ray.config.schema import Config
from lpo_ray.errors import ConfigError, DoesNotFit
from lpo_ray.run.settings import setup_of
from lpo_ray.run.spec import RunSpec, outline
from lpo_ray.tools.plan.architecture import read_architecture
from lpo_ray.tools.plan.forecast import Assumptions, make_forecast
from lpo_ray.tools.plan.machines import Machine, described, this_machine
from lpo_ray.tools.plan.render import render_forecast, render_rows
from lpo_ray.tools.plan.requirements import bundles
from lpo_ray.tools.plan.throughput import measured_in


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
    spec = outline(config, model.context)
    check_engine_args(spec)
    if from_run is not None:
        given = _measured(given, from_run)
    forecasts = [(name, make_forecast(spec, model, found, given)) for name, found in _machines(spec, clusters, address)]
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


def limit_problems_here(spec: RunSpec) -> list[str]:
    """Say which limits of the run a forecast for this machine exceeds; none for a run elsewhere, or a model that is not
    here.
    """
    if spec.config.cluster.address is not None:
        return []
    try:
        model = read_architecture(spec.config.model.path)
    except ConfigError:
        return []
    (_, here), *_ = _machines(spec, (), None)
    return [limit.problem for limit in make_forecast(spec, model, here, Assumptions()).limits if limit.problem]


def _machines(spec: RunSpec, clusters: Sequence[str], address: str | None) -> list[tuple[str, list[Machine]]]:
    """Name and machines of each cluster that was asked for."""
    if clusters and address is not None:
        raise ConfigError(f"--cluster {clusters[0]} and --address {address} are both given; expected one of them")
    if clusters:
        return [(name, described(name)) for name in clusters]
    if (address := address or spec.config.cluster.address) is not None:
        from actors.runtime.machines import nodes_at

        return [(address, nodes_at(address))]
    return [("this machine", [this_machine(sum(bundle.cpus for bundle in bundles(spec.config)) + 1)])]


def _measured(given: Assumptions, run_dir: Path) -> Assumptions:
    """``given``, with the rates and the length of responses of the run in ``run_dir`` where nothing else is said."""
    if not (run_dir / "config.yaml").is_file():
        raise ConfigError(f"--from-run {run_dir} has no config.yaml; expected the folder of a run")
    stored = load_config(run_dir / "config.yaml")
    setup = setup_of(stored)
    found = measured_in(run_dir, num_workers=setup.num_workers, world_size=setup.world_size)
    length = given.response_tokens if given.response_tokens is not None else found.response_tokens
    return dataclasses.replace(given, measured=found.rates, response_tokens=length)
