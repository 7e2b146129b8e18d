"""Trackers: W&B and MLflow for real and offline, and what becomes of one that raises, hangs or is not installed."""

from __future__ import annotations

import importlib.util
import json
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from lpo_ray.config import load_config
from lpo_ray.errors import ConfigError
from lpo_ray.run.spec import make_spec
from lpo_ray.telemetry.trackers import (
    TRACKERS,
    TrackedRun,
    TrackerSink,
    flatten,
    mlflow_name,
    tracker_named,
    tracker_sinks,
)

CONFIG = {"run": {"name": "a", "seed": 3}, "sampling": {"max_tokens": 24}, "learner": {"zero": {}}}
QUICKSTART = Path(__file__).parents[2] / "configs" / "quickstart.yaml"


@dataclass
class FakeTracker:
    """Remembers; ``before_log`` may raise or wait."""

    run: TrackedRun
    before_log: Callable[[], None] = lambda: None
    logged: list[tuple[int, dict[str, float]]] = field(default_factory=list)
    closed: bool = False
    run_id: str = "the-id"

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self.before_log()
        self.logged.append((step, dict(values)))

    def close(self) -> None:
        self.closed = True


OPENED: list[FakeTracker] = []
BEFORE_LOG: list[Callable[[], None]] = []


def open_fake(run: TrackedRun) -> FakeTracker:
    OPENED.append(FakeTracker(run, BEFORE_LOG[-1] if BEFORE_LOG else lambda: None))
    return OPENED[-1]


def open_broken(run: TrackedRun) -> FakeTracker:
    raise ConnectionError("no server\nat all")


def open_exiting(run: TrackedRun) -> FakeTracker:
    sys.exit(3)


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    OPENED.clear()
    BEFORE_LOG.clear()
    yield


def sink_of(name: str, folder: Path, notes: list[str], queued: int = 1024, close_seconds: float = 10.0) -> TrackerSink:
    run = TrackedRun("a", folder, CONFIG)
    return TrackerSink(f"{__name__}:{name}", run, notes.append, queued=queued, close_seconds=close_seconds)


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.01)


def test_a_tracker_gets_the_numbers_in_order_and_its_own_id_back(tmp_path: Path) -> None:
    notes: list[str] = []
    for step in (1, 2):
        sink = sink_of("open_fake", tmp_path, notes)
        sink.resumed(step - 1)
        sink.append({"step": step, "reward": 0.5, "workers": ["a"], "weights_version": "1:a", "tokens": 3})
        sink.evaluated(step, {"evaluation_pass@1": 0.25})
        sink.close()
    assert notes == []
    assert [tracker.run.run_id for tracker in OPENED] == [None, "the-id"]
    assert [tracker.closed for tracker in OPENED] == [True, True]
    assert OPENED[0].logged == [(1, {"reward": 0.5, "tokens": 3}), (1, {"evaluation_pass@1": 0.25})]
    assert OPENED[0].run.config == CONFIG


@pytest.mark.parametrize(
    ("name", "why"), [("open_broken", "ConnectionError: no server at all"), ("open_exiting", "SystemExit: 3")]
)
def test_one_that_cannot_be_opened_is_noted_once(name: str, why: str, tmp_path: Path) -> None:
    notes: list[str] = []
    sink = sink_of(name, tmp_path, notes)
    sink.resumed(0)
    assert sink._thread is not None
    sink._thread.join(10)
    for step in range(1, 4):
        sink.append({"step": step})
    sink.close()
    assert len(notes) == 1
    assert f"is off from here on: {why}. The run continues" in notes[0]


def test_one_that_raises_later_is_off_from_then_on(tmp_path: Path) -> None:
    def fail() -> None:
        raise ValueError("disk full")

    BEFORE_LOG.append(fail)
    notes: list[str] = []
    sink = sink_of("open_fake", tmp_path, notes)
    sink.resumed(0)
    sink.append({"step": 1, "reward": 0.0})
    sink.close()
    sink.close()
    assert len(notes) == 1
    assert "ValueError: disk full" in notes[0]


def test_one_that_hangs_slows_nothing_and_holds_nothing_up(tmp_path: Path) -> None:
    release = threading.Event()
    BEFORE_LOG.append(lambda: release.wait(60) and None)
    notes: list[str] = []
    sink = sink_of("open_fake", tmp_path, notes, queued=4)
    sink.resumed(0)
    sink.append({"step": 1, "reward": 0.0})
    wait_for(lambda: sink._queue.empty())
    started = time.monotonic()
    for step in range(2, 50):
        sink.append({"step": step, "reward": 0.0})
    sink.close()
    assert time.monotonic() - started < 1.0
    assert len(notes) == 1
    assert "4 steps wait for it" in notes[0]
    release.set()


def test_one_that_does_not_end_is_left_behind(tmp_path: Path) -> None:
    release = threading.Event()
    BEFORE_LOG.append(lambda: release.wait(60) and None)
    notes: list[str] = []
    sink = sink_of("open_fake", tmp_path, notes, close_seconds=0.2)
    sink.resumed(0)
    sink.append({"step": 1, "reward": 0.0})
    sink.close()
    assert len(notes) == 1
    assert "did not end within 0.2 s after the run" in notes[0]
    release.set()


