"""Limits of an untrusted program."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of one run of one program; the defaults are those of SandboxConfig."""

    kind: str = "auto"
    """auto | bubblewrap | rlimit"""
    seconds: float = 5.0
    """wall clock from the program's first line, after which the program and all it started are killed"""
    memory_mib: int = 512
    """size of each process's address space"""
    processes: int = 32
    """processes and threads at once"""
    files_mib: int = 16
    """size of all that it writes to its own /tmp, the only place it can write to"""
    output_kib: int = 256
    """size of what it prints that is read; beyond that it is killed"""
    start_seconds: float = 2.5
    """wall clock until then: more is the sandbox's fault, not the program's"""
    total_memory_mib: int = 1024
    """memory of all processes together, /tmp included, where the kernel lets this process limit it"""

    def restarted(self, again: bool) -> Limits:
        """Limit another start; where the program ended the one before (``again``), starting is its own time."""
        return replace(self, start_seconds=min(self.start_seconds, self.seconds)) if again else self
