"""What a reader of checkpoints is told when one is not what was written."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from lpo_ray.errors import CheckpointDamaged, CheckpointFailed, ComponentDied, ComponentFailed, ConfigError
from lpo_ray.tools.export import export
from lpo_ray.training.checkpoint import (
    CheckpointRules,
    CheckpointState,
    list_checkpoints,
    read_state,
    save_checkpoint,
    step_of,
    tidy,
    verify,
)
from tests.support.fakes import FakeComponents

SHAPE = {"architectures": ["Qwen3ForCausalLM"], "vocab_size": 99, "hidden_size": 192}


class Saving(FakeComponents):
    """Writes what a learner of one rank writes, in small."""

    async def save(self, folder: Path) -> None:
        (folder / "policy").mkdir()
        (folder / "shards").mkdir()
        (folder / "policy" / "config.json").write_text(json.dumps(SHAPE))
        (folder / "policy" / "model.safetensors").write_bytes(b"weights" * 100)
        (folder / "shards" / "rank_0.pt").write_bytes(b"moments" * 100)


@pytest.fixture
async def checkpoint(tmp_path: Path) -> Path:
    rules = CheckpointRules(tmp_path / "checkpoints", every=1, keep=2, best=None)
    for step in (1, 2, 3):
        newest = await save_checkpoint(rules, CheckpointState(step, f"digest-{step}", 2, score=0.5), Saving())
    return newest


@pytest.fixture
def model(tmp_path: Path) -> Path:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(json.dumps(SHAPE))
    return tmp_path / "model"


async def test_a_whole_checkpoint_is_what_was_written(checkpoint: Path, model: Path) -> None:
    assert verify(checkpoint, str(model)) == CheckpointState(3, "digest-3", 2, score=0.5)
    assert [step_of(path) for path in list_checkpoints(checkpoint.parent)] == [2, 3]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: (path / "shards/rank_0.pt").unlink(), "shards/rank_0.pt is missing"),
        (lambda path: shutil.rmtree(path / "shards"), "shards/rank_0.pt is missing"),
        (lambda path: (path / "shards/rank_0.pt").write_bytes(b"mom"), "rank_0.pt has 3 bytes, was written with 700"),
        (
            lambda path: (path / "policy/model.safetensors").write_bytes(b"w3ights" * 100),
            "policy/model.safetensors has changed since it was written",
        ),
        (lambda path: (path / "state.json").write_text("{half"), "state.json cannot be read"),
    ],
)
async def test_a_damaged_file_is_named(damage: object, message: str, checkpoint: Path, model: Path) -> None:
    damage(checkpoint)
    with pytest.raises(CheckpointDamaged, match=message) as caught:
        verify(checkpoint, str(model))
    assert str(checkpoint) in str(caught.value)
    with pytest.raises(CheckpointDamaged, match=message):
        export(checkpoint.parent.parent, model.parent / "out")
    assert not (model.parent / "out").exists()
    assert verify(list_checkpoints(checkpoint.parent)[0], str(model)).step == 2


@pytest.mark.parametrize(
    ("key", "value"), [("architectures", ["LlamaForCausalLM"]), ("vocab_size", 50_000), ("hidden_size", 64)]
)
async def test_a_checkpoint_of_another_model_is_refused(key: str, value: object, checkpoint: Path, model: Path) -> None:
    (model / "config.json").write_text(json.dumps({**SHAPE, key: value}))
    with pytest.raises(CheckpointDamaged, match=f"its {key} is .* this run's is"):
        verify(checkpoint, str(model))


async def test_a_partial_checkpoint_is_never_listed_and_a_failed_one_leaves_nothing(tmp_path: Path) -> None:
    class Failing(Saving):
        async def save(self, folder: Path) -> None:
            await super().save(folder)
            assert list_checkpoints(folder.parent) == []
            raise OSError(28, "No space left on device")

    rules = CheckpointRules(tmp_path / "checkpoints", every=1, keep=2, best=None)
    with pytest.raises(CheckpointFailed, match="No space left on device"):
        await save_checkpoint(rules, CheckpointState(1, "digest", 1), Failing())
    assert list(rules.folder.iterdir()) == []


async def test_a_rank_that_dies_while_saving_is_not_a_matter_of_the_disk(tmp_path: Path) -> None:
    class Dying(Saving):
        async def save(self, folder: Path) -> None:
            raise ComponentDied("learner rank 1", "killed")

    rules = CheckpointRules(tmp_path / "checkpoints", every=1, keep=2, best=None)
    with pytest.raises(ComponentDied, match="learner rank 1 died"):
        await save_checkpoint(rules, CheckpointState(1, "digest", 1), Dying())
    assert list(rules.folder.iterdir()) == []


async def test_a_step_saved_twice_is_the_newer(checkpoint: Path) -> None:
    rules = CheckpointRules(checkpoint.parent, every=1, keep=2, best=None)
    await save_checkpoint(rules, CheckpointState(3, "other", 1), Saving())
    assert read_state(checkpoint).digest == "other"


async def test_export_of_a_step_that_was_not_kept(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="has no checkpoint of step 1; it has those of 2, 3"):
        export(checkpoint.parent.parent, tmp_path / "out", step=1)
    assert export(checkpoint.parent.parent, tmp_path / "out", step=2) == 2
    assert (tmp_path / "out" / "README.md").read_text().startswith("---\nlibrary_name: transformers")


async def test_all_of_a_checkpoint_is_on_disk_before_its_name_and_that_before_anything_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rules = CheckpointRules(tmp_path / "checkpoints", every=1, keep=1, best=None)
    await save_checkpoint(rules, CheckpointState(1, "one", 1), Saving())
    seen: list[str] = []
    real_fsync, real_rename = os.fsync, os.rename

    def fsync(descriptor: int) -> None:
        seen.append(f"sync {Path(os.readlink(f'/proc/self/fd/{descriptor}')).relative_to(rules.folder)}")
        real_fsync(descriptor)

    def rename(source: Path, target: Path) -> None:
        seen.append(f"name {Path(target).relative_to(rules.folder)}")
        real_rename(source, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "rename", rename)
    await save_checkpoint(rules, CheckpointState(2, "two", 1), Saving())
    at = seen.index("name step_000002")
    files = [
        "policy/config.json",
        "policy/model.safetensors",
        "shards/rank_0.pt",
        "state.json",
        "policy",
        "shards",
        ".",
    ]
    assert {f"sync {Path('.partial-step_000002', name)}" for name in files} <= set(seen[:at])
    assert seen[at + 1 :] == ["sync .", "name .partial-removed-step_000001"]


async def test_a_start_removes_what_killed_drivers_left_and_puts_back_what_was_being_replaced(checkpoint: Path) -> None:
    root = checkpoint.parent
    for left in (".partial-step_000009", ".partial-removed-step_000001", ".partial-universal-step_000003"):
        (root / left).mkdir()
        (root / left / "half").write_text("half")
    checkpoint.rename(root / f".partial-replaced-{checkpoint.name}")
    tidy(root)
    assert sorted(path.name for path in root.iterdir()) == ["step_000002", "step_000003"]
    assert read_state(checkpoint).digest == "digest-3"
    tidy(root / "not there")


async def test_an_older_checkpoint_that_cannot_be_read_does_not_end_the_run(tmp_path: Path) -> None:
    rules = CheckpointRules(tmp_path / "checkpoints", every=1, keep=1, best="reward")
    first = await save_checkpoint(rules, CheckpointState(1, "one", 1, score=1.0), Saving())
    (first / "state.json").write_text("")
    await save_checkpoint(rules, CheckpointState(2, "two", 1, score=0.5), Saving())
    assert [step_of(path) for path in list_checkpoints(rules.folder)] == [2]


async def test_a_learner_that_has_no_room_is_told_of_the_disk(tmp_path: Path) -> None:
    class Full(Saving):
        async def save(self, folder: Path) -> None:
            raise ComponentFailed("the learner", "save", "RuntimeError: file write failed")

    rules = CheckpointRules(tmp_path / "checkpoints", every=1, keep=1, best=None)
    with pytest.raises(CheckpointFailed, match=r"file write failed \(.* are free there\)"):
        await save_checkpoint(rules, CheckpointState(1, "one", 1), Full())
