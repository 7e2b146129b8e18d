"""The typed run configuration: every key, its default, its unit. ``load.py`` fills it; nothing else reads YAML.

A key is documented below its field, a section by its class. These objects stop at ``cli``, ``run``, ``tasks``,
``tools`` and ``actors.cluster`` with its roles; the training loop and every component take values.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from omegaconf import MISSING


class Resume(Enum):
    """Choice for a run folder that exists."""

    never = "never"
    auto = "auto"


class LengthNorm(Enum):
    """Reduction of token log-ratios to a response's log-ratio."""

    mean = "mean"
    sum = "sum"


class Behaviour(Enum):
    """Source of the log-probs that stand for pi_b: the learner's own (recomputed) or those the engine sampled with."""

    recomputed = "recomputed"
    engine = "engine"


class ClipCentre(Enum):
    """Policy that the token clip's band is around: the one before the step (pi_t), or the behaviour (pi_b)."""

    anchor = "anchor"
    behaviour = "behaviour"


class StalePolicy(Enum):
    """Treatment of a group whose behaviour has drifted from the policy: train on it as it is, do not train on it, or
    shrink its anchor.
    """

    keep = "keep"
    drop = "drop"
    temper = "temper"


class EqualRewards(Enum):
    """Treatment of a group whose rewards are all equal. It has no gradient at the first update; at later ones, and when
    it is off-policy, it pulls the policy back to the anchor. So drop it only where that is not wanted.
    """

    keep = "keep"
    drop = "drop"


class Inflight(Enum):
    """Treatment of responses that are being decoded when new weights are published."""

    finish = "finish"
    keep_recompute = "keep_recompute"
    keep_cache = "keep_cache"
    abort_resume = "abort_resume"


class EngineKind(Enum):
    """Kind of vLLM engine: in-process LLMEngine (CPU), AsyncLLM (GPU), or the one that fits the hardware."""

    auto = "auto"
    inprocess = "inprocess"
    asynchronous = "asynchronous"


class SandboxKind(Enum):
    """Kind of sandbox that holds an untrusted program."""

    auto = "auto"
    bubblewrap = "bubblewrap"
    rlimit = "rlimit"


class ClusterKind(Enum):
    """Backend: Ray actors, or everything in this process (for a debugger)."""

    ray = "ray"
    inprocess = "inprocess"


class ProgressKind(Enum):
    """Progress in the terminal: live panel, one line a step, nothing, or by whether the output is a terminal."""

    auto = "auto"
    live = "live"
    plain = "plain"
    quiet = "quiet"


class Attention(Enum):
    """Layout of responses: packed without padding, in padded rows, or packed where the model's attention allows it."""

    auto = "auto"
    packed = "packed"
    padded = "padded"


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
    """never: refuse a folder that has a run; auto: continue from its newest checkpoint, or begin"""


@dataclass
class WarmupConfig:
    """Recipe of the tiny base policy that is built when model.path is null."""

    steps: int = 220
    """supervised steps on Countdown solutions"""
    batch_size: int = 128
    """problems per step"""
    lr: float = 2e-3
    """peak learning rate, after a warm-up of 50 steps"""
    seed: int = 0
    """seed of the initial weights and of the problems"""
    cache_dir: str | None = None
    """null: $LPO_RAY_CACHE, else ~/.cache/lpo-ray"""


@dataclass
class ModelConfig:
    """The policy that is trained."""

    path: str | None = None
    """a Hugging Face folder (or hub name); null builds the tiny base policy of `warmup`"""
    dtype: str = "float32"
    """learner parameters: float32 | bfloat16"""
    trust_remote_code: bool = False
    """run the Python code that the model's folder or hub page brings along (auto_map), in learner, engines and
    tokenizer alike; see SECURITY.md"""
    warmup: WarmupConfig = field(default_factory=WarmupConfig)


