"""The engines that sample, the ranks that learn, and the way of weights between them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from lpo_ray.config.schema.choices import Attention, EngineKind


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
    """GPUs that Ray reserves for one engine; 0: a CPU engine; below 1: of each of its GPUs, which ranks share"""
    tensor_parallel_size: int = 1
    """processes of an engine, with a GPU each, that share one copy of the weights"""
    threads: int = 1
    """threads of the arithmetic of one process of a CPU engine"""
    max_num_seqs: int = 256
    """responses an engine decodes at once"""
    max_model_len: int | None = None
    """tokens that prompt and response have together at most; null: the longest prompt of the data and
    sampling.max_tokens, or the model's whole context where prompts are generated
    """
    kv_cache_gib: float = 1.0
    """CPU engines: memory of the KV cache"""
    gpu_memory_utilization: float | None = None
    """share of a GPU's memory for weights and KV cache, as vLLM has it; null: 0.85 of gpus_per_worker, or of a GPU"""
    enforce_eager: bool | None = None
    """run without CUDA graphs: slower to decode, quicker to start; null: with them on GPUs"""
    engine_args: dict[str, Any] = field(default_factory=dict)
    """passed through to vLLM's EngineArgs, such as {kv_cache_dtype: fp8}; what is set elsewhere, or would change what
    is sampled, is refused
    """
    silence_seconds: float = 600.0
    """an engine that has groups and samples no token for so long is replaced; a group of which nothing is heard for
    twice as long is issued again
    """
    drain_seconds: float = 60.0
    """time that a leaving worker has to finish its groups; what is left is issued again"""
    labels: dict[str, str] = field(default_factory=dict)
    """labels of the nodes that workers may be on, as in `ray start --labels`; {}: any"""


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
    """GPUs that Ray reserves for one rank: 1, 0 to train on CPUs, or a share of the GPU that an engine has too"""
    threads: int | None = None
    """threads of one rank's arithmetic; null: 1, or with the optimizer offloaded from GPUs the host's cores divided
    among its ranks
    """
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
    gradient_checkpointing: bool | None = None
    """compute activations twice instead of keeping them: less memory, slower; null: true on GPUs"""
    max_skipped_updates: int = 3
    """updates in a row that are skipped for NaN or Inf before the run stops"""
    deepspeed: dict[str, Any] = field(default_factory=dict)
    """passed through to DeepSpeed, such as {zero_optimization: {offload_optimizer: {device: cpu}}}; what is set
    elsewhere is refused. With the optimizer on NVMe, norms by kind of parameter are not measured
    """
    silence_seconds: float = 1800.0
    """ranks that are asked for something and get on with nothing for so long (no micro-batch, no file of a checkpoint)
    are started again
    """


@dataclass
class TransportConfig:
    """Transfer of new weights to the engines."""

    kind: str = "auto"
    """row of actors.transports.table.TRANSPORTS: shared_memory | gloo | nccl | cuda_ipc | object_store; auto: by where
    the learner and the engines are"""
    bucket_mib: int | None = None
    """gathered and sent at once; null: 1024 between GPUs, else 64. Each side needs memory for two or three buckets (of
    the largest tensor, if that is larger)"""
    tolerance: float | None = None
    """largest log-prob difference of the probe, in nats; null: relative to what equal weights differ by at the start"""
    prepare_seconds: float = 60.0
    """time for the engines to stop decoding (those that end what they decode first: without a token); half of it where
    there are several
    """
    join_seconds: float = 120.0
    """time for new engines to meet the learner's ranks, all of them together"""
    transfer_seconds: float = 300.0
    """time for one bucket, and for the proof; half of it where there are several engines"""
