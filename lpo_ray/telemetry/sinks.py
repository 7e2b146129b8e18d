"""Where metrics go: metrics.jsonl (the record), TensorBoard (a view of it), and whole JSON files."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path

from lpo_ray.redaction import redact
from lpo_ray.telemetry.metrics import Value


class MetricsLog:
    """metrics.jsonl: one object a step, in order, without gap or repeat across resumes."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def append(self, metrics: Mapping[str, Value]) -> None:
        """Write one step as one line."""
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(_finite(metrics)) + "\n")

    def read(self) -> list[dict[str, Value]]:
        """All whole lines; a last line that a kill cut short is not a step."""
        if not self._path.exists():
            return []
        rows = []
        for line in self._path.read_text(encoding="utf-8").splitlines():
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError:
                break
        return rows

    def truncate_after(self, step: int) -> None:
        """Drop what a resumed run will write again: every line after ``step``."""
        kept = [row for row in self.read() if int(str(row["step"])) <= step]
        if kept or self._path.exists():
            write_text(self._path, "".join(json.dumps(row) + "\n" for row in kept))


class TensorBoard:
    """Scalars by group, for ``tensorboard --logdir``."""

    def __init__(self, folder: Path, first_step: int) -> None:
        """``first_step``: events from there on are purged; the resumed run writes them again."""
        from torch.utils.tensorboard.writer import SummaryWriter

        self._writer = SummaryWriter(str(folder), purge_step=first_step)

    def append(self, metrics: Mapping[str, Value]) -> None:
        """Write every number of one step."""
        step = int(str(metrics["step"]))
        for name, value in metrics.items():
            if isinstance(value, int | float) and name != "step":
                self._writer.add_scalar(f"{name.partition('_')[0]}/{name}", value, step)
        self._writer.flush()

    def close(self) -> None:
        """Flush and close."""
        self._writer.close()


def write_json(path: Path, value: Mapping[str, object]) -> None:
    """Write a whole JSON file or nothing. Numbers that are not finite become null."""
    write_text(path, json.dumps(_finite(value), indent=2) + "\n")


def write_text(path: Path, text: str) -> None:
    """Replace the file's content at once: a reader sees the old or the new text. Folders of runs are passed on, so the
    value of a secret, which the last words of a process may contain, becomes its name.
    """
    partial = path.with_name(f".partial-{path.name}")
    partial.write_text(redact(text), encoding="utf-8", errors="replace")
    os.replace(partial, path)


def _finite(value: object) -> object:
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
