"""Sinks of metrics: metrics.jsonl (the record) and TensorBoard (a view of it)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from lpo_ray.common.files import append_text, finite, write_text

if TYPE_CHECKING:
    from torch.utils.tensorboard.writer import SummaryWriter

Value = int | float | str | list[int] | list[float] | list[str]


class MetricsSink(Protocol):
    """Sink of what a run measures. ``resumed`` is called once, before the first step or evaluation. A thread calls
    ``append``, one step after the other, and the run goes on meanwhile.
    """

    def resumed(self, step: int) -> None:
        """Continue after ``step`` (0: start). What was taken of later steps will come again."""
        ...

    def append(self, metrics: Mapping[str, Value]) -> None:
        """Take the metrics of a step that is done, as metrics.step_metrics makes them."""
        ...

    def evaluated(self, step: int, scores: Mapping[str, float]) -> None:
        """Take the scores of the policy after ``step``, by names such as "evaluation_pass@1"."""
        ...

    def changed(self, values: Mapping[str, int]) -> None:
        """Take metrics that changed since the last step, as metrics.worker_metrics makes them. Called at any time."""
        ...

    def close(self) -> None:
        """Write what is left: the run is over. Also called when ``resumed`` never was."""
        ...


class MetricsLog:
    """File metrics.jsonl: one object a step, in order, without gap or repeat across resumes."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def append(self, metrics: Mapping[str, Value]) -> None:
        """Write one step as one line: it is on disk before the step is committed."""
        append_text(self._path, json.dumps(finite(metrics)) + "\n")

    def read(self) -> list[dict[str, Value]]:
        """Return all whole lines; a last line that a kill cut short is not a step."""
        if not self._path.exists():
            return []
        rows = []
        for line in self._path.read_text(encoding="utf-8").splitlines():
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError:
                break
        return rows

    def resumed(self, step: int) -> None:
        """Drop every line after ``step``: the run will write it again."""
        kept = [row for row in self.read() if int(str(row["step"])) <= step]
        if kept or self._path.exists():
            write_text(self._path, "".join(json.dumps(row) + "\n" for row in kept))

    def evaluated(self, step: int, scores: Mapping[str, float]) -> None:
        """Write nothing: evaluations have a file of their own."""

    def changed(self, values: Mapping[str, int]) -> None:
        """Write nothing: the next step's line has it."""

    def close(self) -> None:
        """Do nothing: every line is written already."""


class TensorBoard:
    """Event files of TensorBoard: scalars by group, for ``tensorboard --logdir``."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._writer: SummaryWriter | None = None

    def resumed(self, step: int) -> None:
        """Purge the events after ``step``: the run will write them again."""
        from torch.utils.tensorboard.writer import SummaryWriter

        self._writer = SummaryWriter(str(self._folder), purge_step=step + 1)

    def append(self, metrics: Mapping[str, Value]) -> None:
        """Write every number of one step."""
        self._add(int(str(metrics["step"])), numbers(metrics))

    def evaluated(self, step: int, scores: Mapping[str, float]) -> None:
        """Write the scores."""
        self._add(step, scores)

    def changed(self, values: Mapping[str, int]) -> None:
        """Write nothing: the next step has it."""

    def close(self) -> None:
        """Flush and close."""
        if self._writer is not None:
            self._writer.close()

    def _add(self, step: int, values: Mapping[str, float]) -> None:
        assert self._writer is not None
        for name, value in values.items():
            self._writer.add_scalar(in_group(name), value, step)
        self._writer.flush()


def numbers(metrics: Mapping[str, Value]) -> dict[str, float]:
    """Return the metrics that are one number, without the step."""
    return {name: value for name, value in metrics.items() if isinstance(value, int | float) and name != "step"}


def in_group(name: str) -> str:
    """Return a metric's name under its first word, by which viewers group charts: "publish/publish_bytes"."""
    return f"{name.partition('_')[0]}/{name}"
