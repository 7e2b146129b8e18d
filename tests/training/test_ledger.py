from __future__ import annotations

import shutil
import sqlite3
import subprocess
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partialmethod
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lpo_ray.common.files import DiskFull
from lpo_ray.errors import RunBusy
from lpo_ray.records import Key, ScoredGroup, WeightsVersion
from lpo_ray.training.group_store import GroupStore
from lpo_ray.training.ledger import Ledger
from lpo_ray.training.ledger_audit import audit
from lpo_ray.training.ledger_codec import from_bytes, to_bytes
from tests.support.builders import make_scored
from tests.support.ledgers import anchor_of, commit, keys, scored_by


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path / "ledger.sqlite")


def test_a_prompt_is_issued_sampled_scored_and_trained_once(ledger: Ledger) -> None:
    group = scored_by(ledger, 0)
    commit(ledger, 1, [group])
    assert ledger.counts() == {"issued": 1, "in_flight": 0, "trained": 1, "lost": 0, "stale": 0, "filtered": 0}
    with pytest.raises(ValueError, match=r"train-00000000 \(attempt 0\) is trained; only scored can become trained"):
        commit(ledger, 2, [group])


def test_a_lost_attempt_is_reissued_and_its_late_answer_has_no_row_to_go_to(ledger: Ledger) -> None:
    key = make_scored(0).group.key
    ledger.issue(0, key[0], 60)
    ledger.lost(key, "engine died")
    assert ledger.issue(0, key[0], 60) == 1
    with pytest.raises(ValueError, match="is lost; only issued can become sampled"):
        ledger.sampled(key)
    assert ledger.counts()["in_flight"] == 1


def test_a_commit_is_all_or_nothing(ledger: Ledger, tmp_path: Path) -> None:
    first, second = scored_by(ledger, 0), make_scored(1)
    ledger.issue(1, second.group.prompt.prompt_id, 60)
    with pytest.raises(ValueError, match="train-00000001"):
        commit(ledger, 1, [first, second])
    assert ledger.counts()["trained"] == 0
    with pytest.raises(OSError, match="disk"), ledger.step(WeightsVersion(1, "d"), [first.group.key]):
        assert ledger.counts()["trained"] == 1  # what belongs to the step sees it
        raise OSError("the disk is full")
    assert ledger.counts() == {"issued": 2, "in_flight": 2, "trained": 0, "lost": 0, "stale": 0, "filtered": 0}
    assert ledger.commits_after(0) == []


def test_a_resumed_run_has_its_scored_groups_and_owes_what_was_on_its_way(ledger: Ledger) -> None:
    trained, waiting = scored_by(ledger, 0), scored_by(ledger, 1, version=1)
    ledger.issue(2, "train-00000002", 60)
    commit(ledger, 1, [trained])
    owed = ledger.resume(1)
    assert owed.prompts == ((2, "train-00000002"),)
    (group,) = owed.scored
    assert group.group.key == waiting.group.key
    assert group.rewards.tolist() == waiting.rewards.tolist()
    for ours, theirs in zip(group.group.responses, waiting.group.responses, strict=True):
        assert ours.token_ids.tolist() == theirs.token_ids.tolist()
        assert ours.behaviour_logprobs.tobytes() == theirs.behaviour_logprobs.tobytes()
        assert ours.versions.tolist() == [1] * len(theirs.token_ids)
        assert ours.finish_reason == theirs.finish_reason
    assert ledger.next_index() == 3
    assert ledger.issue(2, "train-00000002", 60) == 1


def test_going_back_keeps_groups_of_weights_that_stay_and_loses_those_of_weights_that_go(ledger: Ledger) -> None:
    first, second, third = scored_by(ledger, 0), scored_by(ledger, 1), scored_by(ledger, 2, version=1)
    commit(ledger, 1, [first])
    commit(ledger, 2, [second, third])
    assert keys(ledger.batch(2)[0]) == keys([second, third])
    owed = ledger.resume(1)
    assert keys(owed.scored) == [second.group.key, third.group.key]
    owed = ledger.resume(0)
    assert keys(owed.scored) == [first.group.key, second.group.key]
    assert owed.prompts == ((2, "train-00000002"),)
    assert ledger.commits_after(0) == []


def test_settled_groups_are_forgotten_but_for_those_that_may_be_reused(ledger: Ledger) -> None:
    groups = [scored_by(ledger, number) for number in range(3)]
    for step, group in enumerate(groups, start=1):
        commit(ledger, step, [group], reused=[groups[0].group.key] if step == 3 else ())
    assert keys(ledger.batch(3)[0]) == keys([groups[2], groups[0]])
    assert ledger.batch(3)[1][1].drift.tolist() == anchor_of(groups[0].group.key).drift.tolist()
    ledger.settle(2, keep_steps=1)
    assert [bool(ledger.batch(step)[0]) for step in (1, 2, 3)] == [False, False, False]
    assert keys(ledger.trained_since(0)) == keys(groups[1:])
    owed = ledger.resume(0)  # to before what was settled: its groups are gone, and owed
    assert owed.prompts == ((0, "train-00000000"),)
    assert keys(owed.scored) == keys(groups[1:])


