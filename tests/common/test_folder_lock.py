"""One holder of a folder, on whatever machine and file system; and a message that says who it is."""

from __future__ import annotations

import dataclasses
import errno
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from lpo_ray.common.folder_lock import FolderLock, Held, holder_of
from lpo_ray.common.process_identity import ProcessIdentity

OWN = ProcessIdentity.own()
ELSEWHERE = dataclasses.replace(OWN, pid=7, host="node-9", boot="another boot")
NEXT_DOOR = dataclasses.replace(OWN, pid=7, host="container", pid_namespace="pid:[1]")


def without_locks(descriptor: int, operation: int) -> None:
    raise OSError(errno.ENOSYS, "Function not implemented")


def of_this_host_only(descriptor: int, operation: int) -> None:
    """Seen from another machine, a lock that is not shared is always free."""


def lock(path: Path, me: ProcessIdentity = OWN, **changes: object) -> FolderLock:
    fast = {"beat_seconds": 0.02, "lease_seconds": 0.4, "settle_seconds": 0.1, **changes}
    return FolderLock(path / ".lock", me=me, **fast)


def test_the_second_is_told_who_has_it_and_since_when(tmp_path: Path) -> None:
    with lock(tmp_path), pytest.raises(Held) as caught, lock(tmp_path):
        pass
    assert str(caught.value).startswith(f"process {OWN.pid} on {OWN.host} has it since 20")
    assert "(0 min)" in str(caught.value)


def test_it_is_free_afterwards_and_after_an_error(tmp_path: Path) -> None:
    for _ in range(2):
        with pytest.raises(ValueError, match="of the work"), lock(tmp_path):
            raise ValueError("of the work")
        assert holder_of(tmp_path / ".lock") is None
    with lock(tmp_path) as held:
        held.check()
        holder = holder_of(tmp_path / ".lock")
        assert holder is not None
        assert holder.process == OWN


@pytest.mark.parametrize("flock", ["there is one", "there is none"])
def test_what_a_killed_process_held_is_free_at_once(flock: str, tmp_path: Path) -> None:
    code = (
        "import errno, sys, time; from pathlib import Path; from lpo_ray.common.folder_lock import FolderLock, fcntl\n"
        "def none(descriptor, operation): raise OSError(errno.ENOSYS, 'none')\n"
        f"flock = {'fcntl.flock' if flock == 'there is one' else 'none'}\n"
        "with FolderLock(Path(sys.argv[1], '.lock'), flock=flock, settle_seconds=0.1):\n"
        "    print('held', flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"held\n"
    ways = {} if flock == "there is one" else {"flock": without_locks}
    with pytest.raises(Held, match=f"process {process.pid} on "), lock(tmp_path, **ways):
        pass
    process.send_signal(signal.SIGKILL)
    process.wait()
    waits: list[str] = []
    with lock(tmp_path, note=waits.append, lease_seconds=60.0, **ways):
        assert waits == []


@pytest.mark.parametrize("flock", [without_locks, of_this_host_only])
def test_a_holder_on_another_machine_is_seen_by_its_beats(flock: Callable[..., None], tmp_path: Path) -> None:
    waits: list[str] = []
    with lock(tmp_path, ELSEWHERE, flock=flock):
        started = time.monotonic()
        with (
            pytest.raises(Held, match="process 7 on node-9 has it since"),
            lock(tmp_path, flock=flock, note=waits.append),
        ):
            pass
        assert time.monotonic() - started < 0.4
    assert "waiting 0.4 s to see whether it is alive" in waits[0]


@pytest.mark.parametrize("flock", [without_locks, of_this_host_only])
@pytest.mark.parametrize("me", [ELSEWHERE, NEXT_DOOR])
def test_what_another_machine_left_is_free_when_it_is_silent(
    me: ProcessIdentity, flock: Callable[..., None], tmp_path: Path
) -> None:
    left = lock(tmp_path, me, flock=flock, beat_seconds=3600.0)
    left.__enter__()  # and never gives it back, nor renews it
    with lock(tmp_path, flock=flock):
        with pytest.raises(Held, match=f"process {OWN.pid} on"):
            left.check()  # it was only suspended, and learns of it
        left.__exit__(None, None, None)  # what it gives back is not its own any more
        assert holder_of(tmp_path / ".lock") is not None


def test_of_many_that_ask_at_once_one_has_it_where_there_are_no_locks(tmp_path: Path) -> None:
    got: list[int] = []
    refused: list[int] = []
    barrier, done = threading.Barrier(6), threading.Event()

    def ask(number: int) -> None:
        me = dataclasses.replace(ELSEWHERE, pid=number)
        barrier.wait()
        try:
            with lock(tmp_path, me, flock=without_locks, settle_seconds=0.3):
                got.append(number)
                done.wait(10)
        except Held:
            refused.append(number)
            if len(refused) == 5:
                done.set()

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(got), len(refused)) == (1, 5)


def test_a_folder_that_was_removed_or_replaced_is_held_no_more(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    with lock(folder) as held:
        shutil.rmtree(folder)
        with pytest.raises(Held):
            held.check()
        folder.mkdir()
        with lock(folder) as other:
            with pytest.raises(Held, match=f"process {OWN.pid}"):
                held.check()
            other.check()


@pytest.mark.parametrize("record", [b"", b"{", b"\xff" * 2000, b'{"process": 7}', b"null"])
def test_a_record_that_cannot_be_read_holds_nothing(record: bytes, tmp_path: Path) -> None:
    (tmp_path / ".lock").write_bytes(record)
    assert holder_of(tmp_path / ".lock") is None
    with lock(tmp_path) as held:
        held.check()
        assert holder_of(tmp_path / ".lock") is not None


def test_an_error_of_the_file_system_is_no_lock_of_another(tmp_path: Path) -> None:
    def broken(descriptor: int, operation: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with pytest.raises(OSError, match="Input/output error"), lock(tmp_path, flock=broken):
        pass
