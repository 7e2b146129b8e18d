from __future__ import annotations

import contextlib
import io
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from lpo_ray.common.files import write_json
from lpo_ray.config.schema import ProgressKind
from lpo_ray.objective import project
from lpo_ray.records import (
    AnchorGroup,
    StepReport,
)
from lpo_ray.telemetry.log import LogLine
from lpo_ray.telemetry.metrics import diagnostics, pass_rate_histogram
from lpo_ray.telemetry.monitor.progress import Progress, step_line
from lpo_ray.telemetry.monitor.report import CHARTS, write_report
from lpo_ray.telemetry.samples import read_step, write_samples
from lpo_ray.telemetry.sinks import MetricsLog
from lpo_ray.telemetry.stage_clock import ENGINES, LEARNER, PRIORITY, Seconds, StageClock, shares
from lpo_ray.telemetry.summary import Summary
from tests.support.builders import NOON, make_target
from tests.support.step_metrics import SECONDS, by_stage, metrics_of, report_of


def test_metrics_by_hand() -> None:
    targets = [make_target(n, (3, 5)) for n in range(4)]
    metrics = metrics_of(3, targets)
    rewards = np.concatenate([target.scored.rewards for target in targets])
    assert metrics["reward"] == pytest.approx(rewards.mean())
    assert metrics["pass_rate"] == pytest.approx((rewards >= 1).mean())
    assert metrics["response_length"] == 4.0
    assert metrics["tokens"] == 32
    assert metrics["left_out_equal_rewards"] == 1
    assert metrics["left_out_fraction"] == 1 / 5
    assert metrics["tokens_per_second"] == 8.0
    assert metrics["staleness"] == 2
    assert metrics["effective_sample_size"] == pytest.approx(2.0)
    assert metrics["forwards"] == 4
    assert metrics["weights_version"] == "3:abc"
    assert metrics["publish_gb_per_second"] == pytest.approx(0.012)
    assert [metrics[f"workers_{state}"] for state in ("starting", "serving", "out")] == [0, 1, 1]
    assert metrics["restarts_rollout_worker"] == 1
    assert (metrics["queue_on_the_way"], metrics["queue_waiting"], metrics["held_bytes"]) == (5, 3, 4096)
    assert metrics["tokens_sampled"] == 50
    assert metrics["tokens_per_second_sampled"] == pytest.approx(50 / 2.5)  # sample and verify of the engines' lane
    assert metrics["tokens_per_second_trained"] == pytest.approx(32 / 2.5)  # project and anchor of the learner's
    assert metrics["publish_seconds"] == 0.5
    assert [metrics[f"engines_{name}"] for name in ("sample", "verify", "publish", "evaluate", "wait")] == [
        0.5, 0.125, 0.125, 0.0, 0.25,
    ]  # fmt: skip
    assert [metrics[f"learner_{name}"] for name in ("project", "anchor", "publish", "checkpoint", "wait")] == [
        0.5, 0.125, 0.125, 0.0, 0.25,
    ]  # fmt: skip
    assert metrics["workers"] == ["rollout worker 0: serving 3:abc", "rollout worker 1: out -"]
    assert (metrics["gradient_norm_mlp"], metrics["update_ratio_mlp"]) == (0.3, 1e-3)
    assert (metrics["padding_fraction"], metrics["imbalance_fraction"]) == (0.125, 0.0)
    assert metrics["skipped_updates"] == 1
    assert metrics["not_finite"] == ["loss of train-00000001 (attempt 0), response 1, token 2"]
    assert metrics["kl_target_policy"] == pytest.approx(metrics["loss"], rel=1e-5)
    json.dumps(metrics)


