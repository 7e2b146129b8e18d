"""The sandbox itself: what a program gets, what it does not, and what is left of it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from lpo_ray.verifiers.sandbox import kinds, process
from lpo_ray.verifiers.sandbox.limits import Limits
from lpo_ray.verifiers.sandbox.memory import limits_memory
from lpo_ray.verifiers.sandbox.process import Program
from lpo_ray.verifiers.sandbox.program import ProgramResult, missing, run_program, trouble_with, working_kind
from lpo_ray.verifiers.sandbox.seccomp import seccomp_filter
from tests.support.hostile_programs import HOSTILE, MARKER, planted

SECRET = "a-secret-of-the-trainer-0b51"
SHORT = Limits(seconds=2.0)
NAME = f"{process.NAME}-{os.getpid()}"
"""of the sandboxes of these tests: others run side by side"""


@pytest.fixture(autouse=True)
def own_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "NAME", NAME)


@pytest.fixture(params=[kinds.BUBBLEWRAP, kinds.RLIMIT])
def kind(request: pytest.FixtureRequest) -> str:
    if (trouble := trouble_with(request.param)) is not None:
        pytest.skip(f"{request.param} does not work here: {trouble}")
    return request.param


@dataclass(frozen=True)
class Aims:
    """What hostile programs are after."""

    folder: Path
    listener: socket.socket

    def of(self, source: str) -> Program:
        return Program(planted(source, str(self.folder), self.listener.getsockname()[1]))


@pytest.fixture
def aims(monkeypatch: pytest.MonkeyPatch) -> Iterator[Aims]:
    monkeypatch.setenv("TRAINER_TOKEN", SECRET)
    # not under pytest's own folder, which other users cannot enter anyway
    folder = Path("/var/tmp") / f"lpo-ray-aims-{os.getpid()}"
    folder.mkdir(mode=0o777)
    folder.chmod(0o777)
    (folder / "secret").write_text(SECRET)
    (folder / "secret").chmod(0o644)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        yield Aims(folder, listener)
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()


def run(source: str, limits: Limits, stdin: bytes = b"") -> ProgramResult:
    return run_program(Program(textwrap.dedent(source)), stdin, limits)


def sandboxed() -> list[str]:
    """Command lines of processes of any sandbox of these tests, but for zombies."""
    lines = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:  # it may end at any time
            line = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if f" {NAME} " in line or MARKER in line:
            lines.append(f"{folder.name}: {line[:60]} ... {line[-60:]}")
    return lines


def nothing_is_left(within: float = 2.0) -> None:
    deadline = time.monotonic() + within
    while left := sandboxed():
        assert time.monotonic() < deadline, left
        time.sleep(0.02)


def test_a_program_reads_and_prints(kind: str) -> None:
    outcome = run(
        "import sys; print(int(input()) + 1); print('e', file=sys.stderr); sys.exit(3)", Limits(kind), b"41\n"
    )
    assert outcome.trouble is None
    assert (outcome.exit_code, outcome.stdout, outcome.stderr) == (3, b"42\n", b"e\n")
    assert not outcome.timed_out
    nothing_is_left()


def test_large_input_and_output_pass(kind: str) -> None:
    outcome = run("import sys; print(len(sys.stdin.read())); print('x' * 200_000)", Limits(kind), b"y" * 3_000_000)
    assert outcome.stdout.split()[0] == b"3000000"
    assert len(outcome.stdout) == 200_009


def test_input_that_is_not_read_harms_nothing(kind: str) -> None:
    assert run("print(1)", Limits(kind), b"y" * 3_000_000).stdout == b"1\n"


def test_the_standard_library_and_installed_packages_are_there(kind: str) -> None:
    source = "import bisect, decimal, heapq, json, re, statistics, typing; import numpy; print(numpy.arange(3).sum())"
    outcome = run(source, Limits(kind, memory_mib=1024))
    assert outcome.stdout == b"3\n", outcome


def test_a_signal_is_seen_as_shells_see_it(kind: str) -> None:
    assert run("import ctypes; ctypes.string_at(0)", Limits(kind)).exit_code == 128 + 11


def test_a_program_is_killed_at_its_time(kind: str) -> None:
    outcome = run("import time; print(1, flush=True); time.sleep(100)", Limits(kind, seconds=0.7))
    assert outcome.timed_out
    assert outcome.stdout == b"1\n"
    assert 0.6 < outcome.seconds < 10
    nothing_is_left()


def test_output_is_limited(kind: str) -> None:
    outcome = run("while True: print('x' * 10_000)", Limits(kind, output_kib=100))
    assert outcome.over_output
    assert not outcome.timed_out
    assert len(outcome.stdout) == 100 * 1024


def test_memory_is_limited(kind: str) -> None:
    outcome = run("x = bytearray(400 * 2**20)", Limits(kind, memory_mib=256))
    assert outcome.exit_code == 1
    assert b"MemoryError" in outcome.stderr


def test_memory_of_all_processes_together_is_limited(kind: str) -> None:
    """Eight of them with 64 MiB each, where 200 are allowed: the kernel ends some, and the machine has lost nothing."""
    if not limits_memory():
        pytest.skip("this process may make no control groups")
    source = """
        import os, time
        children = []
        for _ in range(8):
            child = os.fork()
            if child == 0:
                hoard = bytearray(64 * 2**20)
                time.sleep(1)
                os._exit(0)
            children.append(child)
        print(sum(os.waitpid(child, 0)[1] == 9 for child in children))
    """
    outcome = run(source, Limits(kind, total_memory_mib=200))
    assert outcome.exit_code == 137 or int(outcome.stdout) >= 4, outcome
    assert run(source, Limits(kind, total_memory_mib=1024)).stdout == b"0\n"
    assert not list(Path("/sys/fs/cgroup").glob(f"**/lpo-ray-sandbox-{os.getpid()}-*"))


@pytest.mark.parametrize(
    "thing", ["os.fork() or time.sleep(100)", "threading.Thread(target=time.sleep, args=(9,)).start()"]
)
def test_processes_and_threads_are_limited(kind: str, thing: str) -> None:
    if any("user" in lack for lack in missing(kind)):
        pytest.skip("the kernel counts all processes of a user, and this one has others")
    source = f"""
        import os, threading, time
        count = 1
        try:
            while count < 200:
                {thing}
                count += 1
        except (OSError, RuntimeError):
            pass
        print(count, flush=True)
        os._exit(0)
    """
    outcome = run(source, Limits(kind, processes=20))
    assert int(outcome.stdout) in (19, 20)  # with the process that looks after it, where that is the same user's
    nothing_is_left()


def test_two_at_once_do_not_count_as_one(kind: str) -> None:
    """The kernel's count of processes is of a user: each sandbox must have its own."""
    if any("user" in lack for lack in missing(kind)):
        pytest.skip("the kernel counts all processes of a user, and this one has others")
    read, write = os.pipe()
    source = """
        import os, time
        for _ in range(14):
            if os.fork() == 0:
                time.sleep(100)
        {}
        print("done", flush=True)
        os._exit(0)
    """
    inner = f"""
        from lpo_ray.verifiers.sandbox import process
        from lpo_ray.verifiers.sandbox.program import run_program
        from lpo_ray.verifiers.sandbox.process import Program
        from lpo_ray.verifiers.sandbox.limits import Limits
        process.NAME = {NAME!r}
        run_program(Program({textwrap.dedent(source.format(f"os.write({write}, b'x'); time.sleep(100)"))!r}), b"",
                    Limits({kind!r}, 4.0, processes=20), [{write}])
    """
    other = subprocess.Popen([sys.executable, "-c", textwrap.dedent(inner)], pass_fds=[write])
    try:
        assert os.read(read, 1) == b"x"
        assert run(source.format(""), Limits(kind, processes=20)).stdout == b"done\n"
    finally:
        other.kill()
        other.wait()
        os.close(read)
        os.close(write)