def test_a_run_that_never_began_closes_its_trackers(tmp_path: Path) -> None:
    notes: list[str] = []
    sink_of("open_fake", tmp_path, notes).close()
    assert (OPENED, notes) == ([], [])


def test_names_are_checked_before_anything_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def plan_with(*names: str) -> None:
        make_spec(load_config(QUICKSTART, [f"run.dir={tmp_path}", f"telemetry.trackers=[{','.join(names)}]"]))

    with pytest.raises(ConfigError, match=r"telemetry.trackers is 'comet'; expected one of mlflow, wandb, or 'package"):
        plan_with("comet")
    with pytest.raises(ConfigError, match="cannot be imported"):
        plan_with("'nowhere.at_all:open'")
    mine = f"{__name__}:open_fake"
    plan_with(f"'{mine}'")
    with pytest.raises(ConfigError, match=r"expected .* once"):
        plan_with(f"'{mine}'", f"'{mine}'")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for name in TRACKERS:
        missing = rf"the package {name} is not installed; .*pip install 'lpo-ray\[{name}\]'"
        with pytest.raises(ConfigError, match=missing):
            plan_with(name)


def test_a_folder_that_a_tracker_left_behind_is_no_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "wandb").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    if importlib.util.find_spec("wandb").origin is not None:  # the package comes first where there is one
        pytest.skip("wandb is installed")
    with pytest.raises(ConfigError, match="the package wandb is not installed"):
        tracker_named("wandb")


def test_configuration_and_names_as_mlflow_takes_them() -> None:
    assert flatten(CONFIG) == {"run.name": "a", "run.seed": 3, "sampling.max_tokens": 24, "learner.zero": {}}
    assert mlflow_name("evaluation_pass@16") == "evaluation/evaluation_pass_at_16"


def two_legs(name: str, folder: Path) -> list[str]:
    """A run of two steps and an evaluation, then the same run again for a third step."""
    notes: list[str] = []
    for steps in ((1, 2), (3,)):
        (sink,) = tracker_sinks([name], TrackedRun("a", folder, CONFIG), notes.append)
        sink.resumed(steps[0] - 1)
        for step in steps:
            sink.append({"step": step, "reward": step / 4, "publish_seconds": 0.1 * step, "workers": ["a"]})
        sink.evaluated(steps[-1], {"evaluation_pass@1": 0.5})
        sink.close()
    return notes


@pytest.mark.slow
def test_mlflow_keeps_one_run_over_a_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow", reason="mlflow is not installed: pip install 'lpo-ray[mlflow]'")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "run"
    folder.mkdir()
    assert two_legs("mlflow", folder) == []
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{folder}/mlflow.db")
    experiment = client.get_experiment_by_name("lpo-ray")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.run_id == (folder / "trackers" / "mlflow").read_text().strip()
    assert (run.info.status, run.info.run_name) == ("FINISHED", "a")
    assert run.data.params["sampling.max_tokens"] == "24"
    history = client.get_metric_history(run.info.run_id, "reward/reward")
    assert [(point.step, point.value) for point in history] == [(1, 0.25), (2, 0.5), (3, 0.75)]
    scores = client.get_metric_history(run.info.run_id, "evaluation/evaluation_pass_at_1")
    assert [(point.step, point.value) for point in scores] == [(2, 0.5), (3, 0.5)]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]


@pytest.mark.slow
def test_wandb_keeps_one_run_over_a_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb", reason="wandb is not installed: pip install 'lpo-ray[wandb]'")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "run"
    folder.mkdir()
    assert two_legs("wandb", folder) == []
    run_id = (folder / "trackers" / "wandb").read_text().strip()
    legs = sorted((folder / "wandb").glob(f"offline-run-*-{run_id}"))
    assert len(legs) == 2
    rewards = [row["reward/reward"] for leg in legs for row in wandb_history(leg, run_id) if "reward/reward" in row]
    assert rewards == [0.25, 0.5, 0.75]
    steps = [row["step"] for leg in legs for row in wandb_history(leg, run_id)]
    assert steps == [1, 2, 2, 3, 3]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]


def wandb_history(leg: Path, run_id: str) -> list[dict[str, float]]:
    """Rows of an offline run's file, as `wandb sync` would send them."""
    from wandb.proto import wandb_internal_pb2

    rows = []
    for data in wandb_records((leg / f"run-{run_id}.wandb").read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        if record.WhichOneof("record_type") == "history":
            items = record.history.item
            rows.append({item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items})
    return rows


def wandb_records(content: bytes) -> Iterator[bytes]:
    """LevelDB's log format after W&B's seven bytes: pieces with (checksum, length, full | first | middle | last)."""
    assert content[:4] == b":W&B"
    block, at, record = 32_768, 7, b""
    while at + 7 <= len(content):
        if block - at % block < 7:  # no room for a header: the rest of the block is filled up
            at += block - at % block
            continue
        length, kind = struct.unpack("<HB", content[at + 4 : at + 7])
        record += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):
            yield record
            record = b""
