"""Confinement as bubblewrap would do it, as far as the kernel lets a process do it to itself: namespaces, Landlock,
another user, no capabilities, seccomp. Runs before the program, in its process.
"""

from __future__ import annotations

import ctypes
import os
import signal
import struct
from collections.abc import Sequence

_NEW = {"network": 0x40000000, "processes": 0x20000000, "shared memory": 0x08000000}
_NEWUSER = 0x10000000
_PDEATHSIG, _KEEPCAPS, _SECCOMP, _NO_NEW_PRIVS, _AMBIENT, _AMBIENT_RAISE = 1, 8, 22, 38, 47, 2
_LANDLOCK = {"ruleset": 444, "rule": 445, "restrict": 446}
_CAPSET = {"x86_64": 126, "aarch64": 91}
_READ_SEARCH = 2
"""number of the capability to read files and enter folders whatever their mode"""
_READ = 0b1101  # execute, read a file, read a folder
_WRITE_FILE = 0b10

libc = ctypes.CDLL(None, use_errno=True)


def confine(parent: int, user: int | None, readable: Sequence[str], devices: Sequence[str], seccomp: bytes | None,
            search: bool) -> list[str]:  # fmt: skip
    """Confine this process, or a child of it, and return there which protections it lacks.

    ``parent``: dies with it. ``user``: to become, for root. ``readable``: folders and files to which reading is left.
    ``search``: Python or a package is where other users cannot read; keep the right to, within Landlock.
    """
    missing: list[str] = []
    libc.prctl(_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        os._exit(1)
    own = _unshare(missing, user)
    child = os.fork()
    if child:
        _monitor(child, parent)
    monitor = os.getppid()  # 0 in a namespace of its own
    libc.prctl(_NO_NEW_PRIVS, 1, 0, 0, 0)
    locked = _landlock(readable, devices)
    if not locked:
        missing.append("files: it can read what every user of this machine can, and see its processes")
    if search and not locked:
        raise PermissionError("only root can read Python or a package of its, and the kernel has no Landlock")
    if user is None and not own:
        missing.append("another user: it can do what this user can, within the other limits")
    become(user, search=search)
    libc.prctl(_PDEATHSIG, signal.SIGKILL)  # a change of user cleared it
    if os.getppid() != monitor:
        os._exit(1)
    if seccomp is None or not _filter(seccomp):
        missing.append("system calls: none is refused")
    elif "network" in missing:
        missing.remove("network")  # no socket can be made
    return missing


def _unshare(missing: list[str], user: int | None) -> bool:
    """Take as many namespaces as this process may have; tell whether a user namespace is among them."""
    uid, gid = os.getuid(), os.getgid()
    own = user is None and libc.unshare(_NEWUSER) == 0
    if own:
        for name, text in (("setgroups", "deny"), ("uid_map", f"65534 {uid} 1"), ("gid_map", f"65534 {gid} 1")):
            with open(f"/proc/self/{name}", "w") as file:
                file.write(text)
    missing += [name for name, flag in _NEW.items() if libc.unshare(flag) != 0]
    return own


def _monitor(child: int, parent: int) -> None:
    """End as the child does, and take the whole group along when the process that started this one is gone."""
    signal.signal(signal.SIGTERM, lambda *_: os.killpg(0, signal.SIGKILL))
    if os.getppid() != parent:
        os.killpg(0, signal.SIGKILL)
    os.closerange(0, 2**16)  # the program's pipes end with it
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    os._exit(code if code >= 0 else 128 - code)


def _landlock(readable: Sequence[str], devices: Sequence[str]) -> bool:
    """Restrict this process to these paths, and its signals and sockets, from Landlock 6 on, to its own processes."""
    version = libc.syscall(_LANDLOCK["ruleset"], None, 0, 1)
    if version < 1:
        return False
    handled = (1 << 13) - 1 | (1 << 13 if version >= 2 else 0) | (1 << 14 if version >= 3 else 0)
    rules = struct.pack("QQQ", handled, 0, 0b11 if version >= 6 else 0)
    size = 24 if version >= 6 else 8
    ruleset = libc.syscall(_LANDLOCK["ruleset"], rules, size, 0)
    if ruleset < 0:
        return False
    for path in (*readable, *devices):
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
        access = (0b100 | _WRITE_FILE) if path in devices else _READ if os.path.isdir(path) else 0b101
        done = libc.syscall(_LANDLOCK["rule"], ruleset, 1, struct.pack("=Qi", access, fd), 0)
        os.close(fd)
        if done != 0:
            return False
    done = libc.syscall(_LANDLOCK["restrict"], ruleset, 0)
    os.close(ruleset)
    return done == 0


def become(user: int | None, *, search: bool) -> None:
    """Become this user, if any, without capabilities but the one to read whatever the mode (``search``), which also
    what the program starts has.
    """
    if user is not None:
        libc.prctl(_KEEPCAPS, 1 if search else 0, 0, 0, 0)
        os.setgroups([])
        os.setresgid(user, user, user)
        os.setresuid(user, user, user)
    number, kept = _CAPSET.get(os.uname().machine), 1 << _READ_SEARCH if search else 0
    data = struct.pack("6I", kept, kept, kept, 0, 0, 0)
    if number is None or libc.syscall(number, struct.pack("Ii", 0x20080522, 0), data) != 0:
        lack = "root has no CAP_DAC_READ_SEARCH here, and only root can read Python or a package of its"
        raise PermissionError(lack if search else "capabilities cannot be given up")
    if search and libc.prctl(_AMBIENT, _AMBIENT_RAISE, _READ_SEARCH, 0, 0) != 0:
        raise PermissionError("the right to read Python and its packages cannot be passed on")


def _filter(program: bytes) -> bool:
    buffer = ctypes.create_string_buffer(program, len(program))
    head = struct.pack("HxxxxxxQ", len(program) // 8, ctypes.addressof(buffer))
    return libc.prctl(_SECCOMP, 2, head, 0, 0) == 0
