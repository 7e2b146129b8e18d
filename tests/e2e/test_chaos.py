"""A small run under random SIGKILLs ends with its books balanced; tests/benchmarks/chaos.py does it at full size."""

from __future__ import annotations

from pathlib import Path

import pytest

from lpo_ray.telemetry.sinks import MetricsLog
from lpo_ray.training.ledger_audit import audit
from tests.support.chaos import Chaos
from tests.support.live_runs import QUICKSTART

pytestmark = [pytest.mark.long, pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(500)]
STEPS, GROUPS = 40, 8


@pytest.mark.parametrize("staleness", [1])
def test_killed_anywhere_the_run_ends_complete_and_balanced(tmp_path: Path, tiny_policy: Path, staleness: int) -> None:
    overrides = [
        f"run.dir={tmp_path}", f"model.path={tiny_policy}", f"run.steps={STEPS}", f"pipeline.groups_per_step={GROUPS}",
        "sampling.group_size=4", "evaluation.num_prompts=0", "checkpoint.every=5", "learner.world_size=1",
        f"pipeline.max_staleness={staleness}", "objective.behaviour=engine", "objective.stale.policy=keep",
        "supervision.max_restarts=20",
    ]  # fmt: skip
    chaos = Chaos(Path(QUICKSTART), overrides, kills=5, seed=staleness, pauses=(1.0, 6.0))
    assert chaos.run(limit=400) == 0, chaos.output[-1]
    assert chaos.killed.total() == 5
    run = tmp_path / "quickstart"
    books = audit(run)
    assert books.violations == ()
    assert books.steps == STEPS
    assert books.attempts["trained"] == STEPS * GROUPS
    assert books.attempts["issued"] == books.attempts["sampled"] == 0
    rows = MetricsLog(run / "metrics.jsonl").read()
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    assert all(row["staleness_max"] <= staleness for row in rows)
