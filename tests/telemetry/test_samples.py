"""The parquet of a step: the loss and the whole step can be computed from it again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from lpo_ray.objective import project
from lpo_ray.records import AfterGroup, AnchorGroup, Key, TargetGroup
from lpo_ray.telemetry import samples
from lpo_ray.telemetry.samples import read_step, write_samples
from lpo_ray.telemetry.segment_columns import COUNTS, SCHEMA, whole_responses
from tests.support.builders import make_target
from tests.support.segments import mixed_group
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


def segmented(number: int = 0) -> TargetGroup:
    group = mixed_group(number)
    target = make_target(number, [len(response.token_ids) for response in group.responses])
    return replace(target, scored=replace(target.scored, group=group))


def write(path: Path, targets: list[TargetGroup], after: dict[Key, AfterGroup] | None = None) -> None:
    write_samples(
        path, targets, report_of(targets), step=1, learning_rate=0.1, divergence="forward_kl", after=after or {},
        decode=lambda ids: "\ud800" + " ".join(map(str, ids)),
    )  # fmt: skip


@pytest.mark.parametrize("measured", [False, True])
def test_conversations_have_a_row_for_each_segment_and_come_back(measured: bool, tmp_path: Path) -> None:
    targets = [make_target(5, (3, 5)), segmented(0), segmented(1)]
    deltas = tuple(np.arange(len(r.token_ids), dtype=np.float32) for r in targets[1].group.responses)
    after = {targets[1].group.key: AfterGroup(np.arange(4, dtype=np.float32), deltas)} if measured else {}
    path = tmp_path / "step_000001.parquet"
    write(path, targets, after)
    table = pq.read_table(path)
    rows = table.to_pylist()
    assert [row["segment"] for row in rows] == [0, 0, *[0, 0, 0, 1, 2, 0, 1] * 2]
    assert [row["response_index"] for row in rows[2:9]] == [0, 1, 2, 2, 2, 3, 3]
    assert all(rows[at][name] is None for at in (0, 1, 2) for name in SCHEMA if name != "segment")
    three, *later = rows[4:7]
    conversation = targets[1].group.responses[2].conversation
    assert conversation is not None
    assert (three["context_ids"], three["began"]) == (None, "")
    assert [row["began"] for row in later] == ["rewritten"] * 2
    for row, segment in zip((three, *later), conversation.segments, strict=True):
        assert row["segment_ids"] == segment.token_ids.tolist()
        assert row["sampled"] == segment.sampled.tolist()
        assert row["token_ids"] == segment.token_ids[segment.sampled].tolist()
        assert len(row["token_ids"]) == len(row["versions"]) == len(row["behaviour_logprobs"])
        assert row["response"] == "?" + " ".join(map(str, segment.token_ids))
        assert (row["turns"], row["authors"]) == (list(conversation.turns), list(conversation.authors))
        assert (row["ended"], row["environment_seconds"]) == ("turns", 0.25)
        assert row["reward"] == targets[1].scored.rewards[2]
    found = [value for row in (three, *later) for value in row["token_log_ratio"] or []]
    assert found == (deltas[2].tolist() if measured else [])
    for read, written in zip(read_step(path).targets, targets, strict=True):
        np.testing.assert_array_equal(read.log_target, written.log_target, strict=True)
        np.testing.assert_array_equal(read.scored.rewards, written.scored.rewards, strict=True)
        for ours, theirs in zip(read.group.responses, written.group.responses, strict=True):
            np.testing.assert_array_equal(ours.token_ids, theirs.token_ids, strict=True)
            np.testing.assert_array_equal(ours.behaviour_logprobs, theirs.behaviour_logprobs, strict=True)
            assert (ours.turns, ours.finish_reason) == (theirs.turns, theirs.finish_reason)
            assert (ours.conversation is None) == (theirs.conversation is None)
            for name in COUNTS:
                assert getattr(ours.conversation, name, None) == getattr(theirs.conversation, name, None)
            for one, other in zip(ours.segments, theirs.segments, strict=True):
                assert one.began == other.began
                np.testing.assert_array_equal(one.token_ids, other.token_ids, strict=True)
                np.testing.assert_array_equal(one.sampled, other.sampled, strict=True)
                assert (one.context_ids is None) == (other.context_ids is None)
                if one.context_ids is not None and other.context_ids is not None:
                    np.testing.assert_array_equal(one.context_ids, other.context_ids, strict=True)


def test_rows_of_segments_are_rows_of_responses_again(tmp_path: Path) -> None:
    targets = [make_target(5, (3, 5)), segmented(0)]
    deltas = tuple(np.arange(len(r.token_ids), dtype=np.float32) for r in targets[1].group.responses)
    path = tmp_path / "step_000001.parquet"
    write(path, targets, {targets[1].group.key: AfterGroup(np.arange(4, dtype=np.float32), deltas)})
    rows = whole_responses(pq.read_table(path)).to_pylist()
    responses = [response for target in targets for response in target.group.responses]
    assert [row["token_ids"] for row in rows] == [response.token_ids.tolist() for response in responses]
    assert [row["versions"] for row in rows] == [response.versions.tolist() for response in responses]
    assert [row["token_log_ratio"] for row in rows] == [None, None, *(delta.tolist() for delta in deltas)]
    write(path, targets[:1])
    single = pq.read_table(path)
    assert "segment" not in single.column_names
    assert whole_responses(single) is single


def test_conversations_are_cut_into_row_groups_by_all_their_tokens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    targets = [segmented(number) for number in range(3)]
    sizes = [t.group.num_tokens + sum(r.num_others for r in t.group.responses) for t in targets]
    assert sizes[0] > targets[0].group.num_tokens + 20
    monkeypatch.setattr(samples, "CHUNK_TOKENS", sizes[0] + sizes[1])
    write(tmp_path / "a.parquet", targets)
    assert pq.ParquetFile(tmp_path / "a.parquet").metadata.num_row_groups == 2