def test_all_dies_with_the_process_that_started_it(kind: str) -> None:
    """As a verifier process does at its deadline: by SIGKILL, without a word."""
    read, write = os.pipe()
    source = f"import os, time; os.fork(); os.write({write}, b'x'); time.sleep(100)"
    inner = f"""
        from lpo_ray.verifiers.sandbox import process
        from lpo_ray.verifiers.sandbox.program import run_program
        from lpo_ray.verifiers.sandbox.process import Program
        from lpo_ray.verifiers.sandbox.limits import Limits
        process.NAME = {NAME!r}
        run_program(Program({source!r}), b"", Limits({kind!r}, 60.0), [{write}])
    """
    other = subprocess.Popen([sys.executable, "-c", textwrap.dedent(inner)], pass_fds=[write])
    os.close(write)
    try:
        assert os.read(read, 1) == b"x"
        assert sandboxed()
    finally:
        other.kill()
        other.wait()
    nothing_is_left()
    os.close(read)


def test_it_is_nobody_with_nothing(kind: str) -> None:
    outcome = run("import os; print(os.getuid() != 0, os.getgroups(), sorted(os.environ))", Limits(kind))
    assert outcome.stdout == b"True [] ['HOME', 'OPENBLAS_NUM_THREADS', 'PATH']\n", outcome


def test_bubblewrap_leaves_it_no_right_and_no_other_process() -> None:
    if (trouble := trouble_with(kinds.BUBBLEWRAP)) is not None:
        pytest.skip(trouble)
    status = run("print(open('/proc/self/status').read())", Limits(kinds.BUBBLEWRAP)).stdout.decode()
    values = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    assert int(values["CapEff"], 16) == int(values["CapPrm"], 16) == int(values["CapAmb"], 16) == 0
    assert values["NoNewPrivs"] == "1"
    assert "0" not in values["Uid"].split()
    if seccomp_filter() is not None:
        assert values["Seccomp"] == "2"
    seen = run("import os; print(*(p for p in os.listdir('/proc') if p.isdigit()))", Limits(kinds.BUBBLEWRAP)).stdout
    assert len(seen.split()) <= 2


