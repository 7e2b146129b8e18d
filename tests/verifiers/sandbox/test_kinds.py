"""Installed packages that only root can read: programs see them, or it is the sandbox's trouble; never a 0."""

from __future__ import annotations

import json
import os
import subprocess
import venv
from pathlib import Path
from typing import Any

import pytest

from lpo_ray.verifiers.sandbox import kinds
from lpo_ray.verifiers.sandbox.program import trouble_with

ROOT = Path(__file__).parents[3]
AS_ROOT = pytest.mark.skipif(os.getuid() != 0, reason="only root's programs become another user")
WITHOUT_THE_RIGHT = "kinds.closed_to_others = lambda kind: False"
"""as where seccomp's numbers are not known, or root may not read what is another's"""
SCRIPT = """
import dataclasses, json, sys
from lpo_ray.verifiers.sandbox import kinds
from lpo_ray.verifiers.sandbox.limits import Limits
from lpo_ray.verifiers.sandbox.process import Program
from lpo_ray.verifiers.sandbox.program import run_program, trouble_with, working_kind
from lpo_ray.verifiers.unit_tests.verifier import unit_tests
CHANGE
limits = Limits(KIND, seconds=20.0, start_seconds=20.0)
source = '''
import subprocess, sys
try:
    status = open("/proc/self/status").read()
    rights = {int(line.split()[1], 16) for line in status.splitlines() if line[:6] in ("CapEff", "CapPrm", "CapAmb")}
except PermissionError:  # Landlock
    rights = ()
again = subprocess.run([sys.executable, "-c", "print(7)"], capture_output=True, text=True)
import alone, whole, part
print(alone.X + whole.X, again.stdout.strip(), *rights)
'''
outcome = run_program(Program(source), b"", limits)
answer = json.dumps({"inputs": ["2\\n"], "outputs": ["42\\n"]})
response = "```python\\nimport alone, whole\\nprint(int(input()) * (alone.X + whole.X))\\n```"
verdict = unit_tests(response, answer, {}, limits)
print(json.dumps({
    "code": outcome.exit_code, "stdout": outcome.stdout.decode(), "stderr": outcome.stderr.decode(),
    "run": outcome.trouble, "trouble": trouble_with(working_kind(KIND)),
    "reward": verdict.reward, "why": verdict.detail,
}))
"""


@pytest.fixture(params=[kinds.BUBBLEWRAP, kinds.RLIMIT])
def kind(request: pytest.FixtureRequest) -> str:
    if (trouble := trouble_with(request.param)) is not None:
        pytest.skip(f"{request.param} does not work here: {trouble}")
    return request.param


@pytest.fixture
def environment(tmp_path: Path) -> Path:
    """A virtual environment that has a module, a package, and a package without ``__init__``."""
    venv.create(tmp_path / "env", system_site_packages=True, symlinks=True, with_pip=False)
    packages = site_packages(tmp_path / "env")
    (packages / "alone.py").write_text("X = 10\n")
    for name in ("whole", "part"):
        (packages / name).mkdir()
        (packages / name / "inner.py").write_text("")
    (packages / "whole" / "__init__.py").write_text("X = 11\n")
    return tmp_path / "env"


def site_packages(environment: Path) -> Path:
    (found,) = environment.glob("lib/python3*/site-packages")
    return found


def close(*paths: Path) -> None:
    """Do as umask 077 would have done."""
    for path in paths:
        for each in (path, *path.rglob("*")):
            if not each.is_symlink():
                each.chmod(each.stat().st_mode & 0o700)


def asked(environment: Path, kind: str, change: str = "") -> dict[str, Any]:
    """What a program, and the verifier, make of the packages, with the environment's Python."""
    bwrap = os.path.dirname(kinds.bwrap() or "/usr/bin/bwrap")
    script = SCRIPT.replace("CHANGE", change).replace("KIND", repr(kind))
    given = {"PYTHONPATH": str(ROOT), "PATH": f"{os.environ['PATH']}{os.pathsep}{bwrap}"}
    finished = subprocess.run([environment / "bin" / "python", "-c", script], env=given, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    return json.loads(finished.stdout)


@pytest.mark.parametrize("what", ["nothing", "all", "site-packages", "a module", "a package"])
def test_a_program_sees_packages_that_only_their_owner_can_read(kind: str, environment: Path, what: str) -> None:
    packages = site_packages(environment)
    closed = {"all": environment, "site-packages": packages, "a module": packages / "alone.py",
              "a package": packages / "whole"}  # fmt: skip
    close(*[closed[what]] if what in closed else [])
    found = asked(environment, kind)
    assert (found["run"], found["trouble"], found["code"]) == (None, None, 0), found
    seen, again, *rights = found["stdout"].split()
    assert (seen, again) == ("21", "7")
    assert found["reward"] == 1.0, found["why"]
    if kind == kinds.BUBBLEWRAP:
        needed = os.getuid() == 0 and what != "nothing"
        assert rights == [str(1 << 2 if needed else 0)]  # to read and search, and no other


@AS_ROOT
@pytest.mark.parametrize("what", ["env", "site-packages", "alone.py", "__init__.py", "part"])
def test_packages_that_programs_cannot_read_are_the_sandboxs_trouble(kind: str, environment: Path, what: str) -> None:
    packages = site_packages(environment)
    path = next(path for path in (environment, packages, *packages.rglob("*")) if path.name == what)
    close(path)
    found = asked(environment, kind, WITHOUT_THE_RIGHT)
    assert found["reward"] is None, found
    closed = f"{path} has mode {'0600' if path.suffix else '0700'} and is user 0's; chmod -R o+rX {path}"
    if kind == kinds.RLIMIT:  # to which the folders above are closed too, such as pytest's
        closed = " and is user 0's; chmod "
    for said in (found["run"], found["trouble"], found["why"]):
        assert closed in said, found


def test_a_package_that_is_a_link_to_elsewhere_is_named(kind: str, environment: Path, tmp_path: Path) -> None:
    """As uv installs them with UV_LINK_MODE=symlink."""
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "alone.py").write_text("X = 10\n")
    (site_packages(environment) / "alone.py").unlink()
    (site_packages(environment) / "alone.py").symlink_to(tmp_path / "elsewhere" / "alone.py")
    found = asked(environment, kind)
    if found["trouble"] is None:  # without Landlock, it can be read
        assert found["reward"] == 1.0
        return
    assert found["reward"] is None
    assert f"alone.py: it is a link to {tmp_path / 'elsewhere' / 'alone.py'}" in found["trouble"]


def test_a_broken_link_among_packages_harms_nothing(kind: str, environment: Path) -> None:
    (site_packages(environment) / "gone.py").symlink_to("/nowhere/gone.py")
    assert asked(environment, kind)["reward"] == 1.0


def test_packages_of_the_base_are_seen_where_the_environment_lets_them_in(environment: Path) -> None:
    command = [environment / "bin" / "python", "-c",
               "from lpo_ray.verifiers.sandbox import kinds; print(*kinds.packages(), sep='\\n')"]  # fmt: skip
    found = subprocess.run(command, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True).stdout.split()
    assert found[0] == os.path.realpath(site_packages(environment))
    assert len(found) > 1
    text = (environment / "pyvenv.cfg").read_text()
    (environment / "pyvenv.cfg").write_text(text.replace("packages = true", "packages = false"))
    alone = subprocess.run(command, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True).stdout.split()
    assert alone == found[:1]
