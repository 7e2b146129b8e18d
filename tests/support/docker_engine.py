"""A real Docker engine with compose and buildx, of the distribution's packages, in a machine of its own."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from subprocess import CompletedProcess

from tests.support import distribution, namespaces
from tests.support.namespaces import Inside, wait_until

RELEASE = "trixie"
"""the first with compose 2; what it has runs on the release before, but for these"""
NEWER = ("docker.io", "docker-cli", "docker-compose", "docker-buildx", "containerd")
OWN = ("runc", "tini", "iptables", "libip4tc2", "libip6tc2", "libxtables12", "libnfnetlink0",
       "libnetfilter-conntrack3", "libnftnl11")  # fmt: skip


@dataclass(frozen=True, slots=True)
class Docker:
    """The engine. Its containers' network is bridges of this machine, its images and volumes are in a folder."""

    machine: Inside

    def __call__(self, *arguments: str | Path, timeout: float = 60, cwd: Path | None = None) -> CompletedProcess[str]:
        return self.machine.run("docker", *arguments, timeout=timeout, cwd=cwd)

    def done(self, *arguments: str | Path, timeout: float = 60, cwd: Path | None = None) -> str:
        """What a command that must succeed says."""
        finished = self(*arguments, timeout=timeout, cwd=cwd)
        assert finished.returncode == 0, f"docker {' '.join(map(str, arguments))}\n{finished.stdout[-4000:]}"
        return finished.stdout


@contextlib.contextmanager
def docker(folder: Path) -> Iterator[Docker | str]:
    """The engine until the end of the context, with everything it holds; the reason when it cannot be had. ``folder``
    has a short path: Unix sockets lie in it.
    """
    newer = namespaces.missing() or distribution.unpacked(NEWER, folder / "newer", RELEASE)
    own = newer if isinstance(newer, str) else distribution.unpacked(OWN, folder / "own")
    if isinstance(newer, str) or isinstance(own, str):
        yield str(own)
        return
    for name, program in {"docker-init": "usr/bin/tini", "iptables": "usr/sbin/xtables-legacy-multi"}.items():
        (own / "usr" / "sbin" / name).unlink(missing_ok=True)
        (own / "usr" / "sbin" / name).symlink_to(own / program)
    bins = [root / "usr" / place for root in (newer, own) for place in ("bin", "sbin")]
    libraries = next(own.glob("usr/lib/*/libxtables.so*")).parent
    plugins = folder / "config" / "cli-plugins"
    shutil.copytree(newer / "usr" / "libexec" / "docker" / "cli-plugins", plugins)
    environment = {
        **{key: value for key, value in os.environ.items() if not key.startswith(("DOCKER_", "COMPOSE_"))},
        "PATH": os.pathsep.join([*map(str, bins), os.environ["PATH"]]), "LD_LIBRARY_PATH": str(libraries),
        "XTABLES_LIBDIR": str(libraries / "xtables"), "DOCKER_HOST": f"unix://{folder}/docker.sock",
        "DOCKER_CONFIG": str(folder / "config"),
    }  # fmt: skip
    with namespaces.inside(environment, {}) as machine:
        # Nothing of this machine's firewall, forwarding or default network is touched.
        process = machine.start(
            folder / "dockerd.log", "dockerd", f"--host=unix://{folder}/docker.sock", f"--data-root={folder}/data",
            f"--exec-root={folder}/exec", f"--pidfile={folder}/pid", "--bridge=none", "--iptables=false",
            "--ip6tables=false", "--ip-forward=false", "--ip-masq=false",
        )  # fmt: skip
        engine = Docker(machine)

        def up() -> bool:
            assert process.poll() is None, (folder / "dockerd.log").read_text()[-3000:]
            return engine("version").returncode == 0

        wait_until("the Docker engine", up, 60)
        try:
            yield engine
        finally:
            for container in engine("ps", "--all", "--quiet").stdout.split():
                engine("rm", "--force", container)
            engine("network", "prune", "--force")