@dataclass
class TaskConfig:
    """Source of the prompts, and what checks the responses."""

    name: str = "countdown"
    """row of lpo_ray.tasks.table.TASKS: countdown | math | code | geometry | token_reversal | reasoning_gym:NAME |
    dataset; or "module:function" that returns a Task
    """
    verifier: str | None = None
    """row of VERIFIERS, "module:function", "file.py:function", https://..., judge, or a weighted sum such as
    "math + 0.2*think_format"; null takes the task's own
    """
    template: str = "plain"
    """plain, or chat (the tokenizer's chat template); prompts that are messages go through that in any case"""
    counts: list[int] = field(default_factory=lambda: [3])
    """countdown: how many numbers a problem has"""
    num_train: int | None = None
    """size of the training set (cycled in a new order each epoch); null: all rows, or without end for generators"""
    path: str | None = None
    """data set to train on: .jsonl or .parquet file, Hugging Face folder, or hub name NAME, NAME#SPLIT,
    NAME#CONFIG/SPLIT; `lpo-ray evaluate` needs heldout_path only
    """
    heldout_path: str | None = None
    """file or data set of the held-out prompts, named as path is; null: none, so evaluation.num_prompts=0"""
    prompt_column: str | None = None
    """null: recognised by its name, see lpo_ray.tasks.sources.columns; a column of a column is named with a dot"""
    answer_column: str | None = None
    """null: recognised by its name, as prompt_column"""
    options: dict[str, Any] = field(default_factory=dict)
    """the task's own options, such as {lengths: [7]} for token_reversal, or those of a generator of reasoning_gym"""


@dataclass
class SamplingConfig:
    """Sampling of responses in training."""

    group_size: int = 8
    """K, responses per prompt"""
    temperature: float = 1.0
    """temperature of the softmax over tokens"""
    top_p: float = 1.0
    """mass of the most probable tokens that are kept; 1: all"""
    top_k: int = 0
    """0: off"""
    min_p: float = 0.0
    """least probability that is kept, as a share of the largest; 0: off"""
    max_tokens: int = MISSING
    """tokens per response"""


@dataclass
class TokenClipConfig:
    """Bounds within which one token's log-ratio counts."""

    kind: str = "clamp"
    """row of objective.TOKEN_CLIPS: clamp | one_sided | ppo_ratio | none; or "module:function" """
    low: float = 0.2
    """the band is [log(1 - low), log(1 + high)]"""
    high: float = 0.2
    """upper edge of the band, see low"""
    around: ClipCentre = ClipCentre.anchor
    """what the band is around; matters with behaviour=engine, where it is one pass without gradient for updates after a
    step's first
    """


@dataclass
class StaleConfig:
    """Groups that have drifted; read with behaviour=engine only."""

    policy: StalePolicy = StalePolicy.drop
    """what is done with such a group"""
    min_ess: float = 0.3
    """least effective sample size 1 / sum P_t^2, as a share of K: drop below it, temper up to it"""
    max_drift: float = 0.18232
    """nats, log 1.2: drop a group whose mean abs(log pi_t - log pi_b) is above"""


@dataclass
class ChangeConfig:
    """Change of the objective from a step on; null: as before it."""

    from_step: int = MISSING
    """steps that come before it"""
    divergence: str | None = None
    """divergence from then on, as objective.divergence"""
    target_temperature: str | float | int | None = None
    """tau from then on, as objective.target_temperature"""
    temperature_scale: float | None = None
    """scale from then on, as objective.temperature_scale"""


@dataclass
class ObjectiveConfig:
    """The target distribution over a group's responses, and how the policy is projected onto it."""

    divergence: str = "forward_kl"
    """row of objective.DIVERGENCES: forward_kl | reverse_kl | jensen_shannon | first_order | first_order_beta |
    pointwise; or "module:function" """
    target_temperature: str | float | int = "group_std"
    """tau: row of objective.TEMPERATURES (group_std | group_mean | one | batch_std | effective_25 | effective_50 |
    effective_75), "module:function", or a number above 0
    """
    temperature_scale: float = 1.0
    """multiplies tau"""
    schedule: list[ChangeConfig] = field(default_factory=list)
    """changes of these three, ascending by from_step"""
    ddof: int = 0
    """subtracted from the count in the standard deviation of rewards: 0 or 1"""
    temperature_floor: float = 1e-6
    """added to a tau that is computed from rewards, so that it is never 0"""
    token_clip: TokenClipConfig = field(default_factory=TokenClipConfig)
    length_norm: LengthNorm = LengthNorm.mean
    """a response's log-ratio: mean or sum of those of its tokens"""
    behaviour: Behaviour = Behaviour.recomputed
    """log-probs of the policy that sampled: computed by the learner before the step (recomputed), or those that the
    engine sampled with (engine), by which drift is measured
    """
    stale: StaleConfig = field(default_factory=StaleConfig)
    importance_cap: float | None = None
    """behaviour=recomputed: each token's loss times min(pi_behaviour / pi_engine, this), for baselines; null: off"""
    reference_kl: float = 0.0
    """weight of the k3 estimate of KL(policy || reference); 0: no reference is loaded"""
    reference_path: str | None = None
    """model of the frozen reference; null: the model the run starts from"""


