"""Folders of runs: which there are, where each is, its curves and its log."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import yaml

from lpo_ray.errors import ConfigError
from lpo_ray.telemetry.log import LogLine
from lpo_ray.telemetry.monitor.charts import Chart, charts_of
from lpo_ray.telemetry.sinks import MetricsLog
from lpo_ray.telemetry.status import state_of
from lpo_ray.tools.view.group_list import sample_steps

MARKS = ("status.json", "metrics.jsonl", "samples")
"""any of them makes a folder a run's"""
DEPTH = 3
"""folders below the given one in which runs are looked for: a comparison has arms, and these have seeds"""
MOST_RUNS = 1000
MOST_POINTS = 400
"""points of a curve; of a longer run, every n-th step and the last"""
TAIL_BYTES = 1 << 18
SCALES = ("reward", "pass_rate", "token_entropy", "staleness")
"""metrics of the newest step that the list of runs shows"""


@dataclass(frozen=True, slots=True)
class RunInfo:
    """Place and progress of one run.

    Example: ``RunInfo("arm/0", "quickstart", "countdown", "running", 12, 64, {"reward": 0.2}, 1, 12, 12, "17:4096")``
    """

    run: str
    """its folder, from the folder that is viewed; "." is that folder"""
    name: str
    task: str
    state: str
    step: int
    steps: int | None
    """steps that are planned; None: not known"""
    last: Mapping[str, float]
    """values of the newest step: SCALES that it has"""
    first_sample: int | None
    last_sample: int | None
    """first and last step of which there are samples"""
    num_samples: int
    """steps of which there are samples"""
    revision: str
    """changes with the metrics and the evaluations"""


def find_runs(root: Path) -> list[str]:
    """Find the runs in ``root``, or ``["."]`` when it is one itself; links are not followed. At most MOST_RUNS."""
    found: list[str] = []
    for folder in _walk(root, DEPTH):
        found.append(folder.relative_to(root).as_posix())
        if len(found) == MOST_RUNS:
            break
    return found


def run_folder(root: Path, run: str) -> Path:
    """Find the folder of a run by its name in ``find_runs``. ConfigError for everything else, outside of ``root`` above
    all.
    """
    try:
        folder = (root / run).resolve()
        inside = folder.is_relative_to(root.resolve()) and _is_run(folder)
    except (OSError, ValueError):  # a name that no file can have
        inside, folder = False, root
    if not inside:
        raise ConfigError(f"{run!r} is not a run in {root}; expected one of those that the page lists")
    return folder


def run_info(root: Path, run: str) -> RunInfo:
    """Describe one run; ConfigError as from ``run_folder``."""
    folder = run_folder(root, run)
    status, summary = read_object(folder / "status.json"), read_object(folder / "summary.json")
    config = read_config(folder)
    last = _last_row(folder / "metrics.jsonl")
    steps = sample_steps(folder)
    planned = status.get("steps")
    return RunInfo(
        run=run,
        name=str(status.get("run") or summary.get("run") or folder.name),
        task=str(summary.get("task") or _section(config, "task").get("name") or ""),
        state=_state(status),
        step=_whole(last.get("step")) or 0,
        steps=_whole(planned),
        last={name: float(value) for name in SCALES if isinstance(value := last.get(name), int | float)},
        first_sample=steps[0] if steps else None,
        last_sample=steps[-1] if steps else None,
        num_samples=len(steps),
        revision=":".join(_stamp(folder / name) for name in ("metrics.jsonl", "evaluations.json")),
    )


def curves(folder: Path) -> list[dict[str, object]]:
    """Read the curves: for each chart that has data: title, unit, about, stacked, steps [N] and series, each a
    label and values [N] (None: not measured). Series of evaluations have low and high [N] too, their 95 % intervals.
    """
    rows = [row for row in _rows(folder / "metrics.jsonl") if _whole(row.get("step")) is not None]
    rows = _thinned(rows)
    steps = [row["step"] for row in rows]
    found: list[dict[str, object]] = []
    for chart in charts_of(rows):
        if not chart.series:
            found.extend(_evaluation_chart(chart, read_object(folder / "evaluations.json")))
            continue
        series = [
            {"label": label, "values": [_number(row.get(name)) for row in rows]}
            for name, label in chart.series.items()
            if any(name in row for row in rows)
        ]
        if series:
            found.append(_drawn(chart, steps, series))
    return found


