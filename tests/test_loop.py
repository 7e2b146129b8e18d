from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from lpo_ray.checkpoint import list_checkpoints
from lpo_ray.errors import Interrupted, TooManyLost
from lpo_ray.ledger import Ledger
from lpo_ray.loop import LoopSettings, TrainingLoop
from lpo_ray.records import Sampling, WeightsVersion
from lpo_ray.run import first_cause
from tests.fakes import FakeComponents, FakeObserver, FakeSource

FIRST = WeightsVersion(0, "digest-0")


def settings(folder: Path, **changes: object) -> LoopSettings:
    base = LoopSettings(
        steps=3,
        groups_per_step=4,
        updates_per_step=2,
        max_staleness=0,
        max_attempts=3,
        tokens_per_micro_batch=1000,
        sampling=Sampling(2, 1.0, 4, seed=0),
        behaviour_from_engine=False,
        learning_rate=lambda step: 0.1,
        checkpoints=folder / "checkpoints",
        checkpoint_every=2,
        checkpoint_keep=0,
        evaluate_every=0,
    )
    return replace(base, **changes)


async def run(
    folder: Path, parts: FakeComponents, first: WeightsVersion = FIRST, owed: tuple[tuple[int, str], ...] = (),
    **changes: object,
) -> tuple[FakeObserver, Ledger]:  # fmt: skip
    observer, ledger = FakeObserver(), Ledger(folder / "ledger.sqlite")
    loop = TrainingLoop(parts, FakeSource(), ledger, settings(folder, **changes), observer)
    await asyncio.wait_for(loop.run(first, owed), 20)
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
    assert ledger.counts() == {"issued": 12, "in_flight": 0, "trained": 12, "lost": 0, "stale": 0}


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


async def test_a_lost_group_is_reissued_and_never_trained_as_zero(tmp_path: Path) -> None:
    parts = FakeComponents(lose={"train-00000001": 2})
    observer, ledger = await run(tmp_path, parts)
    assert len(observer.losses) == 2
    assert ledger.counts() == {"issued": 14, "in_flight": 0, "trained": 12, "lost": 2, "stale": 0}
    trained = {t.group.prompt.prompt_id: t.group.attempt for t in observer.steps[0].targets}
    assert trained["train-00000001"] == 2


async def test_a_prompt_that_is_always_lost_ends_the_run_with_its_name(tmp_path: Path) -> None:
    with pytest.raises(ExceptionGroup) as caught:
        await run(tmp_path, FakeComponents(lose={"train-00000002": 99}))
    cause = first_cause(caught.value)
    assert isinstance(cause, TooManyLost)
    assert "train-00000002 was lost 3 times" in str(cause)


async def test_a_broken_learner_ends_the_run_at_once(tmp_path: Path) -> None:
    with pytest.raises(ExceptionGroup) as caught:
        await run(tmp_path, FakeComponents(fail_project_at=1))
    assert "the fake learner broke" in str(first_cause(caught.value))


async def test_stop_saves_a_checkpoint_and_leaves_the_rest_in_the_ledger(tmp_path: Path) -> None:
    parts = FakeComponents(sample_seconds=0.02)
    ledger = Ledger(tmp_path / "ledger.sqlite")
    observer = FakeObserver()
    loop = TrainingLoop(parts, FakeSource(), ledger, settings(tmp_path, steps=1000, checkpoint_every=100), observer)
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


async def test_a_resumed_run_trains_what_is_owed_first_and_every_prompt_once(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.sqlite")
    for index in range(6):
        ledger.issue(index, f"train-{index:08d}")
    for index in range(4):
        ledger.scored(f"train-{index:08d}", 0)
    ledger.commit(1, "digest-1", [(f"train-{index:08d}", 0) for index in range(4)])
    owed = tuple(ledger.rewind(1))
    ledger.close()
    observer, ledger = await run(tmp_path, FakeComponents(step=1), WeightsVersion(1, "digest-1"), owed)
    assert [record.step for record in observer.steps] == [2, 3]
    names = [target.group.prompt.prompt_id for record in observer.steps for target in record.targets]
    assert names == [f"train-{index:08d}" for index in range(4, 12)]
    assert ledger.counts()["trained"] == 12


async def test_a_failed_save_leaves_no_half_checkpoint(tmp_path: Path) -> None:
    class FullDisk(FakeComponents):
        async def save(self, folder: Path) -> None:
            (folder / "weights").write_text("half")
            raise OSError(28, "No space left on device")

    with pytest.raises(ExceptionGroup) as caught:
        await run(tmp_path, FullDisk())
    assert "No space left" in str(first_cause(caught.value))
    assert list((tmp_path / "checkpoints").iterdir()) == []