def test_the_distance_of_behaviour_and_policy_has_metrics() -> None:
    """Two groups on-policy and two with s_t = (log 3, 0), of which one is tempered to P_t = (2/3, 1/3)."""
    s_t = np.log([3.0, 1.0]).astype(np.float32)
    far = AnchorGroup(s_t, np.full(2, 0.4, np.float32), np.full(2, 0.1, np.float32))
    targets = [make_target(n, (3, 5), version=v) for n, v in enumerate((2, 2, 1, 0))]
    targets[2] = replace(targets[2], anchor=far)
    targets[3] = replace(targets[3], anchor=far, tempering=math.log(2) / math.log(3))
    report = report_of(targets)
    quiet = tuple(
        replace(
            update,
            groups=tuple(
                replace(g, engine_drift=np.zeros(2, np.float32), engine_kl=np.zeros(2, np.float32))
                for g in update.groups
            ),
        )
        for update in report.updates
    )
    metrics = metrics_of(3, targets, StepReport(quiet))
    assert metrics["effective_sample_size"] == pytest.approx((2 + 2 + 1.6 + 1.6) / 4)
    assert metrics["effective_sample_size_min"] == pytest.approx(1.6)
    assert metrics["anchor_drift"] == pytest.approx(0.2)
    assert metrics["mismatch_kl"] == pytest.approx(0.05)
    assert metrics["tempering"] == pytest.approx((3 + math.log(2) / math.log(3)) / 4)
    assert metrics["tempered_fraction"] == 0.25
    assert (metrics["staleness_histogram"], metrics["staleness_max"]) == ([2, 1, 1], 2)
    assert sum(metrics["pass_rate_histogram"]) == 4
    json.dumps(metrics)


def test_a_recomputed_behaviour_has_its_distance_from_the_update() -> None:
    targets = [make_target(n, (3, 5)) for n in range(4)]
    report, metrics = report_of(targets), metrics_of(1, targets)
    expected = np.mean([group.engine_drift for group in report.groups])
    assert metrics["anchor_drift"] == metrics["mismatch_kl"] == pytest.approx(expected)
    assert (metrics["tempering"], metrics["tempered_fraction"]) == (1.0, 0.0)


def test_diagnostics_of_a_tempered_group_are_those_from_the_mixture() -> None:
    """With nothing learned yet and equal rewards policy, target and start are the same: no gap, no gain."""
    s_t = np.log([3.0, 1.0]).astype(np.float32)
    far = AnchorGroup(s_t, np.abs(s_t), np.abs(s_t))
    target = replace(
        make_target(0, (3, 5)), anchor=far, tempering=math.log(2) / math.log(3),
        log_target=np.log([2 / 3, 1 / 3]).astype(np.float32),
    )  # fmt: skip
    group = replace(report_of([target]).groups[0], log_ratio=s_t)
    found = diagnostics([target], [group])
    for gap in (found.kl_target_policy, found.kl_policy_target, found.total_variation, found.realised_gain):
        assert float(gap) == pytest.approx(0.0, abs=1e-6)
    assert float(found.effective_sample_size) == pytest.approx(1.6)


def test_pass_rates_are_counted_with_none_and_all_apart() -> None:
    def counts(*passing: int, size: int = 8) -> list[int]:
        return pass_rate_histogram([(np.arange(size) < n).astype(np.float32) for n in passing], 1.0)

    assert counts(*range(9)) == [1, 0, 1, 1, 1, 1, 1, 1, 1, 0, 1]
    assert counts(0, 0, 1, 31, 32, size=32) == [2, 1, 0, 0, 0, 0, 0, 0, 0, 1, 1]
    assert counts(0, 1, size=1) == [1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]


def test_groups_of_unequal_size_have_metrics() -> None:
    metrics = metrics_of(1, [make_target(0, (3, 5)), make_target(1, (2, 2, 2, 9))])
    assert np.isfinite([value for value in metrics.values() if isinstance(value, float)]).all()


def test_the_parquet_reproduces_the_logged_loss(tmp_path: Path) -> None:
    targets = [make_target(n, (3, 5, 2)) for n in range(4)]
    report = report_of(targets)
    path = tmp_path / "samples" / "step_000001.parquet"
    write_samples(
        path, targets, report, step=1, learning_rate=0.1, divergence="forward_kl", after={},
        decode=lambda ids: "\ud800" + str(ids),
    )  # fmt: skip
    frame = pq.read_table(path).to_pylist()
    assert len(frame) == 12
    losses = []
    for prompt_id in sorted({row["prompt_id"] for row in frame}):
        rows = [row for row in frame if row["prompt_id"] == prompt_id]
        log_ratio, log_target = (torch.tensor([[row[key] for row in rows]]) for key in ("log_ratio", "log_target"))
        losses.append(float(project(rows[0]["divergence"], log_ratio, log_target).loss))
        assert sum(row["target"] for row in rows) == pytest.approx(1.0, rel=1e-5)
    assert np.mean(losses) == pytest.approx(report.loss, rel=1e-6)
    assert [path.name for path in path.parent.iterdir()] == ["step_000001.parquet"]


