"""Methods added to vLLM's worker (``worker_extension_cls``). Importing it registers our weight-transfer engines.

vLLM imports it inside the engine core, before the model is loaded; so it stands apart from the engines.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import torch

import actors.transports.receivers  # noqa: F401 - vLLM finds them by their names
from actors.rollout.blank_loader import unfilled
from actors.transports.receiver import Receiver
from lpo_ray.policy.adapter_files import read_tensors

# A process must ask the kernel for AMX before its first tile instruction, or it dies with SIGILL; vLLM takes AMX for
# granted where the CPU announces it. Where the kernel refuses, vLLM must not choose it.
if torch.cpu._is_amx_tile_supported() and not torch.cpu._init_amx():
    torch.cpu._is_amx_tile_supported = lambda: False


class WorkerExtension:
    """Mixin that vLLM adds to its Worker by name; ``self`` is that worker."""

    def restart_weight_update(self) -> None:
        """Start a weight update. One that was started and given up is closed first."""
        if self._receiver().active:
            self.end_weight_update()
        self.start_weight_update()  # type: ignore[attr-defined]

    def end_weight_update(self) -> None:
        """Finish the weight update. Of an adapter it is the receiver's alone: vLLM would drop every adapter that is
        served, as if the weights beside them had been replaced.
        """
        if self._receiver().takes_adapter:
            self._receiver().finish_weight_update()
            self._weight_update_active = False
        else:
            self.finish_weight_update()  # type: ignore[attr-defined]

    def received_digests(self) -> dict[str, str]:
        """Return the digest of each tensor of the last update as it arrived at this worker."""
        return self._receiver().digests

    def unfilled_weights(self) -> list[str]:
        """Name the weights of an engine that was built without any, which no publish has brought."""
        return unfilled(self._receiver().model)

    def serve_received_adapter(self, config: dict[str, object], number: int, dropped: list[int]) -> None:
        """Serve the adapter that the last update brought, as ``number``, without those that are ``dropped``.

        ``config``: what PEFT's adapter_config.json says of it.
        """
        self._serve_adapter(config, self._receiver().adapter, number, dropped)

    def serve_adapter_of(self, folder: str, config: dict[str, object], number: int) -> None:
        """Serve the adapter in a PEFT folder."""
        self._serve_adapter(config, read_tensors(folder), number, [])

    def _serve_adapter(
        self, config: dict[str, object], tensors: Mapping[str, torch.Tensor], number: int, dropped: list[int]
    ) -> None:
        """Put an adapter in the place of those that are dropped, between two steps of the engine."""
        from actors.rollout.adapter_places import put  # vLLM's adapters, which few engines have

        put(self.model_runner.lora_manager, config, tensors, number, dropped)  # type: ignore[attr-defined]

    def _receiver(self) -> Receiver:
        return cast("Receiver", self.weight_transfer_engine)  # type: ignore[attr-defined]
