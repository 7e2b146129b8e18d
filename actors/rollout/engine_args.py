"""Arguments of a vLLM engine: our settings of it, and what ``rollout.engine_args`` adds to them.

Every argument of vLLM is one of four: set by a key of ours, refused with a reason, passed through, or refused because
nothing here has shown that an engine with it samples what the learner trains.
"""

from __future__ import annotations

import dataclasses
import difflib
from typing import TYPE_CHECKING, Any, cast

from pydantic import ConfigDict, PydanticUserError, TypeAdapter, ValidationError

from actors.rollout.adapter import adapter_arguments
from lpo_ray.errors import ConfigError
from lpo_ray.rollout.engine_settings import EngineSettings

if TYPE_CHECKING:
    from vllm.config.model import ModelDType
    from vllm.engine.arg_utils import AsyncEngineArgs

KEY = "rollout.engine_args"
SET_BY = {
    "model": "model.path", "tokenizer": "model.path", "hf_config_path": "model.path", "model_weights": "model.path",
    "trust_remote_code": "model.trust_remote_code", "dtype": "rollout.dtype",
    "seed": "run.seed, from which each response has a seed of its own",
    "max_model_len": "rollout.max_model_len", "max_num_seqs": "rollout.max_num_seqs",
    "tensor_parallel_size": "rollout.tensor_parallel_size", "gpu_memory_utilization": "rollout.gpu_memory_utilization",
    "enforce_eager": "rollout.enforce_eager", "generation_config": "the section sampling",
    "override_generation_config": "the section sampling", "weight_transfer_config": "transport.kind",
    "device_ids": "rollout.gpus_per_worker, by which Ray chooses them",
    "distributed_executor_backend": "rollout.tensor_parallel_size and rollout.gpus_per_worker",
    "stream_interval": "pipeline.inflight", "log_level": "the run's log, which takes warnings",
}  # fmt: skip
"""argument of vLLM -> what sets it"""
ANOTHER_MODEL = "the engine would be another model than the one that is trained"
OTHER_TOKENS = "responses would come from another distribution than their log-probs say"
DRAFTS = "nothing publishes to a draft model, and the log-probs of accepted drafts are not proved here"
NO_ADAPTERS = "model.lora says which adapter an engine serves, and without one there is none"
NODES = (
    "an engine's processes are on one node: take more engines (rollout.num_workers), each with the GPUs of one node at "
    "most"
)
COPIES = (
    "vLLM answers for the first of its copies only, so the others' weights could not be proved: "
    "rollout.num_workers=N is N engines that are each proved"
)
STALE_CACHE = "it keeps keys and values of weights that are no longer served, where a publish does not reach them"
STALE_WEIGHTS = "it keeps weights where a publish does not renew them, or renews them wrongly"
REFUSED = {
    **dict.fromkeys(("hf_overrides", "model_class_overrides", "convert", "runner", "revision", "config_format",
                     "model_impl", "diffusion_config", "enable_prompt_embeds", "disable_sliding_window"),
                    ANOTHER_MODEL),
    **dict.fromkeys(("logits_processors", "watermark_config", "structured_outputs_config", "reasoning_parser",
                     "reasoning_config", "kv_sharing_fast_prefill", "swa_bounded_replay", "logprobs_mode"),
                    OTHER_TOKENS),
    **dict.fromkeys(("speculative_config", "spec_method", "spec_model", "spec_tokens"), DRAFTS),
    **dict.fromkeys(("enable_lora", "max_loras", "max_lora_rank", "lora_dtype", "default_mm_loras"), NO_ADAPTERS),
    **dict.fromkeys(("nnodes", "node_rank", "master_addr", "master_port"), NODES),
    **dict.fromkeys(("data_parallel_size", "data_parallel_size_local", "data_parallel_rank", "data_parallel_backend",
                     "data_parallel_hybrid_lb", "data_parallel_external_lb"), COPIES),
    **dict.fromkeys(("kv_offloading_size", "kv_transfer_config", "kv_events_config", "ec_transfer_config"),
                    STALE_CACHE),
    **dict.fromkeys(("cpu_offload_gb", "offload_backend", "offload_group_size", "enable_eplb", "eplb_config",
                     "enable_elastic_ep"), STALE_WEIGHTS),
    "scheduling_policy": "probes of a publish overtake what waits, by their priority",
    "scheduler_cls": "probes of a publish overtake what waits, by their priority",
    "worker_extension_cls": "weights arrive through an extension of ours", "worker_cls": "as worker_extension_cls",
    "load_format": "what an engine computes as it is loaded is the baseline that its published weights are held to",
    "enable_sleep_mode": "an engine never sleeps here: it has its GPU, or its share of one, for itself",
    "max_num_queued_reqs": "a request that is refused would cost its group",
    "hf_token": "it is a secret, and the run's folder keeps the configuration: set HF_TOKEN in the environment",
    "skip_tokenizer_init": "the ends of a response are the tokenizer's",
}  # fmt: skip
"""argument of vLLM -> why it is refused"""
PASSED = frozenset((
    # parts of one copy of the weights
    "pipeline_parallel_size", "prefill_context_parallel_size", "decode_context_parallel_size", "dcp_comm_backend",
    "enable_expert_parallel", "expert_placement_strategy", "disable_custom_all_reduce", "distributed_timeout_seconds",
    "cpu_distributed_timeout_seconds", "numa_bind", "numa_bind_nodes", "numa_bind_cpus", "all2all_backend",
    # what a step computes, and how much of it
    "max_num_batched_tokens", "max_num_scheduled_tokens", "long_prefill_token_threshold", "enable_chunked_prefill",
    "async_scheduling", "cudagraph_capture_sizes", "max_cudagraph_capture_size", "compilation_config",
    "optimization_level", "performance_mode",
    # kernels
    "attention_backend", "attention_config", "kernel_config", "moe_backend", "linear_backend",
    "enable_flashinfer_autotune", "use_fp64_gumbel", "quantization",
    # KV cache
    "kv_cache_dtype", "kv_cache_memory_bytes", "block_size", "num_gpu_blocks_override", "enable_prefix_caching",
    "prefix_caching_hash_algo", "disable_hybrid_kv_cache_manager", "watermark", "mamba_block_size", "mamba_cache_mode",
    # files
    "download_dir", "safetensors_load_strategy", "safetensors_prefetch_num_threads", "ignore_patterns",
    "max_parallel_loading_workers", "language_model_only",
    # what it tells
    "disable_log_stats", "otlp_traces_endpoint", "collect_detailed_traces", "kv_cache_metrics", "cudagraph_metrics",
    "enable_mfu_metrics", "enable_layerwise_nvtx_tracing", "show_hidden_metrics_for_version",
))  # fmt: skip
"""arguments of vLLM that are passed through"""


