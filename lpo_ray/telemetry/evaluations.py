"""``evaluations.json`` of a run's folder: what the evaluations found, by the step after which they were made."""

from __future__ import annotations

import json
from pathlib import Path

from lpo_ray.evaluation import Evaluation
from lpo_ray.telemetry.sinks import write_json


class Evaluations:
    """Those of one run. Written whole at every addition."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._found: dict[int, dict[str, object]] = {}

    def resumed(self, step: int) -> None:
        """Take those that were made up to ``step`` from the file."""
        if self._path.exists():
            stored = json.loads(self._path.read_text(encoding="utf-8"))
            self._found = {int(at): value for at, value in stored.items() if int(at) <= step}

    def add(self, step: int, evaluation: Evaluation) -> None:
        """The policy after ``step`` was evaluated."""
        self._found[step] = evaluation.to_json()
        write_json(self._path, {str(at): value for at, value in self._found.items()})

    def after(self, step: int) -> dict[str, object] | None:
        """Evaluation.to_json() of the policy after ``step``; None: not evaluated."""
        return self._found.get(step)
