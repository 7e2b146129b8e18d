from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from rich.console import Console

from lpo_ray.errors import ConfigError
from lpo_ray.records import WeightsVersion, WorkerStatus
from lpo_ray.telemetry.status import FILE, StatusFile, read_status, render_status

SERVING = WorkerStatus("rollout worker 0", "serving", WeightsVersion(3, "abcdef"), 0, "")
OUT = WorkerStatus("rollout worker 1", "out", None, 1, "it died: exit code 137\nits stack")


def shown(folder: Path) -> str:
    console = Console(width=160, file=(folder / "out").open("w+"))
    console.print(render_status(read_status(folder)))
    console.file.seek(0)
    return console.file.read()


def test_it_says_who_serves_what(tmp_path: Path) -> None:
    status = StatusFile(tmp_path, "demo", 10)
    status.step, status.version = 3, "3:abcdef"
    status.update_workers([SERVING, OUT])
    text = shown(tmp_path)
    assert "demo: running, step 3/10, weights 3:abcdef" in text
    rows = [line for line in text.splitlines() if "rollout worker" in line]
    assert "serving" in rows[0]
    assert "3:abcdef" in rows[0]
    assert "it died: exit code 137" in rows[1]
    assert "its stack" not in text
    status.ended = True
    status.write()
    assert "demo: ended" in shown(tmp_path)


def test_since_is_kept_while_nothing_changes(tmp_path: Path) -> None:
    status = StatusFile(tmp_path, "demo", 10)
    status.update_workers([SERVING])
    status.workers["rollout worker 0"]["since"] = 5.0
    status.update_workers([SERVING])
    assert status.workers["rollout worker 0"]["since"] == 5.0
    status.update_workers([OUT, WorkerStatus("rollout worker 0", "out", None, 0, "")])
    assert status.workers["rollout worker 0"]["since"] != 5.0


def test_a_run_that_was_killed_is_not_called_running(tmp_path: Path) -> None:
    status = StatusFile(tmp_path, "demo", 10)
    status.write()
    content = json.loads((tmp_path / FILE).read_text())
    assert content["pid"] == os.getpid()
    (tmp_path / FILE).write_text(json.dumps({**content, "pid": 2**22 - 1}))
    assert "gone without an end" in shown(tmp_path)


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="expected the folder of a run"):
        read_status(tmp_path)
