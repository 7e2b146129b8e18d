"""Methods added to vLLM's worker (``worker_extension_cls``): loading published weights in place.

Kept apart from ``engines.py`` because vLLM imports it inside the engine core.
"""

from __future__ import annotations

from safetensors.torch import load
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead

from lpo_ray.model import digest_of


class WorkerExtension:
    """Mixed into vLLM's Worker by name; ``self`` is the worker."""

    def load_payload(self, payload: bytes) -> str:
        """Load safetensors bytes through vLLM's layerwise reload; returns the digest of the bytes received.

        On CPU, linear layers are packed for oneDNN and their plain ``weight`` is empty, so a bare ``load_weights``
        cannot work; the reload unpacks and packs again. A tied ``lm_head`` keeps a packed copy of its own that the
        reload does not see and that would serve the old weights without a word: it is packed again here, and the
        probe after each publish would catch it.
        """
        self.reload_weights(weights_iterator=iter(load(payload).items()))  # type: ignore[attr-defined]
        for module in self.model_runner.model.modules():  # type: ignore[attr-defined]
            if isinstance(module, ParallelLMHead) and hasattr(module, "cpu_linear"):
                module.quant_method.process_weights_after_loading(module)
        return digest_of(payload)
