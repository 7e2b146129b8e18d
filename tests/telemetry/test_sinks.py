"""metrics.jsonl across kills and resumes."""

from __future__ import annotations

from pathlib import Path

from lpo_ray.telemetry.sinks import MetricsLog


def test_metrics_have_neither_gap_nor_repeat_after_a_kill(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl")
    for step in (1, 2, 3):
        log.append({"step": step, "reward": float("nan")})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "rew')
    log.resumed(2)
    log.append({"step": 3})
    assert [row["step"] for row in log.read()] == [1, 2, 3]
    assert log.read()[0]["reward"] is None
