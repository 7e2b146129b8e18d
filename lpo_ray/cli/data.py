"""``lpo-ray data``."""

from __future__ import annotations

import json
import sys

from rich.console import Console

from lpo_ray.config.schema import Config
from lpo_ray.run.spec import data_spec
from lpo_ray.tasks.base_policy import character_tokenizer
from lpo_ray.tools.data_report import read_data, render


def data_command(config: Config, *, as_json: bool) -> None:
    """Print the first prompts of a run as the engine will get them, and what is in its data. DataError when that cannot
    be used.
    """
    spec = data_spec(config)
    path = spec.model_path
    report = read_data(spec, character_tokenizer() if path is None else spec.tokenizer(path))
    if as_json:
        sys.stdout.write(json.dumps(report.to_json(), indent=2) + "\n")
    else:
        Console(highlight=False).print(render(report))
