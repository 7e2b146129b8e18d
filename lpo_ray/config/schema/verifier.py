"""Sections of verification: the verifier, and what single verifiers need."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from lpo_ray.config.schema.choices import SandboxKind


@dataclass
class OverlongConfig:
    """Soft overlong punishment, as DAPO has it."""

    buffer_tokens: int = 0
    """tokens before sampling.max_tokens over which a response loses more and more; 0: off"""
    penalty: float = 1.0
    """what it loses at max_tokens"""


@dataclass
class HttpConfig:
    """Requests of task.verifier=https://...: one POST for each response."""

    request: dict[str, str] = field(default_factory=dict)
    """key of the JSON body -> prompt | response | answer | raw_answer | prompt+response | query (the same with special
    tokens, as OpenRLHF sends it) | row | row.COLUMN; {}: prompt, response, answer and row under these names
    """
    reward: str = "reward"
    """where in the reply's JSON the number stands, such as result.score; null there means unscored"""
    reply_schema: dict[str, Any] = field(default_factory=dict)
    """JSON schema of the reply; one that breaks it leaves its responses unscored. {}: any reply with that number"""
    batched: bool = False
    """one POST for a group: each value is a list, and so is the reward"""
    key_env: str | None = None
    """environment variable of the service with the Authorization header, or the bearer token"""
    concurrency: int = 64
    """requests at once, a judge's included"""


@dataclass
class JudgeConfig:
    """Judge of task.verifier=judge: a language model behind an OpenAI-compatible endpoint, with a structured answer."""

    url: str = "http://127.0.0.1:8000/v1"
    """address of the endpoint, with its /v1"""
    model: str = ""
    """its name at that endpoint"""
    key_env: str | None = None
    """environment variable of the service with the endpoint's key; null: none"""
    rubric: str = "Judge whether the response answers the question correctly."
    """what the judge is told to look for"""
    scale: float = 10.0
    """the highest score; the reward is the score's share of it"""


@dataclass
class SandboxConfig:
    """Sandbox of verifiers that run what a response says (unit_tests)."""

    kind: SandboxKind = SandboxKind.auto
    """auto: bubblewrap where it works, else rlimit, which protects less and says what is missing"""
    seconds: float | None = None
    """wall clock of one program once its sandbox has started, which may take half of what is left of
    verifier.deadline_seconds; null: half of that deadline
    """
    memory_mib: int = 512
    """memory of each process of a program"""
    total_memory_mib: int | None = None
    """memory of all its processes and its /tmp together, where there are control groups to limit it; null: twice
    memory_mib
    """
    processes: int = 32
    """processes and threads that a program may have at once"""
    files_mib: int = 16
    """size of all files that a program writes"""
    output_kib: int = 256
    """size of what a program prints; beyond that it is killed"""


@dataclass
class VerifierConfig:
    """Verdicts: processes, deadlines, and what single verifiers need."""

    num_processes: int = 2
    """processes to begin with; `lpo-ray scale RUN verifier=N` changes it during the run"""
    deadline_seconds: float = 10.0
    """deadline of one response, whose process is then killed; of a service elsewhere, of one answer"""
    slow_seconds: float = 5.0
    """a verdict that took longer is reported with its response"""
    max_retries: int = 2
    """retries of an unscored response before its group is lost"""
    recycle_after: int = 10_000
    """calls, after which a process is replaced"""
    memory_mib: int = 4096
    """memory of one process, which is replaced when it has grown to half of that"""
    cached_verdicts: int = 0
    """verdicts that the service remembers, so that an equal response is not checked again; 0: none"""
    overlong: OverlongConfig = field(default_factory=OverlongConfig)
    http: HttpConfig = field(default_factory=HttpConfig)
    judge: JudgeConfig = field(default_factory=JudgeConfig)
    sandbox: SandboxConfig = field(default_factory=SandboxConfig)
    labels: dict[str, str] = field(default_factory=dict)
    """labels of the nodes that the service may be on; {}: any"""
