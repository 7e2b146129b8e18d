"""Settings of the endpoint that agents ask."""

from __future__ import annotations

from dataclasses import dataclass, field

from lpo_ray.agents.endpoint.sessions import SessionLimits
from lpo_ray.policy.tokenizer import DEFAULT_STYLE, ChatStyle
from lpo_ray.records import Sampling

LOOPBACK = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class EndpointSettings:
    """Settings of an endpoint: which model's tokens, where it listens, what the run decides of every answer."""

    model_path: str
    """folder of the model whose tokenizer and configuration are read; its weights are not"""
    sampling: Sampling
    most_tokens: int
    """of context and answer together that an engine has room for"""
    port: int = 0
    """0: one that is free"""
    host: str = LOOPBACK
    doorway: str | None = None
    """where the listening socket is asked for (doorway.py), in place of ``port``; None: it makes one itself"""
    style: ChatStyle = DEFAULT_STYLE
    plain: bool = False
    """messages are their contents, end to end, for a model without a chat template"""
    tool_parser: str = "auto"
    """row of tool_calls.PARSERS; auto: by the chat template"""
    reasoning_parser: str | None = None
    """of vLLM, that takes thinking out of answers; None: it is part of the text"""
    overrides: bool = False
    """answer as the run samples where a request asks for another distribution"""
    limits: SessionLimits = field(default_factory=SessionLimits)
    patience_seconds: float = 30.0
    """from its start on, for which an unknown key waits: after a death sessions are opened again one by one"""
    trust_remote_code: bool = False