def test_a_reader_sees_what_the_writer_has_done(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.sqlite")
    ledger.issue(0, "a", 60)
    with sqlite3.connect(tmp_path / "ledger.sqlite") as reader:
        assert reader.execute("SELECT prompt_id, state FROM attempts").fetchall() == [("a", "issued")]
    assert audit(tmp_path).prompts["issued"] == 1
    assert audit(tmp_path).violations == ()


@settings(max_examples=30)
@given(
    st.lists(st.sampled_from(["score", "lose", "train", "stale", "filter", "resume", "back"]), max_size=40),
    st.integers(1, 4),
)
def test_any_history_balances(tmp_path_factory: pytest.TempPathFactory, moves: list[str], prompts: int) -> None:
    """Whatever happens, the books balance, and a prompt is trained at most once."""
    folder = tmp_path_factory.mktemp("ledger")
    ledger = Ledger(folder / "ledger.sqlite")
    step = 0
    on_its_way = {n: ledger.issue(n, f"train-{n:08d}", 60) for n in range(prompts)}
    scored: dict[int, ScoredGroup] = {}
    for number, move in enumerate(moves):
        n = number % prompts
        if move == "score" and n in on_its_way:
            scored[n] = make_scored(n, version=step, attempt=on_its_way.pop(n))
            ledger.sampled(scored[n].group.key)
            ledger.scored(scored[n])
        elif move == "lose" and n in on_its_way:
            ledger.lost((f"train-{n:08d}", on_its_way[n]), "test")
            on_its_way[n] = ledger.issue(n, f"train-{n:08d}", 60)
        elif move == "train" and scored:
            step += 1
            commit(ledger, step, list(scored.values()))
            scored = {}
        elif move == "stale" and n in scored:
            ledger.stale(scored.pop(n).group.key, "old")
            on_its_way[n] = ledger.issue(n, f"train-{n:08d}", 60)
        elif move == "filter" and n in scored:
            ledger.filtered(scored.pop(n).group.key, "equal")
        elif move in ("resume", "back"):
            step = max(0, step - (move == "back"))
            owed = ledger.resume(step)
            scored = {int(group.group.prompt.prompt_id[6:]): group for group in owed.scored}
            on_its_way = {n: ledger.issue(n, name, 60) for n, name in owed.prompts}
        counts = ledger.counts()
        assert counts["issued"] == sum(counts[s] for s in ("in_flight", "trained", "lost", "stale", "filtered"))
        assert counts["in_flight"] == len(on_its_way) + len(scored)
        assert audit(folder).violations == ()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 400 KiB; skips where none can be mounted."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", folder], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("no file system can be mounted here")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_full_disk_is_named_and_what_was_committed_is_kept(small_disk: Path) -> None:
    ledger = Ledger(small_disk / "ledger.sqlite")
    done = 0
    with pytest.raises(DiskFull, match=r"No space left on device \(.* are free there\): .*(ledger|groups).sqlite"):
        for index in range(10_000):
            commit(ledger, index + 1, [scored_by(ledger, index)])
            done = index + 1
    ledger.close()
    kept = small_disk.parent / "kept"
    shutil.copytree(small_disk, kept)
    assert [version.step for version in Ledger(kept / "ledger.sqlite").commits_after(0)] == list(range(1, done + 1))


def test_a_step_of_a_driver_that_may_not_write_is_not_committed(tmp_path: Path) -> None:
    allowed = True

    def check() -> None:
        if not allowed:
            raise RunBusy("another has it")

    ledger = Ledger(tmp_path / "ledger.sqlite", check)
    commit(ledger, 1, [scored_by(ledger, 0)])
    group = scored_by(ledger, 1)
    allowed = False
    with pytest.raises(RunBusy):
        commit(ledger, 2, [group])
    with pytest.raises(RunBusy):
        ledger.resume(0)
    assert [version.step for version in ledger.commits_after(0)] == [1]


def test_a_reward_and_what_training_adds_to_it_are_kept_apart() -> None:
    scored = replace(make_scored(0), shaping=np.array([0.0, -0.5], np.float32))
    again = from_bytes(to_bytes(scored))
    assert again.rewards.tolist() == scored.rewards.tolist()
    assert again.shaped.tolist() == scored.shaped.tolist()
    plain = from_bytes(to_bytes(make_scored(0)))
    assert plain.shaped.tolist() == plain.rewards.tolist()


def test_a_prompt_that_cannot_be_used_has_its_row_in_the_books(ledger: Ledger, tmp_path: Path) -> None:
    ledger.unusable(0, "train-00000000-row-6", "row 6: answer: there is none")
    assert ledger.counts() == {"issued": 1, "in_flight": 0, "trained": 0, "lost": 0, "stale": 0, "filtered": 1}
    assert ledger.next_index() == 1
    assert ledger.resume(0).prompts == ()
    assert audit(tmp_path).violations == ()