def test_targets_come_back_bit_for_bit_and_in_order(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    targets = [
        replace(
            make_target(n, (3, 5, 2)),
            anchor=AnchorGroup(*(rng.normal(size=3).astype(np.float32) for _ in range(3))),
            tempering=rng.random(),
        )
        for n in (2, 0, 1)
    ]
    path = tmp_path / "step_000001.parquet"
    write_samples(
        path, targets, report_of(targets), step=1, learning_rate=1 / 3, divergence="forward_kl", after={}, decode=str
    )
    step = read_step(path)
    assert (step.updates, step.learning_rate) == (2, 1 / 3)
    for read, written in zip(step.targets, targets, strict=True):
        assert read.group.prompt.prompt_id == written.group.prompt.prompt_id
        assert read.temperature == written.temperature
        assert read.tempering == written.tempering
        np.testing.assert_array_equal(read.log_target, written.log_target, strict=True)
        for name in ("log_ratio", "drift", "mismatch_kl"):
            np.testing.assert_array_equal(getattr(read.anchor, name), getattr(written.anchor, name), strict=True)
        np.testing.assert_array_equal(read.scored.rewards, written.scored.rewards, strict=True)
        np.testing.assert_array_equal(read.group.prompt.token_ids, written.group.prompt.token_ids, strict=True)
        for ours, theirs in zip(read.group.responses, written.group.responses, strict=True):
            for name in ("token_ids", "behaviour_logprobs", "versions"):
                np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name), strict=True)
            assert ours.finish_reason == theirs.finish_reason


class Ticking:
    """A clock that the test moves."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_an_instant_belongs_to_the_first_stage_in_priority() -> None:
    clock_time = Ticking()
    clock = StageClock(clock_time)
    clock_time.now = 1.0
    with clock.stage("sample"):
        clock_time.now = 3.0
        with clock.stage("project"), clock.stage("sample"):
            assert clock.active() == {"project": 1, "sample": 2}
            clock_time.now = 7.0
        clock_time.now = 8.0
    clock_time.now = 10.0
    totals = clock.totals().run
    assert (totals["wait"], totals["sample"], totals["project"]) == (3.0, 3.0, 4.0)
    assert clock.lap() == clock.totals()
    assert sum(clock.lap().run.values()) == 0.0
    with pytest.raises(ValueError, match="expected one of"), clock.stage("lunch"):
        pass


@given(st.lists(st.tuples(st.sampled_from(PRIORITY), st.floats(0, 10), st.floats(0, 10)), max_size=8))
def test_stage_seconds_always_add_up_to_the_time_that_passed(work: list[tuple[str, float, float]]) -> None:
    clock_time = Ticking()
    clock = StageClock(clock_time)
    for name, inside, outside in work:
        with clock.stage(name):
            clock_time.now += inside
        clock_time.now += outside
    totals = clock.totals()
    for lane in (totals.run, totals.engines, totals.learner):
        assert sum(lane.values()) == pytest.approx(clock_time.now)


def test_each_lane_has_its_own_account_of_the_same_time() -> None:
    """One step with sampling ahead: sample 4 s, of which 3 beside a projection; then a checkpoint beside sampling."""
    clock_time = Ticking()
    clock = StageClock(clock_time)

    def passes(seconds: float, *stages: str) -> None:
        with contextlib.ExitStack() as inside:
            for name in stages:
                inside.enter_context(clock.stage(name))
            clock_time.now += seconds

    passes(5.0, "start")
    passes(1.0, "sample", "verify")  # the learner waits for groups
    passes(3.0, "sample", "project")
    passes(2.0, "verify", "project")  # the engines have nothing to sample
    passes(0.5, "project")  # the gate is closed
    passes(1.5, "publish", "sample")  # groups in flight are paused
    passes(1.0, "sample", "anchor")
    passes(2.0, "sample", "checkpoint")
    passes(1.0, "evaluate")
    found = clock.totals()
    assert found.engines == by_stage(ENGINES, start=5.0, sample=7.0, verify=2.0, publish=1.5, evaluate=1.0, wait=0.5)
    assert found.learner == by_stage(
        LEARNER, start=5.0, wait=1.0, project=5.5, publish=1.5, anchor=1.0, checkpoint=2.0, evaluate=1.0
    )
    assert shares(found.engines)["sample"] == pytest.approx(7 / 12)
    assert sum(shares(found.learner).values()) == pytest.approx(1.0)
    assert "start" not in shares(found.learner)
    assert set(shares(clock.lap().run).values()) != {0.0}
    assert set(shares(clock.lap().run).values()) == {0.0}


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


def summary() -> dict[str, object]:
    evaluation = {
        "pass@1": 0.2, "pass@16": 0.8, "num_prompts": 256, "samples_per_prompt": 16,
        "ci95": {"pass@1": [0.1, 0.3], "pass@16": [0.7, 0.9]}, "lost": 0, "mean_reward": 0.3, "mean_length": 8.0,
    }  # fmt: skip
    return Summary(
        run="r", seed=0, steps=3, model="m", task="countdown", wall_seconds=12.5,
        objective={"divergence": "forward_kl", "target_temperature": "group_std", "token_clip": "clamp 0.2/0.2",
                   "length_norm": "mean"},
        before=evaluation, after=None, tokens=800, groups={"issued": 4, "trained": 4}, advice="more of it",
        seconds=Seconds({**SECONDS.run, "start": 9.0, "evaluate": 4.0}, SECONDS.engines, SECONDS.learner),
    ).to_json()  # fmt: skip


def test_the_summary_keeps_its_contract() -> None:
    found = summary()
    assert set(found) >= {
        "run", "seed", "steps", "model", "task", "wall_seconds", "objective", "evaluation", "time_share",
        "tokens_per_second", "groups",
    }  # fmt: skip
    assert sum(found["time_share"].values()) == pytest.approx(1.0)
    assert found["tokens_per_second"] == {"sampled": pytest.approx(320.0), "trained": pytest.approx(320.0)}
    assert (found["lanes"]["engines"]["sample"], found["lanes"]["learner"]["wait"]) == (0.5, 0.25)
    assert found["advice"] == "more of it"
    assert found["groups"] == {"issued": 4, "trained": 4, "lost": 0, "stale": 0, "filtered": 0}


@pytest.mark.parametrize("steps", [0, 1, 5])
def test_the_report_is_one_offline_page(steps: int, tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl")
    for step in range(1, steps + 1):
        log.append(metrics_of(step, [make_target(n, (3, 5)) for n in range(4)]))
    (tmp_path / "config.yaml").write_text("run:\n  name: <script>alert(1)</script>\n")
    if steps:
        write_json(tmp_path / "summary.json", summary())
        write_json(tmp_path / "evaluations.json", {"0": summary()["evaluation"]["before"]})
    page = write_report(tmp_path).read_text()
    assert page.count("<svg") == len(CHARTS)
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    for fetched in ("src=", 'href="http', "url(http", "@import"):
        assert fetched not in page
    assert ("0.800" in page) == bool(steps)
    assert ("engines: publish 12.5 %, sample 50.0 %, verify 12.5 %, wait 25.0 %; learner: " in page) == bool(steps)
    assert ("more of it." in page) == bool(steps)


class Terminal(io.StringIO):
    """Where a live panel may be drawn."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("kind", list(ProgressKind))
