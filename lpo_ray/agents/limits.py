"""Limits of environments and tools, and how a child process is told them. Standard library only."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from lpo_ray.verifiers.sandbox.limits import Limits


@dataclass(frozen=True, slots=True)
class Hosted:
    """Environments and tools that child processes host, and how much they may take: see the section ``environment``."""

    environment: str | None = None
    """row of ENVIRONMENTS, "path/to/file.py:Name" or "module:Name"; None: that of ``tools``"""
    agent: str | None = None
    """in place of an environment: the agent, "path/to/file.py:solve" or "module:solve" """
    tools: tuple[str, ...] = ()
    """rows of TOOLS, or functions: "path/to/file.py:name" or "module:name" """
    parser: str = "auto"
    """row of PARSERS that finds tool calls in every reply; auto: ``template_parser``, for environments with tools"""
    template_parser: str = "hermes"
    """row of PARSERS by the chat template; conversations of plain text have calls between brackets"""
    processes: int = 2
    turn_seconds: float = 60.0
    """that one reset, step or close may take"""
    conversation_seconds: float = 600.0
    """that all steps of a conversation may take together, without the engine's time"""
    memory_mib: int = 1024
    """of each process"""
    max_message_chars: int = 100_000
    """of what an environment says at once; a tool's result is cut there"""
    sandbox: Limits = field(default_factory=Limits)
    """of the tool ``python``"""

    def to_json(self) -> dict[str, Any]:
        """Write it for a child process."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Hosted:
        """Read what ``to_json`` wrote."""
        return cls(**{**value, "tools": tuple(value["tools"]), "sandbox": Limits(**value["sandbox"])})
