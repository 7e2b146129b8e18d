"""A real Docker engine with compose and buildx, of the distribution's packages, in a machine of its own."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import subprocess
from collections.abc import Iterator, Sequence
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
ROOTLESS = ("rootlesskit", "slirp4netns", "uidmap", "libslirp0", "libglib2.0-0", "libsubid4", "busybox-static")
USER = 54321
"""the id of "user", whose rootless engine it is"""
NETWORK = "10.197.0.1"
OUTSIDE = ("--iptables=false", "--ip6tables=false")
"""nothing of this machine's firewall is touched"""


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
    environment = namespaces.missing() or _unpacked(folder, OWN)
    if isinstance(environment, str):
        yield environment
        return
    environment |= {"DOCKER_HOST": f"unix://{folder}/docker.sock"}
    daemon = (  # nothing of this machine's forwarding or default network is touched either
        "dockerd", f"--host=unix://{folder}/docker.sock", f"--data-root={folder}/data", f"--exec-root={folder}/exec",
        f"--pidfile={folder}/pid", "--bridge=none", *OUTSIDE, "--ip-forward=false", "--ip-masq=false",
    )  # fmt: skip
    with namespaces.inside(environment, {}) as machine, _started(machine, folder, *daemon) as engine:
        yield engine


@contextlib.contextmanager
def rootless_docker(folder: Path, pinned_bytes: int) -> Iterator[Docker | str]:
    """As ``docker``, of a user who is not root and may pin ``pinned_bytes`` of memory, on a network of its own; it has
    the image "busybox".
    """
    environment = namespaces.missing() or _unpacked(folder, (*OWN, *ROOTLESS))
    if isinstance(environment, str):
        yield environment
        return
    folder.chmod(0o711)
    for name in ("home", "run"):
        (folder / name).mkdir()
        os.chown(folder / name, USER, USER)
    (folder / "passwd").write_text(f"{Path('/etc/passwd').read_text()}user:x:{USER}:{USER}::{folder}/home:/bin/sh\n")
    os.mknod(folder / "tun", stat.S_IFCHR, os.makedev(10, 200))
    (folder / "tun").chmod(0o666)
    binds = {folder / "passwd": "/etc/passwd", folder / "tun": "/dev/net/tun"}
    for name in ("subuid", "subgid"):
        (folder / name).write_text("user:100000:65536\n")
        binds[folder / name] = f"/etc/{name}"
    environment |= {
        "HOME": f"{folder}/home", "USER": "user", "XDG_RUNTIME_DIR": f"{folder}/run",
        "DOCKER_HOST": f"unix://{folder}/run/docker.sock", "DOCKERD_ROOTLESS_ROOTLESSKIT_NET": "slirp4netns",
    }  # fmt: skip
    daemon = (
        "prlimit", f"--memlock={pinned_bytes}", "setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups",
        "dockerd-rootless.sh", *OUTSIDE,
    )  # fmt: skip
    with namespaces.inside(environment, binds, NETWORK) as machine, _started(machine, folder, *daemon) as engine:
        _import_busybox(engine, folder)
        yield engine


def _unpacked(folder: Path, own: Sequence[str]) -> dict[str, str] | str:
    """The environment in which the packages' programs run; the reason when one cannot be had."""
    newer = distribution.unpacked(NEWER, folder / "newer", RELEASE)
    of_here = newer if isinstance(newer, str) else distribution.unpacked(own, folder / "own")
    if isinstance(newer, str) or isinstance(of_here, str):
        return str(of_here)
    legacy = "usr/sbin/xtables-legacy-multi"
    for name, program in {"docker-init": "usr/bin/tini-static", "iptables": legacy, "ip6tables": legacy}.items():
        (of_here / "usr" / "sbin" / name).unlink(missing_ok=True)
        (of_here / "usr" / "sbin" / name).symlink_to(of_here / program)
    bins = [root / "usr" / place for root in (newer, of_here) for place in ("bin", "sbin")]
    bins.append(newer / "usr" / "share" / "docker.io" / "contrib")
    libraries = next(of_here.glob("usr/lib/*/libxtables.so*")).parent
    shutil.copytree(newer / "usr" / "libexec" / "docker" / "cli-plugins", folder / "config" / "cli-plugins")
    return {
        **{key: value for key, value in os.environ.items() if not key.startswith(("DOCKER_", "COMPOSE_"))},
        "PATH": os.pathsep.join([*map(str, bins), os.environ["PATH"]]), "LD_LIBRARY_PATH": str(libraries),
        "XTABLES_LIBDIR": str(libraries / "xtables"), "DOCKER_CONFIG": str(folder / "config"),
    }  # fmt: skip


@contextlib.contextmanager
def _started(machine: Inside, folder: Path, *daemon: str) -> Iterator[Docker]:
    """The engine once it answers; what it holds is removed in the end."""
    process = machine.start(folder / "dockerd.log", *daemon)
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


def _import_busybox(engine: Docker, folder: Path) -> None:
    """Make the image "busybox": a shell and little else, and a folder /runs of user 1000, as ours have one."""
    root = folder / "busybox"
    for name in ("bin", "runs"):
        (root / name).mkdir(parents=True)
    os.chown(root / "runs", 1000, 1000)
    shutil.copy(next((folder / "own" / "root").glob("**/bin/busybox")), root / "bin")
    for name in ("cat", "chown", "sh", "sleep"):
        (root / "bin" / name).symlink_to("busybox")
    subprocess.run(["tar", "-C", root, "-cf", folder / "busybox.tar", "."], check=True)
    engine.done("import", "--change=USER 1000", folder / "busybox.tar", "busybox")