def test_groups_are_written_in_threads_while_others_write(ledger: Ledger, tmp_path: Path) -> None:
    groups = [make_scored(number, (400, 500)) for number in range(24)]
    begun = threading.Barrier(5)

    def write(mine: list[ScoredGroup]) -> None:
        begun.wait(10)
        for scored in mine:
            ledger.scored(scored)

    for number, scored in enumerate(groups):
        ledger.issue(number, scored.group.prompt.prompt_id, 60)
        ledger.sampled(scored.group.key)
    with ThreadPoolExecutor(4) as pool:
        writing = [pool.submit(write, groups[n::4]) for n in range(4)]
        begun.wait(10)
        with pytest.raises(OSError, match="not committed"), ledger.step(WeightsVersion(1, "d"), []):
            raise OSError("not committed")  # takes nothing of the others with it
        for number in range(24, 60):
            ledger.issue(number, f"train-{number:08d}", 60)
            ledger.lost((f"train-{number:08d}", 0), "test")
        for done in writing:
            done.result()
    assert ledger.counts()["lost"] == 36
    assert keys(ledger.resume(0).scored) == keys(groups)
    assert audit(tmp_path).violations == ()


def test_the_logs_are_emptied_as_they_grow(ledger: Ledger, tmp_path: Path) -> None:
    for number in range(40):
        group = make_scored(number, (40_000, 40_000))
        ledger.issue(number, group.group.prompt.prompt_id, 60)
        ledger.sampled(group.group.key)
        ledger.scored(group)
    ledger.sync()
    assert (tmp_path / "groups.sqlite").stat().st_size > 30 * 10**6
    assert (tmp_path / "groups.sqlite-wal").stat().st_size < 8 * 2**20
    assert (tmp_path / "ledger.sqlite").stat().st_size > 10_000
    ledger.settle(0, 0)
    assert len(ledger.resume(0).scored) == 40


def test_nobody_waits_while_a_group_is_written(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    group = make_scored(0)
    ledger.issue(0, group.group.prompt.prompt_id, 60)
    ledger.sampled(group.group.key)
    writing, go_on = threading.Event(), threading.Event()

    def put(store: GroupStore, scored: ScoredGroup, put: Callable[[GroupStore, ScoredGroup], None]) -> None:
        writing.set()
        assert go_on.wait(10)
        put(store, scored)

    monkeypatch.setattr(GroupStore, "put", partialmethod(put, put=GroupStore.put))
    written = ledger.contents.submit(ledger.scored, group)
    assert writing.wait(10)
    for number in range(1, 20):
        ledger.issue(number, f"train-{number:08d}", 60)
        ledger.lost((f"train-{number:08d}", 0), "test")
    commit(ledger, 1, [])
    assert not written.done()
    go_on.set()
    written.result(10)
    assert ledger.counts()["in_flight"] == 1


def test_a_group_that_was_cut_while_it_is_written_stays_cut(ledger: Ledger) -> None:
    group = make_scored(0)
    ledger.issue(0, group.group.prompt.prompt_id, 60)
    ledger.sampled(group.group.key)
    ledger.filtered(group.group.key, "late")
    with pytest.raises(ValueError, match="is filtered; only sampled can become scored"):
        ledger.scored(group)
    commit(ledger, 1, [])
    assert stored(ledger) == [group.group.key]
    ledger.sync()  # its end is on disk
    assert stored(ledger) == []
    assert ledger.resume(1).scored == ()


def test_what_is_left_out_keeps_its_content_until_its_end_is_on_disk(ledger: Ledger) -> None:
    trained, equal, old = (scored_by(ledger, number) for number in range(3))
    ledger.filtered(equal.group.key, "equal")
    ledger.stale(old.group.key, "old")
    ledger.sync()
    assert stored(ledger) == keys([trained, equal, old])
    commit(ledger, 1, [trained])
    ledger.sync()
    assert stored(ledger) == keys([trained])


def test_contents_that_no_row_speaks_of_are_removed_and_replaced(ledger: Ledger) -> None:
    """As a power cut leaves them: rows of the ledger that were written last are gone."""
    store = GroupStore(ledger._groups._db.path)
    store.put(unknown := make_scored(0))
    store.put(issued := make_scored(1))
    ledger.issue(1, issued.group.prompt.prompt_id, 60)
    assert ledger.resume(0).scored == ()
    assert stored(ledger) == []
    store.put(unknown)
    again = scored_by(ledger, 0)
    assert keys(ledger.resume(0).scored) == keys([again])


def test_a_ledger_of_before_returns_to_its_checkpoint(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "ledger.sqlite") as db:
        db.execute("CREATE TABLE contents (prompt_id TEXT, attempt INTEGER, content BLOB)")
    ledger = Ledger(tmp_path / "ledger.sqlite")
    group = scored_by(ledger, 0)
    commit(ledger, 1, [group])
    ledger._groups.remove([group.group.key])
    assert ledger.batch(1) == ([], ())
    assert ledger.resume(0).prompts == ((0, "train-00000000"),)


def stored(ledger: Ledger) -> list[Key]:
    return sorted(ledger._groups.keys())
