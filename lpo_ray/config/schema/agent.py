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
    reasoning_parser: str | None = None
    """vLLM's parser that takes thinking out of answers' text, such as qwen3 or deepseek_r1: the agent has it beside the
    text, and it stays in the context whether it is sent back or not; null: it is part of the text
    """
    network: bool = False
    """let a command reach more than the endpoint"""
