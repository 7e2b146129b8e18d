"""The adapter of an engine: vLLM's arguments for it, and what a request says to be answered with it.

An engine serves one, in one place, under one name. A publish puts the new one there between two steps of the engine, as
full weights are put in place: so every mode of ``pipeline.inflight`` does with adapters what it does without them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lpo_ray.policy.lora import AdapterSettings, peft_config

if TYPE_CHECKING:
    from vllm.lora.request import LoRARequest

ADAPTER_ID = 1
"""vLLM's number of the adapter"""
RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""largest ranks that vLLM has kernels for"""


def adapter_arguments(adapter: AdapterSettings | None) -> dict[str, Any]:
    """Arguments of vLLM for an engine with this adapter; none without one."""
    if adapter is None:
        return {}
    rank = next(rank for rank in RANKS if rank >= adapter.rank)
    return {"enable_lora": True, "max_loras": 1, "max_cpu_loras": 1, "max_lora_rank": rank}


class ServedAdapter:
    """The adapter of one engine, on the side of its worker."""

    def __init__(self, settings: AdapterSettings | None) -> None:
        self._settings = settings
        self.is_there = False
        """whether the engine has one; without values to begin with it has none before the first publish"""

    @property
    def folder(self) -> str | None:
        """PEFT folder of the adapter to begin with."""
        return None if self._settings is None else self._settings.path

    @property
    def config(self) -> dict[str, object] | None:
        """What PEFT's adapter_config.json says of it; None: the engine serves the model as it is."""
        return None if self._settings is None else peft_config(self._settings)

    def request(self) -> LoRARequest | None:
        """Return what has vLLM answer a request with the adapter; None: the model alone is to answer, or there is no
        adapter yet. Its path is never read, since the adapter is there.
        """
        if not self.is_there:
            return None
        from vllm.lora.request import LoRARequest

        return LoRARequest("policy", ADAPTER_ID, "in memory")
