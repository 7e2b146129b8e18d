"""The real stack with sampling one step ahead of learning, on the engine's own log-probs."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from rich.console import Console

from lpo_ray.run.folder import held
from lpo_ray.run.signals import run_until_signal
from lpo_ray.run.train import train
from tests.support.builders import recorder_of
from tests.support.real_specs import GROUPS, plan_of

pytestmark = [pytest.mark.long, pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(400)]
STEPS = 5


def test_staleness_stays_in_its_bound_and_the_anchor_absorbs_it(tmp_path: Path, tiny_policy: Path) -> None:
    from actors.cluster import build_cluster, connect, disconnect

    spec = plan_of(
        tmp_path, tiny_policy, "pipeline.max_staleness=1", "objective.behaviour=engine", f"run.steps={STEPS}",
        "evaluation.num_prompts=0",
    )  # fmt: skip
    connect(spec.config)
    try:
        recorder = recorder_of(spec, tiny_policy, Console(quiet=True))
        with held(spec, print) as folder:
            run_until_signal(lambda signals: train(folder, str(tiny_policy), build_cluster, recorder, signals))
    finally:
        disconnect()
    metrics = [json.loads(line) for line in (spec.run_dir / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in metrics] == list(range(1, STEPS + 1))
    assert all(row["staleness_max"] <= 1 for row in metrics)
    assert any(row["staleness_max"] == 1 for row in metrics)
    summary = json.loads((spec.run_dir / "summary.json").read_text())
    assert summary["groups"]["trained"] == STEPS * GROUPS
    stale, fresh = [], []
    for step in range(1, STEPS + 1):
        for row in pq.read_table(spec.run_dir / "samples" / f"step_{step:06d}.parquet").to_pylist():
            (stale if min(row["versions"]) < step - 1 else fresh).append(abs(row["anchor"]))
    assert max(fresh, default=0.0) < 1e-3
    assert max(stale) > 1e-3