def test_a_sandbox_that_does_not_start_is_no_fault_of_the_program(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kinds, "interpreter", lambda: "/usr/no-such-python")
    outcome = run("print(1)", Limits(kind))
    assert outcome.trouble is not None
    assert "/usr/no-such-python" in outcome.trouble


def test_time_that_does_not_suffice_to_start_is_trouble(kind: str) -> None:
    outcome = run("print(1)", Limits(kind, start_seconds=0.001))
    assert outcome.trouble is not None
    assert "0.001" in outcome.trouble
    nothing_is_left()


def test_a_program_cannot_claim_that_the_sandbox_failed(kind: str) -> None:
    outcome = run("import os; os.write(2, b'bwrap: execvp: no'); os._exit(1)", Limits(kind))
    assert outcome.trouble is None


def test_auto_says_once_what_it_lacks(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr("lpo_ray.verifiers.sandbox.program.trouble_with", lambda kind: "no bwrap")
    working_kind.cache_clear()
    try:
        assert working_kind("auto") == working_kind("auto") == kinds.RLIMIT
        assert len(caplog.messages) == 1
        assert "no file can be written" in caplog.text
    finally:
        working_kind.cache_clear()


def test_seccomp_filters_are_whole() -> None:
    for machine in ("x86_64", "aarch64"):
        program = seccomp_filter(machine)
        assert program is not None
        assert len(program) % 8 == 0
    assert seccomp_filter("riscv64") is None


@pytest.mark.parametrize(
    "name", ["network", "name lookup", "environment of the trainer", "files of the trainer", "memory of no process"]
)
def test_without_a_sandbox_hostile_programs_do_reach_something(name: str, aims: Aims) -> None:
    """Or the test below could not fail."""
    source = aims.of(HOSTILE[name]).source
    assert isinstance(source, str)
    source = source.replace(', socket.gethostbyname("example.com")', "")  # whether there is a network or not
    said = subprocess.run([sys.executable, "-c", source], capture_output=True).stdout
    assert b"BREACH" in said or SECRET.encode() in said


CLOSED = """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
for path in ("/proc/1/environ", "/proc/1/mem", "/proc/kcore", "/proc/1/root@FOLDER@/secret", "/etc/shadow"):
    try:
        print("BREACH:", path, open(path, "rb").read(64))
    except OSError:
        pass
# open_by_handle_at, which goes through no folder
print(libc.syscall(304 if os.uname().machine == "x86_64" else 265, 3, bytes(64), 0), ctypes.get_errno())
"""


@pytest.mark.skipif(os.getuid() != 0, reason="only root's programs get this right")
@pytest.mark.parametrize("name", ["closed files", "files of the trainer", "symlinks", "environment of the trainer"])
def test_the_right_to_read_closed_packages_opens_nothing_else(
    kind: str, name: str, aims: Aims, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kinds, "closed_to_others", lambda kind: True)
    (aims.folder / "secret").chmod(0o600)
    outcome = run_program(aims.of({**HOSTILE, "closed files": CLOSED}[name]), b"1\n", replace(SHORT, kind=kind))
    assert outcome.trouble is None
    said = outcome.stdout + outcome.stderr
    assert b"BREACH" not in said, said
    assert SECRET.encode() not in said
    if name == "closed files" and seccomp_filter() is not None:
        assert outcome.stdout.split() == [b"-1", b"1"], outcome  # EPERM


@pytest.mark.slow
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_programs_reach_nothing_and_leave_nothing(kind: str, name: str, aims: Aims) -> None:
    open_to_it = missing(kind)
    if name in ("network", "name lookup") and "network" in open_to_it:
        pytest.skip("this kind cannot take the network away here")
    if name in ("files of the trainer", "symlinks") and any(lack.startswith("files") for lack in open_to_it):
        pytest.skip("this kind cannot take files away here")
    if name in ("memory of no process", "vsock", "new namespaces") and any(
        "system calls" in lack for lack in open_to_it
    ):
        pytest.skip("this kind refuses no system calls here")
    outcome = run_program(aims.of(HOSTILE[name]), b"1\n", replace(SHORT, kind=kind))
    assert outcome.trouble is None
    said = outcome.stdout + outcome.stderr
    assert b"BREACH" not in outcome.stdout, said
    assert SECRET.encode() not in said
    assert len(said) <= SHORT.output_kib * 1024
    assert outcome.seconds < SHORT.seconds + 10
    assert sorted(path.name for path in aims.folder.iterdir()) == ["secret"]
    with pytest.raises(BlockingIOError):
        aims.listener.accept()
    nothing_is_left()
    assert run("print(1)", Limits(kind)).stdout == b"1\n"
