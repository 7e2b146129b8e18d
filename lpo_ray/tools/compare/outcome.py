"""Outcome of a run, read from its folder: passing responses of every prompt at every evaluation, and curves."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lpo_ray.evaluation import pass_at_k
from lpo_ray.telemetry.evaluations import read_evaluations
from lpo_ray.telemetry.sinks import MetricsLog

CURVES = ("token_entropy", "gradient_norm", "response_length")
"""metrics of every step that are compared beside pass@k"""


@dataclass(frozen=True, slots=True, eq=False)
class ArmResult:
    """Result of one finished run, made by read_outcome."""

    num_correct: Mapping[int, Mapping[str, int]]
    """step -> prompt -> passing responses; a prompt that was lost is not there"""
    samples: int
    """responses of each prompt"""
    curves: Mapping[str, np.ndarray]
    """metric -> [T]"""
    trained: int
    """groups"""
    tokens: int
    """response tokens of the groups that were trained"""
    seconds: float

    def pass_at(self, k: int, step: int, prompts: Sequence[str]) -> np.ndarray:
        """Estimate pass@k, unbiased, [P], after ``step``; NaN for a prompt that was lost."""
        found = self.num_correct[step]
        counts = np.array([found.get(prompt, -1) for prompt in prompts])
        return np.where(counts < 0, np.nan, pass_at_k(np.maximum(counts, 0), self.samples, k))


def is_finished(folder: Path, steps: int) -> bool:
    """Tell whether the run came to its end, the evaluation after its last step included."""
    path = folder / "summary.json"
    if not path.exists():
        return False
    summary = json.loads(path.read_text(encoding="utf-8"))
    return summary["steps"] == steps and summary["evaluation"]["after"] is not None


def read_outcome(folder: Path) -> ArmResult:
    """Read the result of a run that is_finished."""
    evaluations = read_evaluations(folder / "evaluations.json")
    rows = MetricsLog(folder / "metrics.jsonl").read()
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    return ArmResult(
        {step: found["num_correct"] for step, found in evaluations.items()},
        next(iter(evaluations.values()))["samples_per_prompt"],
        {name: np.array([row[name] for row in rows], dtype=np.float64) for name in CURVES},
        summary["groups"]["trained"],
        sum(int(str(row["tokens"])) for row in rows),
        sum(float(str(row["seconds"])) for row in rows),
    )
