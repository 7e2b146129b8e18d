"""Settings from which a vLLM engine is built. Made by ``run/settings.py``, read by ``actors/rollout``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from lpo_ray.config.schema import Inflight
from lpo_ray.policy.lora import AdapterSettings

BATCHED_TOKENS = 8192
"""positions that an engine computes in one step, unless it must compute more"""


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """Settings of one engine: every default is decided."""

    model_path: str
    dtype: str
    max_model_len: int
    """tokens of prompt and response together"""
    max_num_seqs: int
    tensor_parallel_size: int
    num_processes: int
    """that compute, each with a GPU where there are any"""
    gpu_memory_utilization: float
    enforce_eager: bool
    asynchronous: bool
    on_cpu: bool
    kv_cache_bytes: int
    """size of the KV cache on CPU; a GPU takes what gpu_memory_utilization leaves"""
    inflight: Inflight
    trust_remote_code: bool
    """see model.trust_remote_code"""
    adapter: AdapterSettings | None = None
    """adapter that it serves beside the model's weights, and that alone is published; None: all weights are"""
    versions_alive: int = 1
    """versions of its adapter that it may have at once"""
    blank: bool = False
    """built without weights: the first publish brings them all"""
    extra: Mapping[str, object] = field(default_factory=dict)
    """see rollout.engine_args"""

    @property
    def cpu_defaults(self) -> Mapping[str, object]:
        """Arguments of vLLM that have another default on CPUs; none on GPUs."""
        if not self.on_cpu:
            return {}
        # On CPU a seeded request whose prompt is prefilled in chunks kills the engine ("CPU Generator does not use
        # offset": vLLM rolls the generator back after a partial prefill); so prompts are prefilled whole there. vLLM's
        # block of 128 tokens is longer than many prompts: then the K responses of a group share no prefix.
        return {"enable_chunked_prefill": False, "block_size": 32}

    @property
    def needed_batched_tokens(self) -> int:
        """Positions that the engine's largest step must have: on CPU a prompt is computed whole."""
        return self.max_model_len if self.on_cpu else 0

    @property
    def max_num_batched_tokens(self) -> int:
        """Positions of the engine's largest step."""
        given = self.extra.get("max_num_batched_tokens")
        return (
            given if isinstance(given, int) else max(BATCHED_TOKENS, 2 * self.max_num_seqs, self.needed_batched_tokens)
        )