def test_progress_shows_the_step_and_what_each_stage_is_doing(kind: ProgressKind) -> None:
    output = Terminal() if kind is ProgressKind.live else io.StringIO()
    clock = StageClock(Ticking())
    progress = Progress(kind, Console(file=output, width=120), clock, steps=9)
    with clock.stage("sample"), clock.stage("sample"), clock.stage("project"):
        metrics = metrics_of(4, [make_target(n, (3, 5)) for n in range(4)])
        progress.step(metrics, LogLine(NOON, "info", "driver", "", 4, step_line(metrics, 9)))
        progress.say(LogLine(NOON, "warning", "driver", "", 4, "something happened\nbadly"))
        progress.say(LogLine(NOON, "error", "rollout", "rollout worker 1", None, "no memory"))
        progress.doing("7/8 prompts")
        progress.close()
    shown = output.getvalue()
    if kind is ProgressKind.quiet:
        assert shown == ""
        return
    assert "step 4/9" in shown
    assert "12:00:05 error rollout rollout-worker-1 - no memory\n" in shown
    if kind is ProgressKind.live:  # whoever sits there knows the time and the step
        assert "something happened\n" in shown
        assert "12:00:05 warning" not in shown
    else:
        assert shown.startswith("12:00:05 info driver - 4 step 4/9  reward ")
        assert "12:00:05 warning driver - 4 something happened\n12:00:05 warning driver - 4 badly\n" in shown
    for name in ("reward", "pass", "entropy", "grad", "tok/s"):
        assert name in shown
    if kind is ProgressKind.live:
        assert "projecting, sampling 2 groups  7/8 prompts" in shown
