"""A process is more than its pid: whoever has the pid later is not taken for it, and is never sent its signal."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys

import pytest

from lpo_ray.common.process_identity import ProcessIdentity, started_at

OWN = ProcessIdentity.own()


def sleeper() -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])


def of(process: subprocess.Popen[bytes]) -> ProcessIdentity:
    return dataclasses.replace(OWN, pid=process.pid, started=started_at(process.pid) or 0)


def test_this_process_is_here_and_alive() -> None:
    assert OWN.pid == os.getpid()
    assert OWN.is_here
    assert OWN.is_alive
    assert str(OWN) == f"process {OWN.pid} on {OWN.host}"


def test_it_is_read_as_it_was_written() -> None:
    assert ProcessIdentity.from_json(OWN.to_json()) == OWN
    assert ProcessIdentity.from_json({"pid": 7, "host": "here"}) is None  # of an older version
    for damaged in (None, [], "7", {**OWN.to_json(), "pid": None}, {**OWN.to_json(), "started": "soon"}):
        assert ProcessIdentity.from_json(damaged) is None


def test_a_signal_reaches_its_process_and_no_other() -> None:
    process = sleeper()
    try:
        mine = of(process)
        for other in (
            dataclasses.replace(mine, started=mine.started + 1),  # the pid has been given to another process
            dataclasses.replace(mine, boot="another boot"),
            dataclasses.replace(mine, pid_namespace="pid:[1]"),  # the same pid, of another container
        ):
            assert not other.is_alive
            assert not other.send(signal.SIGTERM)
        assert process.poll() is None
        assert mine.send(signal.SIGTERM)
        assert process.wait(10) == -signal.SIGTERM
        assert not mine.is_alive
        assert not mine.send(signal.SIGTERM)
    finally:
        process.kill()
        process.wait()


def test_a_process_that_only_waits_for_its_parent_has_ended() -> None:
    process = sleeper()
    mine = of(process)
    os.kill(process.pid, signal.SIGKILL)
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert not mine.is_alive
    process.wait()


def test_a_process_of_another_user_is_not_ours_to_end() -> None:
    if os.getuid() == 0:
        pytest.skip("root may signal everybody")
    first = dataclasses.replace(OWN, pid=1, started=started_at(1) or 0)
    with pytest.raises(PermissionError):
        first.send(signal.SIGTERM)
