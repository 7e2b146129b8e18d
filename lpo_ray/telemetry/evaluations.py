"""``evaluations.json`` of a run's folder: the evaluations, by the step after which they were made."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lpo_ray.common.files import write_json
from lpo_ray.records import Evaluation

NUM_CORRECT = "num_correct"
"""key of every evaluation in the file: prompt -> its passing responses; prompts that were lost are not there"""


class Evaluations:
    """Evaluations of one run, written whole at every addition."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._found: dict[int, dict[str, object]] = {}

    def resumed(self, step: int) -> None:
        """Read those that were made up to ``step``, and drop the others: the run will come to other weights there."""
        stored = read_evaluations(self._path)
        self._found = {at: dict(value) for at, value in stored.items() if at <= step}
        if len(self._found) < len(stored):
            self._write()

    def add(self, step: int, evaluation: Evaluation) -> None:
        """Add the evaluation of the policy after ``step``, and write the file."""
        passed = dict(zip(evaluation.prompt_ids, evaluation.num_correct.tolist(), strict=True))
        self._found[step] = {**evaluation.to_json(), NUM_CORRECT: passed}
        self._write()

    def after(self, step: int) -> dict[str, object] | None:
        """Return Evaluation.to_json() of the policy after ``step``; None: not evaluated."""
        found = self._found.get(step)
        return None if found is None else {key: value for key, value in found.items() if key != NUM_CORRECT}

    def _write(self) -> None:
        write_json(self._path, {str(at): value for at, value in self._found.items()})


def read_evaluations(path: Path) -> dict[int, Mapping[str, Any]]:
    """Read step -> Evaluation.to_json() and NUM_CORRECT, in order of the steps; {} without a file."""
    stored = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return {step: stored[str(step)] for step in sorted(int(at) for at in stored)}