def log_tail(folder: Path) -> list[dict[str, object]]:
    """Return the newest lines of log.jsonl, oldest of them first: level, text and the line as the terminal has it."""
    lines = []
    for text in _tail(folder / "log.jsonl"):
        with suppress(
            ValueError, TypeError, AttributeError, OverflowError, OSError, RecursionError
        ):  # cut short, or no such line
            line = LogLine.from_json(text)
            lines.append({"level": str(line.level), "text": line.render()})
    return lines


def read_object(path: Path) -> dict[str, object]:
    """Read a JSON object; empty when there is none, or none that can be read."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def read_config(folder: Path) -> dict[str, object]:
    """Read config.yaml; empty when there is none, or none that can be read."""
    try:
        value = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def model_path(folder: Path) -> str | None:
    """model.path of the run's configuration."""
    path = _section(read_config(folder), "model").get("path")
    return path if isinstance(path, str) else None


def _walk(folder: Path, depth: int) -> Iterator[Path]:
    if _is_run(folder):
        yield folder
    elif depth:
        with suppress(OSError):  # not ours to read, or gone
            for child in sorted(folder.iterdir()):
                if child.is_dir() and not child.is_symlink() and not child.name.startswith("."):
                    yield from _walk(child, depth - 1)


def _is_run(folder: Path) -> bool:
    return any((folder / mark).exists() for mark in MARKS)


def task_of(folder: Path) -> Mapping[str, object]:
    """Read the section ``task`` of the run's configuration; {} where it cannot be read."""
    return _section(read_config(folder), "task")


def _section(config: Mapping[str, object], name: str) -> Mapping[str, object]:
    section = config.get(name)
    return cast("Mapping[str, object]", section) if isinstance(section, dict) else {}


def _state(status: Mapping[str, object]) -> str:
    try:
        return state_of(status)
    except (KeyError, ValueError, TypeError, OverflowError):  # no status.json, or one of something else
        return "not known"


def _whole(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) else None


def _stamp(path: Path) -> str:
    try:
        found = path.stat()
    except OSError:
        return "-"
    return f"{found.st_mtime_ns}.{found.st_size}"


def _rows(path: Path) -> Sequence[Mapping[str, object]]:
    return _parsed(path, _stamp(path))


@functools.lru_cache(maxsize=4)
def _parsed(path: Path, stamp: str) -> Sequence[Mapping[str, object]]:
    """Parse a file, once for each ``stamp``."""
    try:
        return [row for row in MetricsLog(path).read() if isinstance(row, dict)]
    except (OSError, ValueError, RecursionError):
        return []


def _thinned(rows: Sequence[Mapping[str, object]]) -> Sequence[Mapping[str, object]]:
    every = -(-len(rows) // MOST_POINTS)
    return rows if every <= 1 else [*rows[:-1:every], rows[-1]]


def _tail(path: Path) -> list[str]:
    """Return the last whole lines of a text file, at most TAIL_BYTES of them."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - TAIL_BYTES))
            lines = file.read().decode("utf-8", errors="replace").split("\n")
    except OSError:
        return []
    return lines[1 if size > TAIL_BYTES else 0 :]


def _last_row(path: Path) -> dict[str, object]:
    for line in reversed(_tail(path)):
        with suppress(ValueError, RecursionError):
            row = json.loads(line)
            if isinstance(row, dict):
                return row
    return {}


def _evaluation_chart(chart: Chart, stored: Mapping[str, object]) -> Iterator[dict[str, object]]:
    found = sorted((int(at), cast("Mapping", value)) for at, value in stored.items() if at.isdecimal())
    found = [(at, value) for at, value in found if isinstance(value, Mapping)]
    names = sorted(
        {name for _, value in found for name in value if name.startswith("pass@")}, key=lambda n: (len(n), n)
    )
    series = []
    for name in names:
        bounds = [_interval(value, name) for _, value in found]
        series.append(
            {
                "label": name,
                "values": [_number(value.get(name)) for _, value in found],
                "low": [low for low, _ in bounds],
                "high": [high for _, high in bounds],
            }
        )
    if series:
        yield _drawn(chart, [at for at, _ in found], series)


def _drawn(chart: Chart, steps: Sequence[object], series: Sequence[object]) -> dict[str, object]:
    return {
        "title": chart.title,
        "unit": chart.unit,
        "about": chart.about,
        "stacked": chart.stacked,
        "steps": steps,
        "series": series,
    }


def _interval(value: Mapping[str, object], name: str) -> tuple[float | None, float | None]:
    intervals = value.get("ci95")
    found = intervals.get(name) if isinstance(intervals, dict) else None
    return (_number(found[0]), _number(found[1])) if isinstance(found, list) and len(found) == 2 else (None, None)
