from __future__ import annotations

import asyncio
import os
import pickle
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from lpo_ray.common.database import Database
from lpo_ray.common.files import DiskFull, append_text
from lpo_ray.errors import (
    CheckpointFailed,
    ComponentDied,
    Interrupted,
    LearnerLost,
    NumbersNotFinite,
    TooManyLost,
    TooManyUnscored,
)
from lpo_ray.records import Key, Prompt, PromptGroup, Publication, Sampling, ScoredGroup, StepRecord, WeightsVersion
from lpo_ray.run.signals import first_cause
from lpo_ray.tools.trace import trace
from lpo_ray.training.checkpoint import CheckpointRules, list_checkpoints
from lpo_ray.training.ledger import Ledger, PendingWork
from lpo_ray.training.ledger_audit import audit
from lpo_ray.training.loop import NOTHING_OWED, TrainingLoop
from tests.support.builders import make_scored
from tests.support.fakes import FakeComponents, FakeObserver, FakeSource
from tests.support.loops import loop_settings

FIRST = WeightsVersion(0, "digest-0")


async def run(
    folder: Path,
    parts: FakeComponents,
    first: WeightsVersion = FIRST,
    owed: PendingWork = NOTHING_OWED,
    **changes: object,
) -> tuple[FakeObserver, Ledger]:
    observer, ledger = FakeObserver(), Ledger(folder / "ledger.sqlite")
    loop = TrainingLoop(parts, FakeSource(), ledger, loop_settings(folder, **changes), observer)
    await asyncio.wait_for(loop.run(first, owed, saved=first.step), 20)
    return observer, ledger


async def test_a_synchronous_step_happens_in_order(tmp_path: Path) -> None:
    parts = FakeComponents()
    observer, ledger = await run(tmp_path, parts)
    assert parts.events == [
        "build 4", "project 0", "publish 1",
        "build 4", "project 1", "publish 2", "save 2",
        "build 4", "project 2", "publish 3", "save 3",
    ]  # fmt: skip
    assert [record.step for record in observer.steps] == [1, 2, 3]
    assert ledger.counts() == {"issued": 12, "in_flight": 0, "trained": 12, "lost": 0, "stale": 0, "filtered": 0}


async def test_on_policy_groups_are_sampled_from_the_weights_that_train_them(tmp_path: Path) -> None:
    parts = FakeComponents()
    await run(tmp_path, parts)
    assert [parts.sampled_at[f"train-{n:08d}"] for n in range(12)] == [0] * 4 + [1] * 4 + [2] * 4


async def test_with_staleness_the_lanes_overlap_and_the_bound_holds(tmp_path: Path) -> None:
    parts = FakeComponents()
    observer, ledger = await run(tmp_path, parts, max_staleness=1, behaviour_from_engine=True, steps=6)
    for record in observer.steps:
        for target in record.targets:
            assert record.step - 1 - target.group.oldest_version <= 1
    assert any(t.group.oldest_version < r.step - 1 for r in observer.steps for t in r.targets)
    assert ledger.counts()["trained"] == 24
    assert "anchor" in parts.events


async def test_the_backlog_is_what_the_lane_holds_when_a_step_is_done(tmp_path: Path) -> None:
    parts = FakeComponents(lose={"train-00000001": 1})
    observer, _ = await run(tmp_path, parts, max_staleness=1, behaviour_from_engine=True, steps=3)
    found = [record.backlog for record in observer.steps]
    tokens = 4 * 2 * len(observer.steps[0].targets[0].log_target)
    for backlog in found:
        groups = backlog.on_the_way + backlog.waiting
        assert 0 <= groups <= 4
        assert backlog.num_bytes > 0
    assert (found[-1].on_the_way, found[-1].waiting) == (0, 0)
    assert sum(backlog.sampled_tokens for backlog in found) == 3 * tokens  # a lost attempt adds none


async def test_a_lost_group_is_reissued_and_never_trained_as_zero(tmp_path: Path) -> None:
    parts = FakeComponents(lose={"train-00000001": 2})
    observer, ledger = await run(tmp_path, parts)
    assert len(observer.losses) == 2
    assert ledger.counts() == {"issued": 14, "in_flight": 0, "trained": 12, "lost": 2, "stale": 0, "filtered": 0}
    trained = {t.group.prompt.prompt_id: t.group.attempt for t in observer.steps[0].targets}
    assert trained["train-00000001"] == 2


