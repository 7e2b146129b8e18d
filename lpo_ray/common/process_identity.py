"""Identity of a process: more than its pid, which the kernel gives to another process once the first is gone.

Containers make that common: in each of them the first process has the same pid, and often the same host name.
"""

from __future__ import annotations

import errno
import os
import signal
import socket
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

PF_EXITING = 0x4
"""flag of a process that the kernel is ending"""


@dataclass(frozen=True, slots=True)
class ProcessIdentity:
    """A process, told from all that have had its pid or will have it.

    Example: ``ProcessIdentity(4711, 1830042, "node-3", "0d1c9f3a-...", "pid:[4026531836]")``
    """

    pid: int
    started: int
    """clock ticks from the boot of the machine to its start"""
    host: str
    """name of its machine, for people"""
    boot: str
    """the kernel's id of this boot: names machine and boot"""
    pid_namespace: str
    """the pids of one container, or of the machine itself"""

    @staticmethod
    def own() -> ProcessIdentity:
        """Identify the calling process."""
        pid = os.getpid()
        return ProcessIdentity(pid, started_at(pid) or 0, socket.gethostname(), _boot(), _pid_namespace())

    @staticmethod
    def from_json(value: object) -> ProcessIdentity | None:
        """Read what ``to_json`` returned; None when it is something else."""
        try:
            assert isinstance(value, Mapping)
            return ProcessIdentity(
                int(value["pid"]), int(value["started"]), str(value["host"]), str(value["boot"]),
                str(value["pid_namespace"]),
            )  # fmt: skip
        except (AssertionError, KeyError, TypeError, ValueError):
            return None

    def to_json(self) -> dict[str, object]:
        """Return its fields by name."""
        return asdict(self)

    @property
    def on_this_boot(self) -> bool:
        """Whether its machine is this one, and was not booted since."""
        return self.boot == _boot()

    @property
    def is_here(self) -> bool:
        """Whether its pid means here what it meant there."""
        return self.on_this_boot and self.pid_namespace == _pid_namespace()

    @property
    def is_alive(self) -> bool:
        """Whether it is here and has not ended."""
        return self.is_here and started_at(self.pid) == self.started

    def send(self, number: int) -> bool:
        """Send a signal to this process and no other. False: it has ended, or is not here. Raises PermissionError."""
        try:
            descriptor = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return False
        except OSError as error:
            if error.errno != errno.ENOSYS:  # a kernel without pidfd
                raise
            if self.is_alive:
                os.kill(self.pid, number)
                return True
            return False
        try:
            if not self.is_alive:  # asked once the descriptor holds whoever has the pid
                return False
            signal.pidfd_send_signal(descriptor, number)
        except ProcessLookupError:
            return False
        finally:
            os.close(descriptor)
        return True

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


def started_at(pid: int) -> int | None:
    """Return when the process with this pid was started, in clock ticks since boot. None: there is none, or it has
    ended and waits for its parent to notice.
    """
    fields = _stat(pid)
    return None if fields is None or fields[0] in "ZX" else int(fields[19])


def is_ending(pid: int) -> bool:
    """Whether the kernel is ending the process with this pid: its connections are closed long before it is gone."""
    fields = _stat(pid)
    return fields is not None and bool(int(fields[6]) & PF_EXITING)


def _stat(pid: int) -> list[str] | None:
    """Read /proc/PID/stat from the process's state on; None: there is no such process."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    return text.rpartition(")")[2].split() or None


@cache
def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return socket.gethostname()


def _pid_namespace() -> str:
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return socket.gethostname()
