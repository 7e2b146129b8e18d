"""The processes that conversations run in."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class EnvironmentConfig:
    """The environments and tools of conversations; read with task.environment or task.tools only."""

    processes: int = 2
    """processes that they run in; `lpo-ray scale RUN environment=N` changes it during the run"""
    turn_seconds: float = 60.0
    """time for an environment to answer one turn, tools included; its process is then killed, the response unscored"""
    conversation_seconds: float = 600.0
    """time that the answers of one conversation may take together"""
    memory_mib: int = 1024
    """memory of one process"""
    max_message_chars: int = 100_000
    """characters of what an environment says at once; more is its fault. A tool's result is cut at a twentieth of it"""
