"""What each rank puts on disk of a checkpoint: its own files, where they were written."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from actors.learner.worker import sync_own_files

FILES = (
    "shards/rank_00000.safetensors",
    "shards/rank_00001.safetensors",
    "shards/rank_00011.safetensors",
    "policy/config.json",
    "policy/model.safetensors",
)


@pytest.mark.parametrize(("rank", "others"), [(0, {FILES[1], FILES[2]}), (1, {FILES[0], FILES[2]})])
def test_a_rank_syncs_all_but_what_names_another_rank(
    rank: int, others: set[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in FILES:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    synced: list[str] = []
    monkeypatch.setattr(
        os, "fsync", lambda at: synced.append(str(Path(os.readlink(f"/proc/self/fd/{at}")).relative_to(tmp_path)))
    )
    sync_own_files(tmp_path, rank)
    assert set(synced) == {*FILES, "shards", "policy", "."} - others