def engine_arguments(settings: EngineSettings, receiver: str) -> AsyncEngineArgs:
    """Translate settings into vLLM's own. ``receiver``: see table.Transport. Raises ConfigError."""
    from vllm.config import WeightTransferConfig
    from vllm.engine.arg_utils import AsyncEngineArgs

    defaults = {
        "max_num_batched_tokens": settings.max_num_batched_tokens,
        "disable_log_stats": settings.on_cpu,
        **({"kv_cache_memory_bytes": settings.kv_cache_bytes} if settings.on_cpu else {}),
        **settings.cpu_defaults,
    }
    return AsyncEngineArgs(
        model=settings.model_path,
        trust_remote_code=settings.trust_remote_code,
        dtype=cast("ModelDType", settings.dtype),
        max_model_len=settings.max_model_len,
        max_num_seqs=settings.max_num_seqs,
        tensor_parallel_size=settings.tensor_parallel_size,
        # In a placement group vLLM would take Ray, which wants a bundle for each GPU; ours is one bundle on one node.
        distributed_executor_backend="mp" if settings.num_processes > 1 else "uni",
        gpu_memory_utilization=settings.gpu_memory_utilization,
        enforce_eager=settings.enforce_eager,
        # Log-probs of the distribution that was really sampled from, temperature included.
        logprobs_mode="processed_logprobs",
        worker_extension_cls="actors.rollout.vllm_extension.WorkerExtension",
        weight_transfer_config=WeightTransferConfig(backend=receiver),
        generation_config="vllm",
        load_format=_blank_format() if settings.blank else "auto",
        scheduling_policy="priority",  # of probes
        **adapter_arguments(settings.adapter, settings.versions_alive),
        **cast("dict[str, Any]", {**defaults, **passed_through(settings)}),
    )


