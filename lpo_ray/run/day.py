"""The day that prompts are told: that on which a run was begun, so that they are the same after a resume."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import date
from pathlib import Path

from lpo_ray.config.load import read_layer
from lpo_ray.config.scalars import Scalar
from lpo_ray.config.schema import Config


def dated(config: Config, begun: str | None) -> Config:
    """Set task.date, where it is null, to the day ``begun``; None: to today."""
    day = config.task.date or begun or date.today().isoformat()
    return replace(config, task=replace(config.task, date=day))


def begun_on(folder: Path) -> str | None:
    """Read the day of a folder's run or comparison; None: there is none, or it has no day."""
    path = folder / "config.yaml"
    task = read_layer(path)[1].get("task") if path.is_file() else None
    day = task.get("date") if isinstance(task, Mapping) else None
    return str(day) if isinstance(day, Scalar) and not day.is_null else None
