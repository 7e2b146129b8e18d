"""report.html of runs that have begun, or not."""

from __future__ import annotations

from pathlib import Path

import pytest

from lpo_ray.common.files import write_json
from lpo_ray.telemetry.monitor.charts import CHARTS, charts_of
from lpo_ray.telemetry.monitor.report import write_report
from lpo_ray.telemetry.sinks import MetricsLog
from tests.support.builders import make_target
from tests.support.telemetry import metrics_of, summary_json


@pytest.mark.parametrize("steps", [0, 1, 5])
def test_the_report_is_one_offline_page(steps: int, tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl")
    for step in range(1, steps + 1):
        log.append(metrics_of(step, [make_target(n, (3, 5)) for n in range(4)]))
    (tmp_path / "config.yaml").write_text("run:\n  name: <script>alert(1)</script>\n")
    if steps:
        write_json(tmp_path / "summary.json", summary_json())
        write_json(tmp_path / "evaluations.json", {"0": summary_json()["evaluation"]["before"]})
    page = write_report(tmp_path).read_text()
    assert page.count("<svg") == len(charts_of([])) < len(CHARTS)
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    for fetched in ("src=", 'href="http', "url(http", "@import"):
        assert fetched not in page
    assert ("0.800" in page) == bool(steps)
    assert ("engines: publish 12.5 %, sample 50.0 %, verify 12.5 %, wait 25.0 %; learner: " in page) == bool(steps)
    assert ("more of it." in page) == bool(steps)