def _blank_format() -> str:
    """Register the loader of engines without weights; returns its name. It imports what only an engine needs."""
    from actors.rollout.blank_loader import BLANK

    return BLANK


def passed_through(settings: EngineSettings) -> dict[str, object]:
    """Return what rollout.engine_args adds, as vLLM has it. Raises ConfigError for what is not to be passed."""
    found = {name: _checked(name, value) for name, value in settings.extra.items()}
    if settings.on_cpu:
        if found.get("enable_chunked_prefill"):
            raise _refused("enable_chunked_prefill", "on CPUs vLLM computes prompts with seeds as a whole only")
        if "kv_cache_memory_bytes" in found:
            raise _set_by("kv_cache_memory_bytes", "rollout.kv_cache_gib")
    tokens, least = found.get("max_num_batched_tokens"), max(settings.max_num_seqs, settings.needed_batched_tokens)
    if isinstance(tokens, int) and tokens < least:
        raise ConfigError(
            f"{KEY}.max_num_batched_tokens is {tokens}; expected {least} at least: one token for each of "
            "rollout.max_num_seqs" + (", and on CPUs a whole prompt" if settings.on_cpu else "")
        )
    return found


def _checked(name: str, value: object) -> object:
    """Check one entry, and turn it into a value of vLLM's type."""
    from vllm.engine.arg_utils import AsyncEngineArgs

    fields = {field.name: field for field in dataclasses.fields(AsyncEngineArgs)}
    if name not in fields:
        close = difflib.get_close_matches(name.replace("-", "_"), fields, n=3)
        hint = f"did you mean {' or '.join(close)}?" if close else f"expected some of {', '.join(sorted(PASSED))}"
        raise ConfigError(f"{KEY}.{name} is no argument of vLLM's engine; {hint}")
    if name in SET_BY:
        raise _set_by(name, SET_BY[name])
    if name in REFUSED:
        raise _refused(name, REFUSED[name])
    if name not in PASSED:
        raise _refused(
            name,
            "nothing here has shown that an engine with it samples what the learner trains; expected some of "
            f"{', '.join(sorted(PASSED))}",
        )
    if name == "quantization":
        _check_quantization(value)
    hint: Any = fields[name].type
    try:
        adapter = TypeAdapter(hint, config=ConfigDict(arbitrary_types_allowed=True))
    except PydanticUserError:  # a type that brings a configuration of its own
        adapter = TypeAdapter(hint)
    try:
        return adapter.validate_python(value)
    except ValidationError as error:
        reasons = dict.fromkeys(": ".join((*map(str, found["loc"]), found["msg"])) for found in error.errors())
        raise ConfigError(f"{KEY}.{name} is {value!r}, which vLLM refuses ({'; '.join(reasons)})") from error


def _check_quantization(value: object) -> None:
    from vllm.config.quantization import ONLINE_QUANT_SHORTHAND_NAMES

    if value is not None and value not in ONLINE_QUANT_SHORTHAND_NAMES:
        raise ConfigError(
            f"{KEY}.quantization is {value!r}; expected one of {', '.join(ONLINE_QUANT_SHORTHAND_NAMES)}: a publish "
            "brings weights that are not quantised, which the engine has to quantise by itself"
        )


def _set_by(name: str, key: str) -> ConfigError:
    return ConfigError(f"{KEY}.{name} is set by {key}; expected it there")


def _refused(name: str, why: str) -> ConfigError:
    return ConfigError(f"{KEY}.{name} is not passed through: {why}")