async def test_a_prompt_that_is_always_lost_ends_the_run_with_its_name(tmp_path: Path) -> None:
    with pytest.raises(ExceptionGroup) as caught:
        await run(tmp_path, FakeComponents(lose={"train-00000002": 99}))
    cause = first_cause(caught.value)
    assert isinstance(cause, TooManyLost)
    assert "train-00000002 was lost 3 times" in str(cause)


async def test_the_ledger_has_what_happened_although_the_run_ends_before_it_has_written_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost = Ledger.lost

    def slowly(ledger: Ledger, key: Key, reason: str) -> None:
        time.sleep(0.2)
        lost(ledger, key, reason)

    monkeypatch.setattr(Ledger, "lost", slowly)
    ledger = Ledger(tmp_path / "ledger.sqlite")
    loop = TrainingLoop(
        FakeComponents(lose={"train-00000002": 99}), FakeSource(), ledger, loop_settings(tmp_path), FakeObserver()
    )
    with pytest.raises(ExceptionGroup):
        await loop.run(FIRST)
    ledger.close()
    [told] = trace(tmp_path, "train-00000002")
    assert [(attempt.state, attempt.reason) for attempt in told.attempts] == [("lost", "the fake engine lost it")] * 3


async def test_the_loop_itself_touches_no_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread waits for it: of the ledger, of its commits, of what the observer writes of a step."""
    here, written = threading.get_ident(), []

    def watched(name: str, real: Callable[..., object]) -> Callable[..., object]:
        def call(*arguments: object, **named: object) -> object:
            assert threading.get_ident() != here, f"{name} {arguments}"
            written.append(name)
            return real(*arguments, **named)

        return call

    class Writing(FakeObserver):
        def step_ends(self) -> Callable[[StepRecord], None]:
            return lambda record: append_text(tmp_path / "metrics.jsonl", f"{record.step}\n")

    ledger, observer = Ledger(tmp_path / "ledger.sqlite"), Writing()
    parts = FakeComponents(lose={"train-00000001": 2}, unscored={"train-00000002": 99})
    chosen = loop_settings(tmp_path, oversample_groups=1, max_staleness=1, drop_equal_rewards=True, checkpoint_every=0)
    loop = TrainingLoop(parts, FakeSource(frozenset({3})), ledger, chosen, observer)
    with monkeypatch.context() as patch:
        patch.setattr(Database, "execute", watched("execute", Database.execute))
        patch.setattr(os, "fsync", watched("fsync", os.fsync))
        await loop.run(FIRST)
    assert {"execute", "fsync"} <= set(written)
    assert (tmp_path / "metrics.jsonl").read_text() == "1\n2\n3\n"
    assert [record.groups["trained"] for record in observer.steps] == [4, 8, 12]


async def test_a_prompt_that_stays_unscored_is_left_out_and_another_is_sampled_in_its_place(tmp_path: Path) -> None:
    parts = FakeComponents(unscored={"train-00000001": 99, "train-00000005": 2})
    observer, ledger = await run(tmp_path, parts)
    reason = "unscored at 3 attempts: the fake verifier has no verdict"
    assert observer.out == {"train-00000001": reason}
    assert ledger.counts() == {"issued": 17, "in_flight": 0, "trained": 12, "lost": 4, "stale": 0, "filtered": 1}
    assert [len(record.targets) for record in observer.steps] == [4, 4, 4]
    assert [record.left_out["unscored"] for record in observer.steps] == [1, 0, 0]
    [told] = trace(tmp_path, "train-00000001")
    assert [(attempt.state, attempt.reason) for attempt in told.attempts][-1] == ("filtered", reason)
    assert audit(tmp_path).violations == ()


async def test_such_a_prompt_is_not_owed_after_a_resume(tmp_path: Path) -> None:
    observer, ledger = await run(tmp_path, FakeComponents(unscored={"train-00000001": 99}), steps=1)
    assert observer.out
    assert ledger.resume(1) == NOTHING_OWED
    assert ledger.next_index() == 5


async def test_losses_of_the_infrastructure_do_not_count_against_a_prompt_that_stays_unscored(tmp_path: Path) -> None:
    parts = FakeComponents(lose={"train-00000001": 2}, unscored={"train-00000001": 4})
    observer, _ = await run(tmp_path, parts)
    assert not observer.out
    assert len(observer.losses) == 4


@pytest.mark.parametrize(("share", "left_out"), [(0.1, 2), (0.0, 0), (0.3, 6)])
async def test_too_many_unscored_prompts_end_the_run_with_their_reasons(
    share: float, left_out: int, tmp_path: Path
) -> None:
    ids = [f"train-{n:08d}" for n in range(0, 40, 3)]
    with pytest.raises(ExceptionGroup) as caught:
        await run(tmp_path, FakeComponents(unscored=dict.fromkeys(ids, 99)), steps=10, max_unscored_share=share)
    cause = first_cause(caught.value)
    assert isinstance(cause, TooManyUnscored)
    assert cause.unscored == left_out + 1
    assert "the fake verifier has no verdict" in str(cause)
    assert "pipeline.max_unscored_share" in str(cause)
    assert pickle.loads(pickle.dumps(cause)).args == cause.args


async def test_a_row_that_cannot_be_used_is_filtered_in_its_place_in_the_data(tmp_path: Path) -> None:
    parts, observer, ledger = FakeComponents(), FakeObserver(), Ledger(tmp_path / "ledger.sqlite")
    source = FakeSource(frozenset({0, 5, 6, 7}))
    loop = TrainingLoop(parts, source, ledger, loop_settings(tmp_path), observer)
    await asyncio.wait_for(loop.run(FIRST), 20)
    trained = [target.group.prompt.prompt_id for record in observer.steps for target in record.targets]
    assert trained == [f"train-{n:08d}" for n in range(16) if n not in source.unusable]
    assert ledger.counts() == {"issued": 16, "in_flight": 0, "trained": 12, "lost": 0, "stale": 0, "filtered": 4}
    assert trace(tmp_path, "5")[0].attempts[0].reason == "row 6: answer: there is none"
    books = audit(tmp_path)
    assert books.violations == ()
    assert books.prompts["filtered"] == 4


async def test_a_broken_learner_ends_the_run_at_once(tmp_path: Path) -> None:
    with pytest.raises(ExceptionGroup) as caught:
        await run(tmp_path, FakeComponents(fail_project_at=1))
    assert "the fake learner broke" in str(first_cause(caught.value))


async def test_a_run_whose_engines_are_lost_ends_with_a_checkpoint_of_the_last_commit(tmp_path: Path) -> None:
    class Engines(FakeComponents):
        async def sample(self, prompt: Prompt, sampling: Sampling, attempt: int) -> PromptGroup:
            if prompt.prompt_id >= "train-00000012":
                raise ComponentDied("rollout worker 0", "no rollout worker is left")
            return await super().sample(prompt, sampling, attempt)

    with pytest.raises(ExceptionGroup) as caught:
        await run(tmp_path, Engines(), steps=9, checkpoint_every=100)
    assert str(first_cause(caught.value)) == "rollout worker 0 died: no rollout worker is left"
    assert [path.name for path in list_checkpoints(tmp_path / "checkpoints")] == ["step_000003"]


async def test_an_update_that_is_not_committed_is_in_no_checkpoint(tmp_path: Path) -> None:
    """The learner is a step further than the books; the run goes on from the checkpoint before."""

    class Engines(FakeComponents):
        async def publish(self, step: int) -> Publication:
            if step == 4:
                raise ComponentDied("rollout worker 0", "no rollout worker is left")
            return await super().publish(step)

    parts = Engines()
    with pytest.raises(ExceptionGroup):
        await run(tmp_path, parts, steps=9, checkpoint_every=2)
    assert "project 3" in parts.events
    assert [path.name for path in list_checkpoints(tmp_path / "checkpoints")] == ["step_000002"]


async def test_stop_saves_a_checkpoint_and_leaves_the_rest_in_the_ledger(tmp_path: Path) -> None:
    parts = FakeComponents(sample_seconds=0.02)
    ledger = Ledger(tmp_path / "ledger.sqlite")
    observer = FakeObserver()
    rare = CheckpointRules(tmp_path / "checkpoints", every=100, keep=0, best=None)
    loop = TrainingLoop(parts, FakeSource(), ledger, loop_settings(tmp_path, steps=1000, checkpoints=rare), observer)
    task = asyncio.ensure_future(loop.run(FIRST))
    while len(observer.steps) < 3:
        await asyncio.sleep(0.005)
    loop.stop(15)
    with pytest.raises(Interrupted) as caught:
        await asyncio.wait_for(task, 5)
    assert caught.value.exit_code == 143
    last = observer.steps[-1].step
    assert [path.name for path in list_checkpoints(tmp_path / "checkpoints")] == [f"step_{last:06d}"]
    assert ledger.counts()["trained"] == 4 * last


async def test_a_resumed_run_trains_what_it_had_and_what_is_owed_and_every_prompt_once(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.sqlite")
    groups = [make_scored(number) for number in range(6)]
    for number, scored in enumerate(groups):
        ledger.issue(number, scored.group.prompt.prompt_id, 60)
        if number != 4:
            ledger.sampled(scored.group.key)
            ledger.scored(scored)
    with ledger.step(WeightsVersion(1, "digest-1"), [scored.group.key for scored in groups[:4]]):
        pass
    owed = ledger.resume(1)
    ledger.close()
    parts = FakeComponents(step=1)
    observer, ledger = await run(tmp_path, parts, WeightsVersion(1, "digest-1"), owed, max_staleness=1)
    assert [record.step for record in observer.steps] == [2, 3]
    trained = {target.group.key for record in observer.steps for target in record.targets}
    assert trained == {(f"train-{n:08d}", int(n == 4)) for n in range(4, 12)}
    assert "train-00000005" not in parts.sampled_at  # it was scored before
    assert ledger.counts()["trained"] == 12


async def test_steps_that_were_computed_again_are_saved_before_the_run_goes_on(tmp_path: Path) -> None:
    parts = FakeComponents(step=1)
    ledger = Ledger(tmp_path / "ledger.sqlite")
    loop = TrainingLoop(parts, FakeSource(), ledger, loop_settings(tmp_path), FakeObserver())
    await loop.run(WeightsVersion(1, "digest-1"), saved=0)
    assert parts.events.index("save 1") < parts.events.index("project 1")


async def test_a_failed_save_leaves_no_half_checkpoint(tmp_path: Path) -> None:
    class FullDisk(FakeComponents):
        async def save(self, folder: Path) -> None:
            (folder / "weights").write_text("half")
            raise OSError(28, "No space left on device")

    with pytest.raises(ExceptionGroup) as caught:
        await run(tmp_path, FullDisk())
    cause = first_cause(caught.value)
    assert isinstance(cause, CheckpointFailed)
    assert "step_000002 could not be written: [Errno 28] No space left on device. Nothing of it is left" in str(cause)
    assert list((tmp_path / "checkpoints").iterdir()) == []


async def test_sampling_goes_on_while_a_checkpoint_is_written_and_projection_waits_for_it(tmp_path: Path) -> None:
    class SlowDisk(FakeComponents):
        async def save(self, folder: Path) -> None:
            self.events.append("saving")
            await asyncio.sleep(0.1)
            await super().save(folder)

        async def score(self, group: PromptGroup) -> ScoredGroup:
            self.events.append("scored")
            return await super().score(group)

    parts = SlowDisk()
    await run(tmp_path, parts)
    made, saved = parts.events.index("publish 2"), parts.events.index("save 2")
    assert parts.events[made + 1 : saved].count("scored") == 4
    assert saved < parts.events.index("project 2")
    assert not [path for path in (tmp_path / "checkpoints").iterdir() if path.name.startswith(".partial")]


async def test_the_newest_and_the_best_checkpoints_are_kept(tmp_path: Path) -> None:
    rules = CheckpointRules(tmp_path / "checkpoints", every=1, keep=2, best="reward")
    observer = FakeObserver(scores={1: 0.1, 2: 0.9, 3: 0.2, 4: 0.9, 5: 0.3, 6: 0.4, 7: 0.5})
    loop = TrainingLoop(
        FakeComponents(), FakeSource(), Ledger(tmp_path / "ledger.sqlite"),
        loop_settings(tmp_path, steps=7, checkpoints=rules), observer,
    )  # fmt: skip
    await loop.run(FIRST)
    assert [path.name for path in list_checkpoints(rules.folder)] == ["step_000004", "step_000006", "step_000007"]


async def test_a_skipped_update_filters_its_groups_and_the_run_goes_on(tmp_path: Path) -> None:
    observer, ledger = await run(tmp_path, FakeComponents(not_finite_at={1}))
    assert [record.step for record in observer.steps] == [1, 2, 3]
    assert ledger.counts() == {"issued": 12, "in_flight": 0, "trained": 8, "lost": 0, "stale": 0, "filtered": 4}
    assert ledger.resume(3) == NOTHING_OWED


async def test_too_many_skipped_updates_in_a_row_end_the_run_with_the_evidence(tmp_path: Path) -> None:
    parts = FakeComponents(not_finite_at={0, 2, 3, 4})
    with pytest.raises(ExceptionGroup) as caught:
        await run(tmp_path, parts, steps=9)
    cause = first_cause(caught.value)
    assert isinstance(cause, NumbersNotFinite)
    assert "3 updates in a row" in str(cause)
    assert "step 4: loss of train-000000" in str(cause)
    assert "The groups are in the samples" in str(cause)
    assert list_checkpoints(tmp_path / "checkpoints")[-1].name == "step_000004"


class Keeping(FakeObserver):
    """An observer that keeps what a step learned when it is told to."""

    def __init__(self, error: Exception | None = None) -> None:
        super().__init__()
        self.begun, self.may_end, self.error = asyncio.Event(), asyncio.Event(), error

    async def learned(self, *made: object) -> None:
        self.begun.set()
        await self.may_end.wait()
        if self.error is not None:
            raise self.error
        await super().learned(*made)  # pyright: ignore


async def test_a_step_is_committed_once_what_it_learned_is_kept(tmp_path: Path) -> None:
    parts, observer, ledger = FakeComponents(), Keeping(), Ledger(tmp_path / "ledger.sqlite")
    loop = TrainingLoop(parts, FakeSource(), ledger, loop_settings(tmp_path), observer)
    running = asyncio.ensure_future(loop.run(FIRST))
    await asyncio.wait_for(observer.begun.wait(), 10)
    for _ in range(20):
        await asyncio.sleep(0)
    assert parts.events[-1] == "publish 1"  # which does not wait for it
    assert (observer.steps, ledger.commits_after(0)) == ([], [])
    observer.may_end.set()
    await asyncio.wait_for(running, 20)
    assert observer.learnt == [0, 1, 2]
    assert [record.step for record in observer.steps] == [1, 2, 3]


async def test_a_step_whose_samples_find_no_room_is_not_committed(tmp_path: Path) -> None:
    observer, ledger = Keeping(DiskFull(28, "no space", "samples")), Ledger(tmp_path / "ledger.sqlite")
    observer.may_end.set()
    loop = TrainingLoop(FakeComponents(), FakeSource(), ledger, loop_settings(tmp_path), observer)
    with pytest.RaisesGroup(DiskFull, flatten_subgroups=True):
        await asyncio.wait_for(loop.run(FIRST), 20)
    assert ledger.commits_after(0) == []


async def test_what_a_step_learned_is_kept_again_when_the_learner_is_lost_behind_it(tmp_path: Path) -> None:
    class Losing(FakeComponents):
        async def publish(self, step: int) -> Publication:
            made = await super().publish(step)
            await asyncio.sleep(0)
            if self.events.count("publish 2") == 1 and step == 2:
                raise LearnerLost("learner rank 0", "killed")
            return made

    parts, observer, ledger = Losing(), FakeObserver(), Ledger(tmp_path / "ledger.sqlite")

    async def recover(lost: LearnerLost) -> None:
        parts.events.append("recover")

    loop = TrainingLoop(parts, FakeSource(), ledger, loop_settings(tmp_path), observer)
    await asyncio.wait_for(loop.run(FIRST, recover=recover), 20)
    assert observer.learnt == [0, 1, 1, 2]
    assert [record.step for record in observer.steps] == [1, 2, 3]


async def test_groups_are_encoded_for_the_ledger_apart_from_the_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: dict[str, set[int]] = {}
    for name in ("scored", "settle", "issue"):
        real = getattr(Ledger, name)

        def watched(ledger: Ledger, *given: object, name: str = name, real: object = real) -> object:
            threads.setdefault(name, set()).add(threading.get_ident())
            return real(ledger, *given)  # pyright: ignore

        monkeypatch.setattr(Ledger, name, watched)
    await run(tmp_path, FakeComponents())
    assert threads["issue"].isdisjoint({threading.get_ident(), *threads["scored"], *threads["settle"]})
    assert threading.get_ident() not in threads["scored"] | threads["settle"]
