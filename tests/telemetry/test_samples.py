"""The parquet of a step: the loss and the whole step can be computed from it again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from lpo_ray.objective import project
from lpo_ray.records import AfterGroup, AnchorGroup
from lpo_ray.telemetry import samples
from lpo_ray.telemetry.samples import read_step, write_samples
from tests.support.builders import make_target
from tests.support.telemetry import report_of


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


def test_what_training_adds_to_a_reward_is_a_column_of_its_own(tmp_path: Path) -> None:
    made = make_target(0, (3, 5))
    shaped = replace(made, scored=replace(made.scored, shaping=np.array([0.0, -0.5], np.float32)))
    path = tmp_path / "samples" / "step_000001.parquet"
    write_samples(
        path, [shaped], report_of([shaped]), step=1, learning_rate=0.1, divergence="forward_kl", after={}, decode=str
    )
    frame = pq.read_table(path).to_pylist()
    assert [row["reward"] for row in frame] == made.scored.rewards.tolist()
    assert [row["shaping"] for row in frame] == [0.0, -0.5]
    [again] = read_step(path).targets
    assert again.scored.shaped.tolist() == shaped.scored.shaped.tolist()


@pytest.mark.parametrize("measured", [False, True], ids=["not measured", "some measured"])
@pytest.mark.parametrize("said", [False, True], ids=["no details", "some details"])
def test_the_rows_are_the_same_however_many_are_encoded_at_once(
    measured: bool, said: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    targets = [make_target(n, (3, 5, 2), version=n) for n in range(5)]
    if said:
        targets[1] = replace(targets[1], scored=replace(targets[1].scored, details=("a", "b", "\ud800")))
    after = {}
    if measured:
        target = targets[3]
        deltas = tuple(np.arange(len(r.token_ids), dtype=np.float32) for r in target.group.responses)
        after = {target.group.key: AfterGroup(np.arange(3, dtype=np.float32), deltas)}
    tables = []
    for tokens in (1, 25, 10**6):
        monkeypatch.setattr(samples, "CHUNK_TOKENS", tokens)
        path = tmp_path / f"step_{tokens}.parquet"
        write_samples(
            path, targets, report_of(targets), step=1, learning_rate=0.1, divergence="forward_kl", after=after,
            decode=str,
        )  # fmt: skip
        tables.append(pq.read_table(path))
        assert pq.ParquetFile(path).metadata.num_row_groups == {1: 5, 25: 3, 10**6: 1}[tokens]
    assert tables[0].equals(tables[2])
    assert tables[1].equals(tables[2])
    rows = tables[0].to_pylist()
    assert [row["detail"] for row in rows[3:6]] == (["a", "b", "?"] if said else [None] * 3)
    assert [row["after"] for row in rows[8:13]] == ([None, 0.0, 1.0, 2.0, None] if measured else [None] * 5)
    assert rows[10]["token_log_ratio"] == ([0.0, 1.0, 2.0, 3.0, 4.0] if measured else None)
    assert rows[10]["token_ids"] == targets[3].group.responses[1].token_ids.tolist()
    assert rows[10]["versions"] == [3] * 5
