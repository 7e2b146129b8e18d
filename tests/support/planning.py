"""Architectures and rates for plans."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lpo_ray.tools.plan.architecture import Architecture, read_architecture


def shipped(name: str, monkeypatch: pytest.MonkeyPatch) -> Architecture:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return read_architecture(name)


def write_metrics(folder: Path, steps: int, **changes: float | None) -> None:
    row = {
        "tokens": 1000, "seconds": 4.0, "engines_sample": 0.4, "engines_verify": 0.1, "learner_project": 0.2,
        "learner_anchor": 0.05, "publish_gb_per_second": 0.5, "response_length": 20.0,
    }  # fmt: skip
    row |= {key: value for key, value in changes.items() if value is not None}
    for key in (key for key, value in changes.items() if value is None):
        del row[key]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for _ in range(steps)))
