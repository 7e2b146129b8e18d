"""The typed run configuration: every key, its default, its unit. ``load.py`` fills it; nothing else reads YAML.

A key is documented below its field, a section by its class, in the files of this folder. These objects stop at ``cli``,
``run``, ``tasks``, ``tools`` and ``actors.cluster`` with its roles; the training loop and every component take values.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from lpo_ray.config.schema.agent import AgentConfig
from lpo_ray.config.schema.choices import (
    Attention,
    Behaviour,
    ClipCentre,
    ClusterKind,
    EngineKind,
    EqualRewards,
    Inflight,
    LengthNorm,
    ProgressKind,
    Resume,
    SandboxKind,
    StalePolicy,
)
from lpo_ray.config.schema.environment import EnvironmentConfig
from lpo_ray.config.schema.objective import ChangeConfig, ObjectiveConfig, PipelineConfig, StaleConfig, TokenClipConfig
from lpo_ray.config.schema.run import (
    CheckpointConfig,
    ClusterConfig,
    EvaluationConfig,
    RunConfig,
    SimulationConfig,
    SupervisionConfig,
    TelemetryConfig,
)
from lpo_ray.config.schema.task import LoraConfig, ModelConfig, SamplingConfig, TaskConfig, WarmupConfig
from lpo_ray.config.schema.verifier import HttpConfig, JudgeConfig, OverlongConfig, SandboxConfig, VerifierConfig
from lpo_ray.config.schema.workers import AutoscaleConfig, LearnerConfig, RolloutConfig, TransportConfig

__all__ = [
    "AgentConfig",
    "Attention",
    "AutoscaleConfig",
    "Behaviour",
    "ChangeConfig",
    "CheckpointConfig",
    "ClipCentre",
    "ClusterConfig",
    "ClusterKind",
    "Config",
    "EngineKind",
    "EnvironmentConfig",
    "EqualRewards",
    "EvaluationConfig",
    "HttpConfig",
    "Inflight",
    "JudgeConfig",
    "LearnerConfig",
    "LengthNorm",
    "LoraConfig",
    "ModelConfig",
    "ObjectiveConfig",
    "OverlongConfig",
    "PipelineConfig",
    "ProgressKind",
    "Resume",
    "RolloutConfig",
    "RunConfig",
    "SamplingConfig",
    "SandboxConfig",
    "SandboxKind",
    "SimulationConfig",
    "StaleConfig",
    "StalePolicy",
    "SupervisionConfig",
    "TaskConfig",
    "TelemetryConfig",
    "TokenClipConfig",
    "TransportConfig",
    "VerifierConfig",
    "WarmupConfig",
]


@dataclass
class Config:
    """One run. Sections in the order of the flow."""

    run: RunConfig = field(default_factory=RunConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    task: TaskConfig = field(default_factory=TaskConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    pipeline: PipelineConfig = field(default_factory=PipelineConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    environment: EnvironmentConfig = field(default_factory=EnvironmentConfig)
    agent: AgentConfig = field(default_factory=AgentConfig)
    verifier: VerifierConfig = field(default_factory=VerifierConfig)
    learner: LearnerConfig = field(default_factory=LearnerConfig)
    transport: TransportConfig = field(default_factory=TransportConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    telemetry: TelemetryConfig = field(default_factory=TelemetryConfig)
    supervision: SupervisionConfig = field(default_factory=SupervisionConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    simulation: SimulationConfig = field(default_factory=SimulationConfig)
