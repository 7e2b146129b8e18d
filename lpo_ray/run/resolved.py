"""Settings that nobody has to set: what each comes to on the run's devices, and what decided it.

For ``train --dry-run`` and ``lpo-ray plan``. Every value is taken from where the run takes it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from lpo_ray.config.engine import engine_processes
from lpo_ray.config.gpus import auto_transport, between_gpus
from lpo_ray.config.schema import ClusterKind, Config
from lpo_ray.errors import ConfigError
from lpo_ray.learner.settings import zero_defaults, zero_options
from lpo_ray.policy.loading import read_config
from lpo_ray.policy.logprob_head import chunk_tokens
from lpo_ray.policy.weights import bucket_bytes
from lpo_ray.run import settings
from lpo_ray.run.object_store import GIB, object_store_bytes, room_here
from lpo_ray.run.spec import RunSpec

SET = "configuration"
ZERO = "learner.deepspeed.zero_optimization"
ZERO_SHOWN = ("stage3_param_persistence_threshold", "reduce_bucket_size")
UNLIMITED = 10**12
"""elements, from which on a threshold is none"""


class Resolved(NamedTuple):
    """A setting that is decided."""

    key: str
    value: str
    source: str
    """what decided it: the configuration, a default for a kind of device, the data, ..."""


def resolved(spec: RunSpec) -> list[Resolved]:
    """Resolve every setting whose default depends on something else than the configuration's other keys."""
    on_ray = spec.config.cluster.kind is ClusterKind.ray
    parts = (_engine(spec), _ranks(spec), _cluster(spec.config)) if on_ray else (_one_process(spec),)
    return [found for part in parts for found in part]


def render_resolved(rows: Sequence[Resolved]) -> str:
    """Align the settings as text."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [f"{row.key:<{widths[0]}}  {row.value:<{widths[1]}}  {row.source}" for row in rows]
    return "\n".join(lines)


def _engine(spec: RunSpec) -> Iterator[Resolved]:
    rollout, engine = spec.config.rollout, settings.engine_settings(spec, spec.model_path or "")
    device, extra = _default(on_gpu=not engine.on_cpu), rollout.engine_args
    kind = "asynchronous" if engine.asynchronous else "inprocess"
    several = "an engine of several processes" if engine_processes(rollout) > 1 else device
    yield Resolved("rollout.engine", kind, several if rollout.engine.value == "auto" else SET)
    yield _longest(spec)
    graphs = "true: no CUDA graphs" if engine.enforce_eager else "false: CUDA graphs"
    yield Resolved("rollout.enforce_eager", graphs, device if rollout.enforce_eager is None else SET)
    if engine.on_cpu:
        yield Resolved("rollout.kv_cache_gib", f"{rollout.kv_cache_gib:g}", SET)
    else:
        given = rollout.gpu_memory_utilization is not None
        share = f"{engine.gpu_memory_utilization:g} of a GPU, KV cache included"
        yield Resolved("rollout.gpu_memory_utilization", share, SET if given else device)
    for name, value in {"max_num_batched_tokens": engine.max_num_batched_tokens, **engine.cpu_defaults}.items():
        source = SET if name in extra else device
        yield Resolved(f"rollout.engine_args.{name}", str(extra.get(name, value)), source)


def _ranks(spec: RunSpec) -> Iterator[Resolved]:
    config, on_gpu = spec.config, spec.config.learner.gpus_per_rank > 0
    yield from _learner(spec, on_gpu=on_gpu)
    given, ours = zero_options(config.learner.deepspeed), zero_defaults(config.learner.world_size, on_gpu=on_gpu)
    for name in ZERO_SHOWN:
        value = given.get(name, ours.get(name))
        shown = "DeepSpeed's own" if value is None else "no limit" if _number(value) > UNLIMITED else str(value)
        one = config.learner.world_size == 1 and name.startswith("stage3_param_persistence")
        yield Resolved(
            f"{ZERO}.{name}", shown, SET if name in given else "one rank" if one else _default(on_gpu=on_gpu)
        )


def _learner(spec: RunSpec, *, on_gpu: bool) -> Iterator[Resolved]:
    learner, device = spec.config.learner, _default(on_gpu=on_gpu)
    checkpointing = str(settings.gradient_checkpointing(spec.config)).lower()
    given = learner.gradient_checkpointing is not None
    yield Resolved("learner.gradient_checkpointing", checkpointing, SET if given else device)
    threads = settings.rank_threads(spec.config) or "the host's cores divided among its ranks"
    yield Resolved("learner.threads", str(threads), device if learner.threads is None else SET)
    yield Resolved("tokens of a chunk of the head", _chunk(spec, on_gpu=on_gpu), device)


def _chunk(spec: RunSpec, *, on_gpu: bool) -> str:
    try:
        config = None if spec.model_path is None else read_config(
            spec.model_path, trust_remote_code=spec.config.model.trust_remote_code
        )  # fmt: skip
    except ConfigError:
        config = None
    if config is None and not on_gpu:
        return "by the vocabulary"
    vocabulary = 1 if config is None else int(config.get_text_config().vocab_size)
    return str(chunk_tokens(vocabulary, 2 if spec.config.model.dtype == "bfloat16" else 4, on_gpu=on_gpu))


def _cluster(config: Config) -> Iterator[Resolved]:
    transport, several = config.transport, config.cluster.address is not None
    kinds = dict.fromkeys(auto_transport(config, nodes) for nodes in ((1, 2) if several else (1,)))
    kind = " or, on several nodes, ".join(kinds) if transport.kind == "auto" else transport.kind
    on_device = between_gpus(config)
    yield Resolved("transport.kind", kind, "places of ranks and engines" if transport.kind == "auto" else SET)
    mib = bucket_bytes(transport.bucket_mib, on_device=on_device) // 2**20
    source = "default between GPUs" if on_device else "default through host memory"
    yield Resolved("transport.bucket_mib", str(mib), source if transport.bucket_mib is None else SET)
    if not several:
        gib = object_store_bytes(config, room_here()) / GIB
        source = "a step, and the room here now" if config.cluster.object_store_gib is None else SET
        yield Resolved("cluster.object_store_gib", f"{gib:.1f}", source)


def _one_process(spec: RunSpec) -> Iterator[Resolved]:
    yield _longest(spec)
    yield from _learner(spec, on_gpu=False)


def _longest(spec: RunSpec) -> Resolved:
    given, read = spec.config.rollout.max_model_len is not None, spec.longest_prompt is not None
    source = SET if given else "longest prompt and sampling.max_tokens" if read else "the model's context"
    return Resolved("rollout.max_model_len", str(spec.max_model_len), source)


def _default(*, on_gpu: bool) -> str:
    return "default on GPUs" if on_gpu else "default on CPUs"


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) else 0.0
