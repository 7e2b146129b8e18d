"""Metrics of a step, by hand."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace

import numpy as np
import pytest

from lpo_ray.records import (
    AnchorGroup,
    StepReport,
)
from lpo_ray.telemetry.metrics import SCORES, diagnostics, pass_rate_histogram
from lpo_ray.telemetry.monitor.charts import charts_of
from tests.support.builders import make_target
from tests.support.segments import mixed_group
from tests.support.telemetry import metrics_of, report_of


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


def test_every_number_of_a_step_may_choose_the_best_checkpoint() -> None:
    """Except those of single workers, stages and kinds of parameters, and counts that say nothing about the policy."""
    apart = re.compile(
        r"(gradient_norm|update_ratio|seconds|engines|learner|groups|left_out|workers|restarts|publish)_.*"
    )
    of_the_system = {
        "step", "tokens", "tokens_sampled", "seconds", "reused", "queue_on_the_way", "queue_waiting", "held_bytes",
        "forwards", "padding_fraction", "imbalance_fraction", "measured_groups",
    }  # fmt: skip
    metrics = metrics_of(3, [make_target(n, (3, 5)) for n in range(4)])
    numbers = {name for name, value in metrics.items() if isinstance(value, int | float) and not apart.fullmatch(name)}
    assert numbers - of_the_system <= SCORES | {"left_out_fraction", "learning_rate"}
    assert {"reward", "pass_rate", "token_entropy", "gradient_norm"} <= numbers & SCORES


def test_conversations_have_metrics_and_single_answers_none_of_them() -> None:
    group = mixed_group(0)
    target = make_target(0, [len(response.token_ids) for response in group.responses])
    metrics = metrics_of(1, [replace(target, scored=replace(target.scored, group=group)), make_target(1, (3, 5))])
    one, three, other = (response.conversation for response in group.responses[1:])
    assert one is not None and three is not None and other is not None
    assert (metrics["conversations"], metrics["turns"], metrics["turns_max"]) == (3, (3 + 3 + 2) / 3, 3)
    assert metrics["environment_tokens"] == pytest.approx((6 + three.environment_tokens + 1) / 3)
    assert metrics["environment_seconds"] == pytest.approx((0.25 + 0.25 + 1.5) / 3)
    assert (metrics["segments_opened"], metrics["segments_opened_tokens"]) == (3, three.context_tokens + 6)
    assert (metrics["segments_began_rewritten"], metrics["segments_began_compaction"]) == (2, 1)
    assert (metrics["turns_kept"], metrics["turns_moved"], metrics["redrawn_turns"]) == (2 + 2 + 1 - 1, 1, 2)
    assert metrics["dropped_tokens"] == 7
    ended = {name.rpartition("_")[2]: value for name, value in metrics.items() if "ended" in name}
    assert ended == {"done": 0, "turns": 2, "tokens": 1, "length": 0}
    assert metrics["response_length"] == pytest.approx((3 + 6 + 9 + 5 + 8) / 6)  # sampled tokens only
    json.dumps(metrics)
    single = metrics_of(1, [make_target(1, (3, 5))])
    assert set(metrics) - set(single) == {
        "conversations", "turns", "turns_max", "environment_tokens", "environment_seconds", "segments_opened",
        "segments_opened_tokens", "segments_began_rewritten", "segments_began_compaction", "turns_kept", "turns_moved",
        "redrawn_turns", "dropped_tokens", *(f"conversations_ended_{why}" for why in ended),
    }  # fmt: skip
    assert [chart.title for chart in charts_of([metrics]) if chart not in charts_of([single])] == [
        "Turns", "Who wrote the conversations", "How conversations ended", "Turns and their engines",
    ]  # fmt: skip
