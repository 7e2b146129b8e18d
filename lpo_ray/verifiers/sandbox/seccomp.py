"""A filter of system calls, as the kernel takes it: refuses what programs of this kind never need and what would reach
beyond them. Sockets of every kind (some, such as vsock, are in no network namespace), namespaces, mounts, other
processes' memory, keys, memory that counts for no process, and leaving the process group, which is killed as one.
"""

from __future__ import annotations

import os
import struct

_CALLS = {  # name: number on x86_64, number on aarch64
    "socket": (41, 198),
    "unshare": (272, 97), "setns": (308, 268), "chroot": (161, 51), "pivot_root": (155, 41),
    "mount": (165, 40), "umount2": (166, 39), "open_tree": (428, 428), "move_mount": (429, 429), "fsopen": (430, 430),
    "fsconfig": (431, 431), "fsmount": (432, 432), "fspick": (433, 433), "mount_setattr": (442, 442),
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "kcmp": (312, 272),
    "pidfd_getfd": (438, 438), "bpf": (321, 280), "perf_event_open": (298, 241), "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425), "io_uring_enter": (426, 426), "io_uring_register": (427, 427),
    "add_key": (248, 217), "request_key": (249, 218), "keyctl": (250, 219),
    "memfd_create": (319, 279), "memfd_secret": (447, 447), "shmget": (29, 194), "msgget": (68, 186),
    "semget": (64, 190), "setsid": (112, 157), "setpgid": (109, 154),
    "name_to_handle_at": (303, 264), "open_by_handle_at": (304, 265), "fanotify_init": (300, 262),
    "init_module": (175, 105), "finit_module": (313, 273), "delete_module": (176, 106),
    "kexec_load": (246, 104), "kexec_file_load": (320, 294), "reboot": (169, 142), "swapon": (167, 224),
    "swapoff": (168, 225), "syslog": (103, 116), "acct": (163, 89), "quotactl": (179, 60), "personality": (135, 92),
    "settimeofday": (164, 170), "clock_settime": (227, 112), "clock_adjtime": (305, 266), "adjtimex": (159, 171),
    "sethostname": (170, 161), "setdomainname": (171, 162), "vhangup": (153, 58),
}  # fmt: skip
_ONLY_X86 = (172, 173, 134, 180, 212)
"""iopl, ioperm, uselib, nfsservctl, lookup_dcookie"""
_ARCHITECTURES = {"x86_64": (0xC000003E, 0, 56), "aarch64": (0xC00000B7, 1, 220)}
"""machine -> what the kernel calls it, column above, number of clone"""
_CLONE3 = 435
_NAMESPACES = 0x7E020000
_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _PERMISSION, _NO_SUCH_CALL = 0x7FFF0000, 0x00050001, 0x00050026
_NUMBER, _ARCHITECTURE, _FIRST_ARGUMENT = 0, 4, 16


def seccomp_filter(machine: str | None = None) -> bytes | None:
    """Build ``struct sock_filter[]`` for a machine, this one by default; None where its numbers are not known."""
    known = _ARCHITECTURES.get(machine or os.uname().machine)
    if known is None:
        return None
    architecture, column, clone = known
    refused = sorted({numbers[column] for numbers in _CALLS.values()} | (set(_ONLY_X86) if column == 0 else set()))
    program = [(_LOAD, 0, 0, _ARCHITECTURE), (_EQUAL, 1, 0, architecture), (_RETURN, 0, 0, _PERMISSION)]
    program += [(_LOAD, 0, 0, _NUMBER), (_AT_LEAST, 0, 1, 0x40000000), (_RETURN, 0, 0, _PERMISSION)]  # x32
    program += [(_EQUAL, 0, 1, _CLONE3), (_RETURN, 0, 0, _NO_SUCH_CALL)]  # its flags are in memory; libc then clones
    for number in refused:
        program += [(_EQUAL, 0, 1, number), (_RETURN, 0, 0, _PERMISSION)]
    program += [(_EQUAL, 0, 3, clone), (_LOAD, 0, 0, _FIRST_ARGUMENT), (_ANY_BIT, 0, 1, _NAMESPACES)]
    program += [(_RETURN, 0, 0, _PERMISSION), (_RETURN, 0, 0, _ALLOW)]
    return b"".join(struct.pack("HBBI", *step) for step in program)
