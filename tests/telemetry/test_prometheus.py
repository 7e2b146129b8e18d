"""The exported metrics: the table against what a step measures, and the Grafana dashboard against the table."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from lpo_ray.telemetry.prometheus import EXPORTED, samples
from tests.support.builders import make_target
from tests.support.exported import exported_names
from tests.support.segments import mixed_group, with_group
from tests.support.telemetry import metrics_of

DASHBOARD = Path(__file__).parents[2] / "launch" / "grafana" / "lpo_ray.json"


def names_in(expression: str) -> set[str]:
    """The metrics of a PromQL expression: what stands in front of a selector."""
    return set(re.findall(r"([A-Za-z_:][A-Za-z0-9_:]*)\s*\{", expression))


@pytest.fixture(scope="module")
def dashboard() -> dict:
    return json.loads(DASHBOARD.read_text())


def expressions(dashboard: dict) -> Iterator[tuple[str, str]]:
    for panel in dashboard["panels"]:
        for target in panel.get("targets", []):
            yield panel["title"], target["expr"]


@pytest.mark.parametrize("name", EXPORTED)
def test_names_say_what_and_in_which_unit(name: str) -> None:
    row = EXPORTED[name]
    assert re.fullmatch(r"lpo_ray_[a-z_]+", name)
    assert name.endswith(f"_{row.unit}_total" if row.kind == "counter" else f"_{row.unit}")
    assert row.help
    assert row.kind != "histogram" or row.unit == "seconds"


def test_every_row_has_a_value_in_a_step() -> None:
    group = mixed_group(0)
    conversations = with_group(make_target(0, [len(response.token_ids) for response in group.responses]), group)
    metrics = metrics_of(3, [conversations, *(make_target(n, (3, 5)) for n in range(1, 4))])
    beside = {"evaluation_pass@16": 0.5, "conversations_open": 9, "environment_processes": 2}
    assert {sample.name for sample in samples({**metrics, **beside})} == set(EXPORTED)


def test_samples_by_hand() -> None:
    found = {
        (name, *tags.items()): value
        for name, tags, value in samples(
            {"step": 7, "evaluation_pass@16": 0.5, "queue_waiting": 3, "held_bytes": 9, "left_out_cut": 2,
             "left_out_fraction": 0.1, "publish_seconds": 1.5, "publish_seconds_prove": 0.2, "workers": ["a"],
             "restarts_rollout_worker": 4, "unheard_of": 1.0, "turns": 2.5, "turns_max": 3, "turns_moved": 1,
             "segments_began_as it opened": 2, "segments_opened_tokens": 40},
        )
    }  # fmt: skip
    assert found == {
        ("lpo_ray_done_steps",): 7,
        ("lpo_ray_evaluation_pass_ratio", ("k", "16")): 0.5,
        ("lpo_ray_queued_groups", ("place", "waiting")): 3,
        ("lpo_ray_held_bytes",): 9,
        ("lpo_ray_left_out_groups", ("why", "cut")): 2,
        ("lpo_ray_left_out_ratio",): 0.1,
        ("lpo_ray_publish_seconds",): 1.5,
        ("lpo_ray_publish_phase_seconds", ("phase", "prove")): 0.2,
        ("lpo_ray_role_restarts", ("role", "rollout_worker")): 4,
        ("lpo_ray_conversation_turns",): 2.5,
        ("lpo_ray_longest_conversation_turns",): 3,
        ("lpo_ray_later_turns_total", ("engine", "moved")): 1,
        ("lpo_ray_begun_segments", ("why", "as it opened")): 2,
    }


def test_every_expression_is_about_metrics_that_exist(dashboard: dict) -> None:
    known = set().union(*map(exported_names, EXPORTED))
    for title, expression in expressions(dashboard):
        assert names_in(expression), f"{title}: {expression} has no metric"
        assert names_in(expression) <= known, title
        assert expression.count("(") == expression.count(")"), title
        assert expression.count('run=~"$run"') == expression.count("{"), f"{title} mixes runs"
        for tag in re.findall(r"by \(([^)]*)\)", expression):
            tags = {EXPORTED[name].tag for name in EXPORTED if exported_names(name) & names_in(expression)}
            assert set(tag.split(", ")) <= {"run", "le", *filter(None, tags)}, title


def test_every_row_is_in_some_panel(dashboard: dict) -> None:
    shown = set().union(*(names_in(expression) for _, expression in expressions(dashboard)))
    assert [name for name in EXPORTED if not exported_names(name) & shown] == []


def test_the_dashboard_can_be_imported_anywhere(dashboard: dict) -> None:
    assert {"title", "uid", "schemaVersion", "panels", "templating", "time"} <= set(dashboard)
    assert "id" not in dashboard  # Grafana gives it one
    variables = {variable["name"]: variable for variable in dashboard["templating"]["list"]}
    assert variables["datasource"]["type"] == "datasource"
    assert variables["datasource"]["query"] == "prometheus"
    assert variables["run"]["datasource"]["uid"] == "${datasource}"
    assert names_of_variable(variables["run"]) == {"ray_lpo_ray_done_steps"}
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(ids) == len(set(ids))
    for text in re.findall(r'"uid":\s*"([^"]*)"', DASHBOARD.read_text()):
        assert text in ("${datasource}", dashboard["uid"])


def names_of_variable(variable: dict) -> set[str]:
    return set(re.findall(r"label_values\((\w+), run\)", variable["query"]["query"]))


def test_panels_have_what_grafana_needs_and_do_not_overlap(dashboard: dict) -> None:
    taken: set[tuple[int, int]] = set()
    for panel in dashboard["panels"]:
        assert panel["type"] in ("row", "timeseries", "stat")
        assert panel["title"]
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= 24
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken, panel["title"]
        taken |= cells
        if panel["type"] != "row":
            assert panel["fieldConfig"]["defaults"]["unit"]
            refs = [target["refId"] for target in panel["targets"]]
            assert refs
            assert len(refs) == len(set(refs))
            assert all(target["legendFormat"] for target in panel["targets"])
