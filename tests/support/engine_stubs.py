"""vLLM on a made-up device: a process that says which configuration an engine would have, and starts none.

Run as ``python -m tests.support.engine_stubs cuda|cpu`` with EngineSettings as JSON on standard input.
"""

from __future__ import annotations

import json
import sys
from types import ModuleType


def _eight_h100s() -> None:
    """Have vLLM take this machine for one with eight H100s; before anything else of vLLM is imported."""
    sys.modules["vllm._C_stable_libtorch"] = ModuleType("vllm._C_stable_libtorch")
    from vllm import platforms
    from vllm.platforms.cuda import NonNvmlCudaPlatform
    from vllm.platforms.interface import DeviceCapability

    answers = {
        "get_device_capability": lambda cls, device_id=0: DeviceCapability(9, 0),
        "get_device_name": lambda cls, device_id=0: "NVIDIA H100 80GB HBM3",
        "get_device_total_memory": lambda cls, device_id=0: 80 * 2**30,
        "device_count": lambda cls: 8,
        "is_fully_connected": lambda cls, device_ids: True,
    }
    stub = type("Stub", (NonNvmlCudaPlatform,), {name: classmethod(answer) for name, answer in answers.items()})
    platforms.current_platform = stub()


def main(device: str) -> None:
    if device == "cuda":
        _eight_h100s()
    from vllm.usage.usage_lib import UsageContext

    from actors.rollout.engine_args import engine_arguments
    from lpo_ray.config.schema import Inflight
    from lpo_ray.rollout.engine_settings import EngineSettings

    given = json.load(sys.stdin)
    settings = EngineSettings(**{**given, "inflight": Inflight(given["inflight"])})
    made = engine_arguments(settings, "gloo").create_engine_config(UsageContext.ENGINE_CONTEXT)
    parallel, scheduler, cache = made.parallel_config, made.scheduler_config, made.cache_config
    found = {
        "executor": parallel.distributed_executor_backend,
        "world_size": parallel.world_size,
        "expert_parallel": parallel.enable_expert_parallel,
        "batched_tokens": scheduler.max_num_batched_tokens,
        "chunked_prefill": scheduler.enable_chunked_prefill,
        "policy": scheduler.policy,
        "cudagraphs": made.compilation_config.cudagraph_mode.name if made.compilation_config.cudagraph_mode else "NONE",
        "max_model_len": made.model_config.max_model_len,
        "logprobs_mode": made.model_config.logprobs_mode,
        "quantization": made.model_config.quantization,
        "kv_cache_dtype": cache.cache_dtype,
        "block_size": cache.block_size,
        "memory": cache.gpu_memory_utilization,
        "load_format": made.load_config.load_format,
        "log_stats": made.observability_config is not None,
    }
    sys.stdout.write("\nFOUND " + json.dumps(found) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
