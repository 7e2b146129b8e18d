"""``lpo-ray simulate``."""

from __future__ import annotations

import dataclasses
import json
import sys

from rich.console import Console

from lpo_ray.config.schema import Config
from lpo_ray.errors import ConfigError
from lpo_ray.tools.simulate.run import render, simulate_each


def simulate_command(config: Config, engines: str, *, as_json: bool) -> None:
    """Simulate the configuration for each of the comma-separated numbers of engines."""
    try:
        numbers = [int(part) for part in engines.split(",")] if engines else [config.rollout.num_workers]
    except ValueError:
        raise ConfigError(f"--engines is {engines!r}; expected numbers such as 16,256,4096") from None
    if min(numbers) < 1:
        raise ConfigError(f"--engines is {engines!r}; expected numbers above 0")
    results = []
    for result in simulate_each(config, numbers):
        results.append(result)
        if as_json:
            sys.stdout.write(json.dumps(dataclasses.asdict(result)) + "\n")
            sys.stdout.flush()
    if not as_json:
        Console().print(render(results))
