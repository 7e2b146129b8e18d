"""Files that are whole, and on disk, when a function returns; and a full disk that is named."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from lpo_ray.common import files
from lpo_ray.common.files import DiskFull


@pytest.fixture
def order(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """Names of what was synced, renamed and removed, in order."""
    seen: list[str] = []
    real_fsync, real_replace, real_rename = os.fsync, os.replace, os.rename

    def fsync(descriptor: int) -> None:
        seen.append(f"sync {Path(os.readlink(f'/proc/self/fd/{descriptor}')).relative_to(tmp_path)}")
        real_fsync(descriptor)

    def replace(source: Path, target: Path) -> None:
        seen.append(f"name {Path(target).relative_to(tmp_path)}")
        real_replace(source, target)

    def rename(source: Path, target: Path) -> None:
        seen.append(f"name {Path(target).relative_to(tmp_path)}")
        real_rename(source, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", replace)
    monkeypatch.setattr(os, "rename", rename)
    return seen


def test_content_is_on_disk_before_the_name_and_the_name_before_the_return(tmp_path: Path, order: list[str]) -> None:
    files.write_text(tmp_path / "a", "x")
    assert order == ["sync .partial-a", "name a", "sync ."]


def test_what_is_written_every_second_is_not_synced(tmp_path: Path, order: list[str]) -> None:
    files.write_json(tmp_path / "status.json", {}, durable=False)
    assert order == ["name status.json"]


def test_a_folder_is_published_with_all_that_is_in_it(tmp_path: Path, order: list[str]) -> None:
    partial = tmp_path / ".partial-c"
    files.make_folder(partial / "deep")
    assert order == ["sync .", "sync .partial-c"]
    order.clear()
    (partial / "deep" / "x").write_text("x")
    (partial / "y").write_text("y")
    files.publish_folder(partial, tmp_path / "c")
    assert order == [
        "sync .partial-c/deep/x", "sync .partial-c/deep", "sync .partial-c/y", "sync .partial-c", "name c", "sync .",
    ]  # fmt: skip


def test_what_is_removed_loses_its_name_first(tmp_path: Path, order: list[str]) -> None:
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "x").write_text("x")
    files.remove_folder(tmp_path / "c")
    assert order == ["name .partial-removed-c"]
    assert list(tmp_path.iterdir()) == []


def test_a_line_is_on_disk_when_it_was_added(tmp_path: Path, order: list[str]) -> None:
    files.append_text(tmp_path / "log", "a\n")
    files.append_text(tmp_path / "log", "b\n")
    assert (tmp_path / "log").read_text() == "a\nb\n"
    assert order == ["sync log", "sync .", "sync log"]


def test_a_write_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("old")
    with pytest.raises(ValueError, match="half"), files.replacing(tmp_path / "a") as partial:
        partial.write_text("ne")
        raise ValueError("half")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_named_once_with_its_room(number: int, tmp_path: Path) -> None:
    path = tmp_path / "not" / "there"
    with pytest.raises(DiskFull) as caught, files.explained(tmp_path), files.explained(path):
        raise OSError(number, os.strerror(number))
    assert caught.value.filename == str(path)
    assert " are free there)" in str(caught.value)
    with pytest.raises(PermissionError), files.explained(path):
        raise PermissionError(errno.EACCES, "no")


def test_a_file_system_that_cannot_sync_folders_is_used_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fsync(descriptor: int) -> None:
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(os, "fsync", fsync)
    files.sync(tmp_path)
    (tmp_path / "a").write_text("x")
    with pytest.raises(OSError, match="Invalid argument"):
        files.sync(tmp_path / "a")
