"""The run as a whole: its name and place, when it is saved, evaluated and shown."""

from __future__ import annotations

from dataclasses import dataclass, field

from omegaconf import MISSING

from lpo_ray.config.schema.choices import ClusterKind, ProgressKind, Resume


@dataclass
class RunConfig:
    """Name and length of the run, and whether it continues an earlier one."""

    name: str = MISSING
    """name of its folder and of its metrics: letters, digits, '.', '_', '-'"""
    dir: str = "runs"
    """the run's folder is dir/name"""
    seed: int = 0
    """seed of everything that is drawn: prompts, samples, the order of the data"""
    steps: int = MISSING
    """training steps of the run, those before a resume included"""
    resume: Resume = Resume.never
    """never: refuse a folder that has a run; auto: continue from its newest checkpoint, or begin; changed: as auto,
    also where data, verifier or reference have another content than the run was begun with
    """


@dataclass
class EvaluationConfig:
    """Evaluation: pass@k on held-out prompts."""

    num_prompts: int = 256
    """held-out prompts, before and after; 0: no evaluation"""
    samples_per_prompt: int = 16
    """responses drawn for each, from the whole distribution"""
    temperature: float = 1.0
    """temperature at which they are drawn; 0: greedy"""
    ks: list[int] = field(default_factory=lambda: [1, 16])
    """k of each pass@k, at most samples_per_prompt"""
    pass_reward: float = 1.0
    """a response passes when its reward is at least this"""
    every: int = 0
    """steps between evaluations during the run; 0: only before and after"""
    lend_worker: bool = True
    """evaluate during the run on one of its rollout workers, where there are two or more: it keeps the weights of that
    step, and the run continues with the others. Otherwise, and with checkpoint.best, the run waits
    """


@dataclass
class CheckpointConfig:
    """Checkpoints: when the run is saved, and what is kept of it."""

    every: int = 50
    """steps; the last step is always saved"""
    keep: int = 2
    """newest checkpoints kept; 0: all"""
    best: str | None = None
    """a metric of metrics.jsonl, or pass@k of the evaluations: the checkpoint where it was highest is kept too"""


@dataclass
class TelemetryConfig:
    """Files and displays of the run."""

    samples_every: int = 1
    """steps between samples/*.parquet; 0: none"""
    measured_groups: int = 8
    """groups of a step that are scored again after its last update: did P move to w*? 0: none; each costs a forward, or
    two
    """
    tensorboard: bool = True
    """write metrics to the run's folder for TensorBoard too"""
    trackers: list[str] = field(default_factory=list)
    """rows of telemetry.trackers.TRACKERS, wandb | mlflow (each is an extra of ours), or "module:function" """
    entropy_alarm: float = 0.02
    """nats: a note is shown when the mean token entropy falls below it; 0: never"""
    progress: ProgressKind = ProgressKind.auto
    """what the terminal shows"""
    stall_seconds: float = 30.0
    """time without any stage entered or left, after which a note says who the run waits for; 0: never"""


@dataclass
class SimulationConfig:
    """Hardware as `lpo-ray simulate` assumes it; engines, ranks and slots are those of rollout and learner."""

    mean_tokens: float = 1024.0
    """mean length of a response, or of a turn; lengths are log-normal"""
    length_variation: float = 0.6
    """standard deviation of the length over its mean"""
    mean_turns: float = 1.0
    """mean number of a conversation's turns, each of mean_tokens; geometric, cut at sampling.max_turns. 1: there is one
    turn"""
    environment_seconds: float = 1.0
    """mean time that an environment and its tools take behind a turn; exponential"""
    decode_rate: float = 40.0
    """tokens a second of one response, whatever its neighbours"""
    train_rate: float = 10000.0
    """response tokens a second of one learner rank, all updates of a step"""
    anchor_share: float = 0.3
    """seconds of the anchor pass over those of the updates; with behaviour=engine only"""
    verify_seconds: float = 0.1
    """time of the verdict on one response"""
    publish_seconds: float = 2.0
    """time of one publish, decoding stopped"""
    hours_between_failures: float = 0.0
    """mean time between failures of one engine; 0: never"""
    restart_seconds: float = 120.0
    """time until a failed engine serves again"""


@dataclass
class SupervisionConfig:
    """Restarts of what dies: each rollout worker, the verifier service, the target builder, and the learner's ranks as
    one group.
    """

    max_restarts: int = 3
    """restarts of each within the window; after them a rollout worker is given up, and anything else ends the run"""
    window_seconds: float = 3600.0
    """window over which restarts are counted"""
    start_seconds: float = 1800.0
    """time that each has to start once it has a place, with all that it loads and compiles"""
    start_silence_seconds: float = 600.0
    """time in which what starts must use CPU time, or read or write something: less is taken for a hang"""
    backoff_seconds: float = 1.0
    """pause before the second restart in the window; doubled with each further one"""


@dataclass
class ClusterConfig:
    """Place of the run's processes."""

    kind: ClusterKind = ClusterKind.ray
    """Ray actors, or everything in this process, for a debugger"""
    address: str | None = None
    """address of a running Ray cluster; null starts one on this machine for the run"""
    object_store_gib: float | None = None
    """Ray's shared memory for what is on its way, local cluster only; null: what a step needs, as far as there is room,
    1 at least
    """
    autoscaling: bool = False
    """nodes may join when they are asked for: what has no room now is waited for instead of refused"""
    placement_seconds: float = 120.0
    """time to find the resources of a role"""