@dataclass
class PipelineConfig:
    """Groups of a step: how many, how old, and what becomes of those that are left out."""

    groups_per_step: int = MISSING
    """prompts per step"""
    updates_per_step: int = 2
    """optimiser updates per step, on disjoint parts of it"""
    max_staleness: int = 0
    """steps by which a group's oldest token may lag the weights that train on it; 0 is on-policy"""
    inflight: Inflight = Inflight.keep_recompute
    """responses that are being decoded when new weights are published: they end first (finish), continue with the new
    weights and a recomputed KV cache (keep_recompute), continue with the old KV cache (keep_cache: no single policy has
    their log-probs), or are aborted and sent again with their tokens so far (abort_resume)
    """
    tokens_per_micro_batch: int = 16384
    """prompt + response tokens of one forward; a group above it is split, at the price of a second pass"""
    share_prompt: bool = False
    """learner: encode a prompt once for all K responses; needs packed attention"""
    max_attempts: int = 5
    """issues of one prompt in a row that are lost before the run ends with TooManyLost, or that a working verifier
    leaves unscored before the prompt is left out
    """
    max_unscored_share: float = 0.1
    """share of the prompts (of 20 at least) that may be left out as unscored before the run ends"""
    lease_seconds: float = 1200.0
    """time of one attempt from issue to verdict; then it is lost, whoever holds it, and issued again"""
    max_gib: float = 8.0
    """memory of the driver for groups that are on their way or wait to be trained"""
    equal_rewards: EqualRewards = EqualRewards.keep
    """groups whose rewards are all equal: train on them (keep), or leave them out (drop)"""
    refill_groups: int | None = None
    """groups of a step that are asked for in place of those left out (equal rewards, objective.stale); then the step is
    trained with what it has. null: groups_per_step
    """
    oversample_groups: int = 0
    """groups on their way beyond those that a step needs; when it has them, what was issued too early for the next step
    is cut, and counted as filtered. Cuts long responses more often than short ones
    """
    reused_groups_per_step: int = 0
    """trained groups, at most max_staleness steps old, that each step trains once more; needs behaviour=engine"""


@dataclass
class AutoscaleConfig:
    """Autoscaling of rollout workers by who waits for whom; needs pipeline.max_staleness above 0."""

    min: int = 1
    """workers at least, while max is above 0"""
    max: int = 0
    """0: the number stays what num_workers and `lpo-ray scale` say"""
    target_learner_wait: float = 0.1
    """share of its time that the learner may wait for groups"""


@dataclass
class RolloutConfig:
    """The engines that sample."""

    num_workers: int = 1
    """engines to begin with; `lpo-ray scale RUN rollout=N` changes it during the run"""
    autoscale: AutoscaleConfig = field(default_factory=AutoscaleConfig)
    engine: EngineKind = EngineKind.auto
    """vLLM's LLMEngine in the worker's process, its AsyncLLM, or by the hardware (auto)"""
    dtype: str = "float32"
    """weights of the engines: float32 | bfloat16"""
    cpus_per_worker: float = 1.0
    """CPUs that Ray reserves for one engine"""
    gpus_per_worker: float = 0.0
    """GPUs that Ray reserves for one engine; 0: a CPU engine"""
    tensor_parallel_size: int = 1
    """GPUs that share one copy of the weights"""
    threads: int = 1
    """threads of one CPU engine's arithmetic"""
    max_num_seqs: int = 256
    """responses an engine decodes at once"""
    kv_cache_gib: float = 1.0
    """CPU engines: memory of the KV cache"""
    gpu_memory_utilization: float = 0.85
    """share of a GPU's memory for weights and KV cache, as vLLM has it"""
    enforce_eager: bool = True
    """run without CUDA graphs: slower to decode, quicker to start"""
    deadline_seconds: float = 600.0
    """deadline of one group, and of an engine's start"""
    drain_seconds: float = 60.0
    """time that a leaving worker has to finish its groups; what is left is issued again"""
    labels: dict[str, str] = field(default_factory=dict)
    """labels of the nodes that workers may be on, as in `ray start --labels`; {}: any"""


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


