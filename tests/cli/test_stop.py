"""``lpo-ray stop FOLDER`` ends the run's own driver and no other process, whoever has its pid by now."""

from __future__ import annotations

import dataclasses
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lpo_ray.cli.runs import stop_here_command
from lpo_ray.common.process_identity import ProcessIdentity, started_at
from lpo_ray.errors import ConfigError
from lpo_ray.telemetry.status import FILE, StatusFile, read_status, state_of


@pytest.fixture
def process() -> Iterator[subprocess.Popen[bytes]]:
    found = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    yield found
    found.kill()
    found.wait()


def write(folder: Path, driver: dict[str, object], **changes: object) -> None:
    StatusFile(folder, "demo", 10).write()
    content = json.loads((folder / FILE).read_text())
    (folder / FILE).write_text(json.dumps({**content, **driver, **changes}))


def identity(process: subprocess.Popen[bytes], **changes: object) -> dict[str, object]:
    own = ProcessIdentity.own()
    found = dataclasses.replace(own, pid=process.pid, started=started_at(process.pid) or 0)
    return {**found.to_json(), **changes}


def test_the_driver_is_asked_to_end(tmp_path: Path, process: subprocess.Popen[bytes]) -> None:
    write(tmp_path, identity(process))
    assert state_of(read_status(tmp_path)) == "running"
    stop_here_command(tmp_path)
    assert process.wait(10) == -signal.SIGTERM


@pytest.mark.parametrize(
    ("changes", "state"),
    [
        ({"started": 1}, "gone without an end"),
        ({"started": None}, "not known to run: an older version wrote that it was process"),
        ({"boot": "another"}, "which was booted since, when it last wrote"),
        ({"pid_namespace": "pid:[1]", "host": "container"}, "running on container when it last wrote"),
        ({"ended": True}, "ended"),
    ],
)
def test_nobody_else_is(
    changes: dict[str, object], state: str, tmp_path: Path, process: subprocess.Popen[bytes]
) -> None:
    write(tmp_path, identity(process), **changes)
    with pytest.raises(ConfigError, match=f"{state}.*expected a run that is live here"):
        stop_here_command(tmp_path)
    assert process.poll() is None


@pytest.mark.parametrize("content", ["", "{half", "[]", '{"run": "demo", "pid": 1}', "7"])
def test_a_status_that_cannot_be_read_is_no_traceback(content: str, tmp_path: Path) -> None:
    (tmp_path / FILE).write_text(content)
    with pytest.raises(ConfigError, match=r"status\.json (is damaged|has no)"):
        stop_here_command(tmp_path)
