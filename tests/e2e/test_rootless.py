"""docker/'s compose files on a real Docker engine of a user who is not root, with stand-ins for Ray."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.docker_engine import USER, Docker, rootless_docker

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(600)]
ROOT = Path(__file__).parents[2]
PINNED_BYTES = 8 * 2**20
WORKERS = ("learner", "rollout-0", "rollout-1", "verifier")
STAND_IN = 'entrypoint: [sh, -c, "exec sleep 600"], healthcheck: {disable: true}'


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    made = Path(tempfile.mkdtemp(prefix="docker-", dir="/tmp"))  # short: Docker's sockets lie in it
    yield made
    shutil.rmtree(made, ignore_errors=True)


@pytest.fixture(scope="module")
def engine(folder: Path) -> Iterator[Docker]:
    with rootless_docker(folder, PINNED_BYTES) as found:
        if isinstance(found, str):
            pytest.skip(found)
        yield found


@pytest.fixture(scope="module")
def token(folder: Path) -> Path:
    """A token as its user makes one: of mode 600, and the user's own."""
    path = folder / "token" / "ray.token"
    path.parent.mkdir()
    path.touch(0o600)
    path.write_text("0" * 64)
    for owned in (path, path.parent):
        os.chown(owned, USER, USER)
    return path


def compose(folder: Path, token: Path, **settings: str) -> list[str]:
    """What goes before a command to compose's cluster; there are no GPUs for it here."""
    own = folder / "own.yaml"
    lines = [f"  head: {{{STAND_IN}}}"]
    lines += [f"  {name}: {{{STAND_IN}, depends_on: !reset null, deploy: !reset null}}" for name in WORKERS]
    own.write_text("\n".join(["services:", *lines]) + "\n")
    written = {"LPO_RAY_IMAGE": "busybox", "RAY_TOKEN_FILE": str(token), **settings}
    environment = folder / "compose.env"
    environment.write_text("".join(f"{name}={value}\n" for name, value in written.items()))
    files = [ROOT / "docker" / "compose.yaml", ROOT / "docker" / "compose.gpu.yaml", own]
    return ["compose", f"--env-file={environment}", *(f"--file={file}" for file in files)]


def test_pinned_memory_without_limit_is_refused_as_the_page_says(engine: Docker, folder: Path, token: Path) -> None:
    command = compose(folder, token)
    started = engine(*command, "up", "--detach", timeout=120)
    engine.done(*command, "down", "--volumes", timeout=120)
    assert started.returncode != 0
    assert "error setting rlimit type 8: operation not permitted" in started.stdout


def test_with_the_daemons_own_limit_and_a_token_handed_over_each_container_runs(
    engine: Docker, folder: Path, token: Path
) -> None:
    limits = engine.machine.run("sh", "-c", 'grep "locked memory" /proc/$(pgrep -u user -x dockerd)/limits').stdout
    (limit, _) = re.findall(r"\d+", limits)  # soft and hard, as compose.gpu.yaml has it looked up
    command = compose(folder, token, LPO_RAY_MEMLOCK=limit)
    try:
        engine.done(*command, "up", "--detach", timeout=120)

        def inside(service: str) -> str:
            asked = "ulimit -l; ulimit -Hl; cat /run/secrets/ray_token"
            return engine(*command, "exec", "--no-TTY", service, "sh", "-c", asked).stdout

        assert "Permission denied" in inside("head")  # the user is the container's root, and not its user 1000
        handing = ["--rm", "--user=0", "--entrypoint=chown", f"--volume={token.parent}:/token"]
        engine.done("run", *handing, "busybox", "1000", "/token/ray.token")
        pinned = str(PINNED_BYTES // 1024)
        assert inside("learner").split() == [pinned, pinned, "0" * 64]
        assert inside("head").endswith("0" * 64)
    finally:
        engine(*command, "down", "--volumes", timeout=120)