@dataclass
class LearnerConfig:
    """The ranks that train, and their optimiser (AdamW)."""

    world_size: int = 2
    """ranks; weights, gradients and optimiser states are sharded over them (ZeRO-3)"""
    min_world_size: int | None = None
    """ranks that suffice when the cluster has no room for world_size any more; null: world_size, it never shrinks"""
    labels: dict[str, str] = field(default_factory=dict)
    """labels of the nodes that ranks may be on; {}: any"""
    cpus_per_rank: float = 1.0
    """CPUs that Ray reserves for one rank"""
    gpus_per_rank: float = 0.0
    """GPUs that Ray reserves for one rank; 0: train on CPUs"""
    threads: int = 1
    """threads of one rank's arithmetic"""
    lr: float = 1e-6
    """peak learning rate"""
    lr_schedule: str = "constant"
    """name of a transformers schedule: constant | linear | cosine | polynomial | constant_with_warmup | ..."""
    lr_schedule_kwargs: dict[str, Any] = field(default_factory=dict)
    """arguments of that schedule, such as {min_lr_rate: 0.1} for cosine_with_min_lr"""
    warmup_steps: int = 0
    """steps over which the learning rate rises from 0, where the schedule has a warm-up"""
    betas: list[float] = field(default_factory=lambda: [0.9, 0.999])
    """decay rates of AdamW's two moments"""
    weight_decay: float = 0.1
    """decoupled weight decay of AdamW"""
    gradient_clip: float = 1.0
    """largest norm of an update's gradient"""
    attention: Attention = Attention.auto
    """how responses are laid out: packed without padding, in padded rows, or by what the model allows (auto)"""
    gradient_checkpointing: bool = False
    """compute activations twice instead of keeping them: less memory, slower"""
    max_skipped_updates: int = 3
    """updates in a row that are skipped for NaN or Inf before the run stops"""
    zero: dict[str, Any] = field(default_factory=dict)
    """passed through to DeepSpeed's zero_optimization, such as {offload_optimizer: {device: cpu}}"""
    deadline_seconds: float = 1800.0
    """deadline of one call to the ranks: a step, or their start"""


@dataclass
class TransportConfig:
    """Transfer of new weights to the engines."""

    kind: str = "auto"
    """row of actors.transports.table.TRANSPORTS: shared_memory | gloo | nccl | cuda_ipc | object_store; auto: by where
    the learner and the engines are"""
    bucket_mib: int = 64
    """gathered and sent at once; each side needs memory for two buckets (of the largest tensor, if that is larger)"""
    tolerance: float | None = None
    """largest log-prob difference of the probe; null: 1e-3 for float32, 0.5 otherwise"""
    prepare_seconds: float = 60.0
    """time for the engines to stop decoding and to join the learner"""
    transfer_seconds: float = 300.0
    """time for all buckets and their proof"""


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
    """mean length of a response; lengths are log-normal"""
    length_variation: float = 0.6
    """standard deviation of the length over its mean"""
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
    backoff_seconds: float = 1.0
    """pause before the second restart in the window; doubled with each further one"""


@dataclass
class ClusterConfig:
    """Place of the run's processes."""

    kind: ClusterKind = ClusterKind.ray
    """Ray actors, or everything in this process, for a debugger"""
    address: str | None = None
    """address of a running Ray cluster; null starts one on this machine for the run"""
    object_store_gib: float = 1.0
    """local cluster only"""
    autoscaling: bool = False
    """nodes may join when they are asked for: what has no room now is waited for instead of refused"""
    placement_seconds: float = 120.0
    """time to find the resources of a role"""


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
    verifier: VerifierConfig = field(default_factory=VerifierConfig)
    learner: LearnerConfig = field(default_factory=LearnerConfig)
    transport: TransportConfig = field(default_factory=TransportConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    telemetry: TelemetryConfig = field(default_factory=TelemetryConfig)
    supervision: SupervisionConfig = field(default_factory=SupervisionConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    simulation: SimulationConfig = field(default_factory=SimulationConfig)
