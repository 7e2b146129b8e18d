"""The keys of summary.json."""

from __future__ import annotations

import pytest

from tests.support.telemetry import summary_json


def test_the_summary_keeps_its_contract() -> None:
    found = summary_json()
    assert set(found) >= {
        "run", "seed", "steps", "model", "task", "wall_seconds", "objective", "evaluation", "time_share",
        "tokens_per_second", "groups",
    }  # fmt: skip
    assert sum(found["time_share"].values()) == pytest.approx(1.0)
    assert found["tokens_per_second"] == {"sampled": pytest.approx(320.0), "trained": pytest.approx(320.0)}
    assert (found["lanes"]["engines"]["sample"], found["lanes"]["learner"]["wait"]) == (0.5, 0.25)
    assert found["advice"] == "more of it"
    assert found["groups"] == {"issued": 4, "trained": 4, "lost": 0, "stale": 0, "filtered": 0}
