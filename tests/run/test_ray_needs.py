"""What Ray needs of the process that starts it: by injected environments, and by Ray's own rules."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import typing_extensions

from lpo_ray.common.home import default_cache_dir, home
from lpo_ray.common.redaction import redact
from lpo_ray.errors import ConfigError
from lpo_ray.run import ray_needs
from lpo_ray.run.ray_needs import LONGEST_SOCKET, SOCKET_BYTES, path_of_python, temp_dir, temporary_folder, token_file
from lpo_ray.tasks.base_policy import Recipe, cached_base_policy

ROOT = Path(__file__).parents[2]
PACKAGES = Path(typing_extensions.__file__).parent
FILE = "/etc/passwd"
"""in which no folder can be made, by root neither"""
NOBODY = 54321
"""a user that the system does not know"""
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user, which root may")


@pytest.mark.parametrize("prefix", ["/a b/.venv", "/a\tb/.venv", "/a\u00a0b/.venv"])
def test_white_space_in_the_path_of_python(prefix: str) -> None:
    need = path_of_python(prefix)
    assert (need.met, need.found) == (False, repr(prefix))
    assert path_of_python("/opt/lpo-ray/.venv").met


def test_the_temporary_folder_is_rays(monkeypatch: pytest.MonkeyPatch) -> None:
    from ray._common.utils import get_default_system_temp_dir

    for environment in ({}, {"TMPDIR": "/a"}, {"TMPDIR": "/a", "RAY_TMPDIR": "/b"}):
        for name in ("TMPDIR", "RAY_TMPDIR"):
            monkeypatch.delenv(name, raising=False)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        assert str(temp_dir(environment)) == get_default_system_temp_dir()


def test_the_longest_path_that_fits_fits_rays_own_rule_too(tmp_path: Path) -> None:
    from ray._private.utils import validate_socket_filepath

    room = SOCKET_BYTES - len(LONGEST_SOCKET)
    longest = "/tmp/" + "x" * (room - len("/tmp/"))
    assert temporary_folder({"TMPDIR": longest}).met
    validate_socket_filepath(longest + LONGEST_SOCKET)
    need = temporary_folder({"TMPDIR": longest + "x"})
    assert not need.met
    assert need.found == f"{longest}x (TMPDIR, {room + 1} bytes)"
    assert "RAY_TMPDIR" in need.advice
    with pytest.raises(OSError, match="cannot exceed"):
        validate_socket_filepath(longest + "x" + LONGEST_SOCKET)
    assert not temporary_folder({"RAY_TMPDIR": "/tmp/" + "é" * 30}).met  # bytes, not characters
    assert not temporary_folder({"RAY_TMPDIR": FILE}).met


@pytest.mark.parametrize(
    ("environment", "met", "found"),
    [
        ({"RAY_AUTH_MODE": "disabled", "HOME": FILE}, True, "not asked for"),
        ({"RAY_AUTH_TOKEN": "x", "HOME": FILE}, True, "in RAY_AUTH_TOKEN"),
        ({"RAY_AUTH_TOKEN_PATH": "/etc/passwd", "HOME": FILE}, True, "RAY_AUTH_TOKEN_PATH=/etc/passwd"),
        ({"RAY_AUTH_TOKEN_PATH": "/absent"}, False, "RAY_AUTH_TOKEN_PATH=/absent, which cannot be read"),
        ({"HOME": FILE}, False, f"none yet; {FILE}/.ray/auth_token cannot be written"),
    ],
)
def test_a_token(environment: dict[str, str], met: bool, found: str) -> None:
    need = token_file(environment)
    assert need.met is met
    assert need.found.startswith(found)


def test_a_token_that_is_there_or_can_be_made(tmp_path: Path) -> None:
    assert token_file({"HOME": str(tmp_path)}).met
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("x")
    assert token_file({"HOME": str(tmp_path)}).found == f"{tmp_path}/.ray/auth_token"


def as_nobody(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    given = [f"{name}={value}" for name, value in environment.items()]
    return subprocess.run(
        ["/usr/bin/env", "-i", f"PYTHONPATH={ROOT}:{PACKAGES}", *given, "/usr/bin/python3", "-c", code],
        user=NOBODY, group=NOBODY, extra_groups=[], capture_output=True, text=True, cwd="/", check=False,
    )  # fmt: skip


@as_root
@pytest.mark.skipif(not os.access("/usr/bin/python3", os.X_OK), reason="the system has no Python that all may run")
def test_a_user_without_a_home_is_told_what_to_set() -> None:
    code = (
        "import lpo_ray.run.ray_needs as n, lpo_ray.common.home as h, lpo_ray.common.redaction as r\n"
        "print(h.home(), h.default_cache_dir(), r.redact('text'))\n"
        "n.check_needs()"
    )
    if as_nobody("import lpo_ray.errors").returncode:
        pytest.skip("this tree is not for everybody to read, or the system's Python is another version")
    nowhere = as_nobody(code)
    assert nowhere.stdout == "/ /.cache/lpo-ray text\n", nowhere.stderr
    last = nowhere.stderr.strip().splitlines()[-1]
    assert "Ray's token is none yet; /.ray/auth_token cannot be written; expected a token, or a home folder in" in last
    assert f"user {NOBODY} may make one: set HOME to a folder of this user's, or RAY_AUTH_TOKEN_PATH" in last
    assert as_nobody(code, HOME="/tmp").returncode == 0
    assert as_nobody(code, RAY_AUTH_TOKEN="x" * 20).returncode == 0


def test_a_home_is_never_an_exception(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("Could not determine home directory")))
    assert home({}) == Path("/")
    assert home({"HOME": "/x"}) == Path("/x")
    assert default_cache_dir({"LPO_RAY_CACHE": "/c"}) == Path("/c")
    assert default_cache_dir({}) == Path("/.cache/lpo-ray")
    assert redact("a secret-of-mine", {"MY_TOKEN": "secret-of-mine"}) == "a <MY_TOKEN>"


def test_the_base_policys_cache_that_cannot_be_written_and_one_that_need_not_be(tiny_policy: Path) -> None:
    with pytest.raises(ConfigError, match=r"cache /etc/passwd/x cannot be written by user .*: set LPO_RAY_CACHE"):
        cached_base_policy(Path(FILE) / "x", Recipe(seed=123))
    assert cached_base_policy(tiny_policy.parent, Recipe(steps=2, batch_size=8)) == tiny_policy


def test_a_run_is_refused_before_anything_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    from actors.cluster import check
    from lpo_ray.config import load_config

    monkeypatch.setattr(sys, "prefix", "/a b/.venv")
    monkeypatch.setattr(ray_needs.needs, "__defaults__", (os.environ, sys.prefix))
    config = load_config(ROOT / "configs" / "quickstart.yaml", ())
    with pytest.raises(ConfigError, match=r"Ray cannot start here: path of Python is '/a b/.venv'; expected a path"):
        check(config)
    check(load_config(ROOT / "configs" / "quickstart.yaml", ("cluster.address=auto",)))
