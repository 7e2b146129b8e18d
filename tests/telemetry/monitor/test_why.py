"""What ``lpo-ray why`` prints, from status files of runs in every state."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import pytest

from lpo_ray.errors import ConfigError
from lpo_ray.records import BusyWorker, Process
from lpo_ray.telemetry.monitor.process_state import _oom_kills, describe, this_process
from lpo_ray.telemetry.monitor.why import why_from_folder
from lpo_ray.telemetry.status import FILE, StatusFile

HERE = this_process()
GONE = 2**22 - 1


def looked(process: Process) -> str:
    return f"process {process.pid} is stopped, 5 MiB resident\n  a frame"


def waiting_for(process: Process | None, evidence: str = "") -> dict[str, object]:
    holder = BusyWorker("rollout worker 1", "12 groups, oldest train-00000012 attempt 0", time.time() - 45, process)
    stage = {"stage": "sample", "since": time.time() - 47, "busy": [asdict(holder)]}
    return {"stages": [stage], "progress_at": time.time() - 40, "evidence": evidence}


def run_folder(folder: Path, waiting: dict[str, object] | None, **changes: object) -> Path:
    status = StatusFile(folder, "demo", 10, step=3)
    status.waiting = waiting
    status.write()
    content = json.loads((folder / FILE).read_text())
    (folder / FILE).write_text(json.dumps({**content, **changes}))
    return folder


def test_a_process_of_this_host_is_looked_at_now(tmp_path: Path) -> None:
    assert why_from_folder(run_folder(tmp_path, waiting_for(HERE)), looked).splitlines() == [
        "demo: running, step 3/10, last progress 40 s ago",
        "waits for sample since 47 s: rollout worker 1",
        "  rollout worker 1, 12 groups, oldest train-00000012 attempt 0 since 45 s",
        f"    process {os.getpid()} is stopped, 5 MiB resident",
        "      a frame",
    ]


@pytest.mark.parametrize("host", ["127.0.0.1", socket.gethostname()])
def test_loopback_means_the_driver_s_host(host: str, tmp_path: Path) -> None:
    process = Process(os.getpid(), "node", host, ())
    assert "is stopped" in why_from_folder(run_folder(tmp_path, waiting_for(process)), looked)
    elsewhere = why_from_folder(run_folder(tmp_path, waiting_for(process), host="another-machine"), looked)
    assert "is stopped" not in elsewhere


def test_of_a_process_elsewhere_the_recorded_evidence_is_shown(tmp_path: Path) -> None:
    far = Process(7, "node", "192.0.2.1", ())
    lines = why_from_folder(run_folder(tmp_path, waiting_for(far, "its stack")), looked).splitlines()
    assert lines[-3:] == [
        "    process 7 on 192.0.2.1, not inspected from here", "recorded by the run when it stalled:", "its stack",
    ]  # fmt: skip
    nothing = why_from_folder(run_folder(tmp_path, waiting_for(far)), looked)
    assert nothing.endswith("nothing: that is done once nothing moved for telemetry.stall_seconds")


def test_a_driver_that_was_killed(tmp_path: Path) -> None:
    text = why_from_folder(run_folder(tmp_path, waiting_for(HERE, "its stack"), pid=GONE), looked)
    assert text.startswith("demo: gone without an end (killed?), step 3/10, last progress 40 s ago; this is what it wa")
    assert "is stopped" not in text
    assert text.endswith("its stack")


def test_a_worker_without_a_process(tmp_path: Path) -> None:
    text = why_from_folder(run_folder(tmp_path, waiting_for(None)), looked)
    assert text.endswith("  rollout worker 1, 12 groups, oldest train-00000012 attempt 0 since 45 s")


def test_no_stage_at_work_is_the_driver_s_own_work(tmp_path: Path) -> None:
    waiting = {"stages": [], "progress_at": time.time(), "evidence": ""}
    text = why_from_folder(run_folder(tmp_path, waiting), looked)
    assert f"no stage is at work; the driver is:\n  process {os.getpid()} is stopped" in text


def test_runs_that_wait_for_nothing_or_do_not_say(tmp_path: Path) -> None:
    assert why_from_folder(run_folder(tmp_path, None, ended=True)) == "demo: ended, step 3/10; it waits for nothing"
    assert "what it waits for is not on record" in why_from_folder(run_folder(tmp_path, None))
    content = json.loads((tmp_path / FILE).read_text())
    del content["waiting"]
    (tmp_path / FILE).write_text(json.dumps(content))
    assert "written by an older version" in why_from_folder(tmp_path)
    with pytest.raises(ConfigError, match="expected the folder of a run"):
        why_from_folder(tmp_path / "nothing")


def test_a_stopped_process_is_described_from_outside(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("first\n\nlast words\n")
    code = "import os, signal\ndef deep(): os.kill(os.getpid(), signal.SIGSTOP)\ndeep()"
    process = subprocess.Popen([sys.executable, "-c", code])
    try:
        os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)
        text = describe(Process(process.pid, "", "", (str(log),)))
        assert text.startswith(f"process {process.pid} is stopped, ")
        assert "deep" in text
        assert text.endswith("  log: first\n  log: last words")
    finally:
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        unreaped = describe(Process(process.pid, "", "", (), _oom_kills()))
        process.wait()
    assert unreaped == f"process {process.pid} is gone"
    assert describe(Process(process.pid, "", "", (), _oom_kills())) == f"process {process.pid} is gone"
    starved = describe(Process(process.pid, "", "", (), _oom_kills() - 2))
    assert starved.endswith("is gone; since it started, the kernel killed 2 for lack of memory here")
