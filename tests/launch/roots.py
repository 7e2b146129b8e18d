"""A fresh Debian root that commands run in, and a Dockerfile's steps in such roots: what `docker build` does.

For root on Linux with mmdebstrap. Each command has mounts and processes of its own, which end with it. The network, and
what this machine says about package indexes and certificates, is the machine's.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tests.launch.dockerfile import Instruction, Stage

PACKAGES = "ca-certificates,python3,python3-dev,python3-venv"
"""what the image python:*-slim has beyond a minimal Debian"""
SETTINGS = re.compile(r"PIP_|SSL_CERT|.*CA_BUNDLE|.*_proxy$|.*_PROXY$")
APT = ("/etc/apt/apt.conf.d", "/etc/apt/auth.conf.d")
FILES = ("/etc/resolv.conf", *APT, "/etc/pip.conf", "/etc/xdg/pip")
DOCKER_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
ENTER = """
mount --make-rprivate /
mount -t proc proc "$ROOT/proc"
mount --rbind /sys "$ROOT/sys"
mount --rbind /dev "$ROOT/dev"
mount -t tmpfs -o size=4g,mode=1777 tmpfs "$ROOT/dev/shm"
while [ "$1" != -- ]; do mount --bind "$1" "$ROOT$2"; shift 2; done
shift
exec chroot --userspec="$OWNER" "$ROOT" "$@"
"""


def missing() -> str | None:
    """Why no root can be made here."""
    if os.geteuid() != 0:
        return "needs root, to mount and to change the root folder"
    if shutil.which("mmdebstrap") is None:
        return "needs mmdebstrap (apt-get install mmdebstrap)"
    tried = subprocess.run(
        ["unshare", "--mount", "--pid", "--fork", "mount", "--make-rprivate", "/"], capture_output=True, check=False
    )
    return f"this machine allows no mounts: {tried.stderr.decode().strip()}" if tried.returncode else None


def make_root(folder: Path, suite: str) -> str | None:
    """A Debian with Python in ``folder``; the reason when it cannot be had."""
    command = ["mmdebstrap", "--quiet", "--variant=apt", f"--include={PACKAGES}", suite, str(folder)]
    made = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False)
    return f"mmdebstrap: {made.stderr.strip()[-300:]}" if made.returncode else None


def _settings() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if SETTINGS.match(name)}


def _bound() -> Iterator[tuple[str, str]]:
    """This machine's settings, and every path that they name, as (here, inside)."""
    home = Path.home()
    pip = [sys.executable, "-m", "pip", "config", "list"]
    listed = subprocess.run(pip, capture_output=True, text=True, check=False).stdout
    named = re.findall(r"(?<![\w:/])(/[\w./-]+)", " ".join(_settings().values()) + " " + listed)
    for path in dict.fromkeys([*FILES, *named]):
        if Path(path).exists():
            yield path, path
    for path in (".config/pip", ".pip"):
        if (home / path).exists():
            yield str(home / path), f"/root/{path}"


def copy_settings(root: Path) -> None:
    """Give a root that others will run this machine's settings of package indexes and certificates for good."""
    for here, inside in _bound():
        target = root / inside.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        source = f"{here}/." if Path(here).is_dir() else here
        subprocess.run(["cp", "-rL", "--remove-destination", source, target], check=True)


@dataclass(slots=True)
class Root:
    """A root folder, and what the instructions so far have set."""

    folder: Path
    environment: dict[str, str] = field(default_factory=lambda: {"PATH": DOCKER_PATH, "HOME": "/root"})
    cwd: str = "/"
    user: str = "0"

    def run(
        self, command: list[str], *, timeout: float, binds: Mapping[str, str] | None = None, settings: bool = False
    ) -> subprocess.CompletedProcess[str]:
        """The command as the current user; ``binds`` and this machine's ``settings`` are there while it runs."""
        hosts = ("/etc/hosts", "/etc/hosts")  # Docker, too, gives a container one with the name it has
        bound = [hosts, *(_bound() if settings else []), *(binds or {}).items()]
        for here, inside in bound:
            self._mount_point(Path(here), self.inside(inside))
        environment = {**(_settings() if settings else {}), **self.environment}
        words = [word for pair in bound for word in pair]
        variables = [f"{name}={value}" for name, value in environment.items()]
        return subprocess.run(
            ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--", "sh", "-ec", ENTER, "sh", *words, "--",
             "env", "-i", f"--chdir={self.cwd}", *variables, *command],
            env={"ROOT": str(self.folder), "OWNER": f"{self.user}:{self.user}", "PATH": DOCKER_PATH},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=timeout, check=False,
        )  # fmt: skip

    def inside(self, path: str) -> Path:
        """Where the root's ``path`` is on this machine."""
        return self.folder / path.lstrip("/")

    @staticmethod
    def _mount_point(source: Path, target: Path) -> None:
        if source.is_dir():
            target.mkdir(parents=True, exist_ok=True)
        elif not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            target.unlink(missing_ok=True)  # a link that leads nowhere
            target.touch()


@dataclass(frozen=True, slots=True)
class Build:
    """Where a build takes its files from."""

    context: Path
    is_ignored: Callable[[str], bool]
    """by path inside the context: what .dockerignore says"""
    timeout: float
    """of one RUN, in seconds"""

    def carry_out(self, stage: Stage, root: Root, built: Mapping[str, Root]) -> None:
        """Every instruction of the stage. Raises AssertionError with the output of a RUN that fails."""
        for instruction in stage.instructions:
            match instruction.keyword:
                case "RUN":
                    self._run(instruction, root)
                case "WORKDIR":
                    root.cwd = instruction.text
                    root.inside(root.cwd).mkdir(parents=True, exist_ok=True)
                case "USER":
                    root.user = instruction.text
                case "ARG":
                    name, _, default = instruction.text.partition("=")
                    root.environment[name] = default.strip('"')
                case "ENV":
                    for pair in shlex.split(instruction.text):
                        name, _, value = pair.partition("=")
                        root.environment[name] = value.replace("$PATH", root.environment["PATH"])
                case "COPY":
                    self._copy(instruction, root, built)
                case "ENTRYPOINT" | "CMD":
                    pass
                case other:
                    raise AssertionError(f"{other} is not an instruction that this test knows")

    def _run(self, instruction: Instruction, root: Root) -> None:
        caches = [re.search(r"target=([^,]+)", flag) for flag in instruction.flags if "type=cache" in flag]
        folders = [folder for name in ("pip", "uv") if (folder := Path.home() / ".cache" / name).exists()]
        binds = {str(folder): f"{found[1]}/{folder.name}" for found in caches if found for folder in folders}
        finished = root.run(["/bin/sh", "-c", instruction.text], timeout=self.timeout, binds=binds, settings=True)
        assert finished.returncode == 0, f"RUN {instruction.text}\n{finished.stdout[-3000:]}"

    def _copy(self, instruction: Instruction, root: Root, built: Mapping[str, Root]) -> None:
        source, target = instruction.text.split()
        if instruction.flags:
            (flag,) = instruction.flags
            earlier = built[flag.removeprefix("--from=")]
            root.inside(target).parent.mkdir(parents=True, exist_ok=True)
            earlier.inside(source).rename(root.inside(target))  # moved: the earlier stage is not looked at again
            return
        assert (source, target) == (".", ".")

        def ignore(folder: str, names: list[str]) -> set[str]:
            inside = Path(folder).relative_to(self.context)
            return {name for name in names if self.is_ignored(str(inside / name))}

        shutil.copytree(self.context, root.inside(root.cwd), ignore=ignore, dirs_exist_ok=True)
