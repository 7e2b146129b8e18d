"""What Prometheus would read of a run: the metrics of a real Ray session at its node's own address."""

from __future__ import annotations

import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping

import pytest

from lpo_ray.telemetry.prometheus import EXPORTED
from tests.support.builders import make_target
from tests.support.exported import exported_names
from tests.support.telemetry import metrics_of

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(180)]
CONVERSATIONS = {
    "turns": 2.5, "turns_max": 3, "environment_tokens": 9.5, "environment_seconds": 0.25, "conversations_ended_done": 4,
    "segments_began_as it opened": 1, "turns_moved": 2, "redrawn_turns": 1, "conversations_open": 7,
    "environment_processes": 2,
}  # fmt: skip
REPORT_SECONDS = 1.0
"""the least that Ray takes"""
FORGETS_SECONDS = 20.0
"""after which the node's agent forgets a gauge: twice its own report interval, which is Ray's default"""


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """Of the metrics of a session of one node."""
    import ray

    ray.init(
        address="local",  # not one that somebody else started on this machine
        num_cpus=1,
        include_dashboard=False,
        object_store_memory=100 * 2**20,
        log_to_driver=False,
        _system_config={"metrics_report_interval_ms": int(REPORT_SECONDS * 1000)},
    )
    try:
        (node,) = ray.nodes()
        yield f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    finally:
        ray.shutdown()


Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def read(address: str) -> Samples:
    """Everything of ours: (name, our tags) -> value. Empty while nobody answers there."""
    from prometheus_client.parser import text_string_to_metric_families

    try:
        with urllib.request.urlopen(address, timeout=10) as answer:
            text = answer.read().decode()
    except urllib.error.URLError:
        return {}
    ours = {"run", *(row.tag for row in EXPORTED.values() if row.tag), "le"}
    return {
        (sample.name, frozenset((key, value) for key, value in sample.labels.items() if key in ours)): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name.startswith("ray_lpo_ray_")
    }


def read_until(address: str, good: Callable[[Samples], bool]) -> Samples:
    end = time.monotonic() + 60
    while not good(found := read(address)):
        assert time.monotonic() < end, f"never seen; the last answer was {sorted(found, key=str)}"
        time.sleep(0.5)
    return found


def value_of(found: Samples, name: str, run: str, **tags: str) -> float | None:
    return found.get((f"ray_{name}", frozenset({"run": run, **tags}.items())))


def recorded(run: str, steps: int, **changed: float) -> tuple[object, Mapping[str, object]]:
    from actors.runtime.ray_metrics import RayMetrics

    sink = RayMetrics(run, refresh_seconds=REPORT_SECONDS)
    sink.resumed(0)
    for step in range(1, steps + 1):
        metrics = metrics_of(step, [make_target(n, (3, 5), version=0) for n in range(4)]) | CONVERSATIONS | changed
        sink.append(metrics)
    sink.evaluated(steps, {"evaluation_pass@16": 0.875})
    return sink, metrics


def test_every_row_arrives_with_its_value_and_tags(address: str) -> None:
    sink, metrics = recorded("first", 2)
    found = read_until(address, lambda found: value_of(found, "lpo_ray_done_steps", "first") == 2)
    found = read_until(address, lambda found: value_of(found, "lpo_ray_trained_tokens_total", "first") == 64)
    for name, row in EXPORTED.items():
        assert any(key[0] in exported_names(name) for key in found), f"{name} is not there"
        if row.kind == "gauge" and row.tag is None:
            assert value_of(found, name, "first") == pytest.approx(metrics[row.key]), name
    assert value_of(found, "lpo_ray_engines_share_ratio", "first", stage="wait") == 0.25
    assert value_of(found, "lpo_ray_rollout_workers", "first", state="out") == 1
    assert value_of(found, "lpo_ray_role_restarts", "first", role="rollout_worker") == 1
    assert value_of(found, "lpo_ray_evaluation_pass_ratio", "first", k="16") == 0.875
    assert value_of(found, "lpo_ray_later_turns_total", "first", engine="moved") == 4
    assert value_of(found, "lpo_ray_begun_segments", "first", why="as it opened") == 1
    assert value_of(found, "lpo_ray_ledger_groups", "first", state="trained") == 4
    assert value_of(found, "lpo_ray_sampled_tokens_total", "first") == 100
    assert value_of(found, "lpo_ray_publish_seconds_count", "first") == 2
    assert value_of(found, "lpo_ray_publish_seconds_bucket", "first", le="1.0") == 2
    assert value_of(found, "lpo_ray_publish_seconds_bucket", "first", le="0.3") == 0
    sink.close()


@pytest.mark.long
def test_gauges_stay_while_a_step_takes_longer_than_ray_remembers(address: str) -> None:
    sink, _ = recorded("long", 1)
    read_until(address, lambda found: value_of(found, "lpo_ray_done_steps", "long") == 1)
    sink.changed({"workers_out": 7})
    read_until(address, lambda found: value_of(found, "lpo_ray_rollout_workers", "long", state="out") == 7)
    time.sleep(FORGETS_SECONDS + 4 * REPORT_SECONDS)
    found = read(address)
    assert value_of(found, "lpo_ray_done_steps", "long") == 1
    assert value_of(found, "lpo_ray_rollout_workers", "long", state="out") == 7
    sink.close()
    read_until(address, lambda found: value_of(found, "lpo_ray_done_steps", "long") is None)
    assert value_of(read(address), "lpo_ray_trained_tokens_total", "long") == 32


def test_two_runs_on_one_cluster_are_told_apart(address: str) -> None:
    sinks = [recorded(run, 1, reward=reward)[0] for run, reward in (("one", 0.25), ("two", 0.75))]
    found = read_until(address, lambda found: value_of(found, "lpo_ray_response_reward", "two") is not None)
    assert value_of(found, "lpo_ray_response_reward", "one") == 0.25
    assert value_of(found, "lpo_ray_response_reward", "two") == 0.75
    for sink in sinks:
        sink.close()
