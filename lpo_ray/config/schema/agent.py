"""The agents that ask the policy through an endpoint."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class AgentConfig:
    """Programs that only know a chat endpoint; read with task.agent only. Processes, times and memory are those of the
    section environment.
    """

    overrides: bool = False
    """answer a request that asks for another temperature, top_p, ... as sampling.* says, with a note in the reply's
    headers; false: refuse it
    """
    network: bool = False
    """let a command reach more than the endpoint"""
