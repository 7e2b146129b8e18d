"""Methods added to vLLM's worker (``worker_extension_cls``). Importing it registers our weight-transfer engines.

vLLM imports it inside the engine core, before the model is loaded; so it stands apart from the engines.
"""

from __future__ import annotations

from typing import cast

import torch

import actors.transports.receivers  # noqa: F401 - vLLM finds them by their names
from actors.rollout.blank_loader import unfilled
from actors.transports.receiver import Receiver

# A process must ask the kernel for AMX before its first tile instruction, or it dies with SIGILL; vLLM takes AMX for
# granted where the CPU announces it. Where the kernel refuses, vLLM must not choose it.
if torch.cpu._is_amx_tile_supported() and not torch.cpu._init_amx():
    torch.cpu._is_amx_tile_supported = lambda: False


class WorkerExtension:
    """Mixin that vLLM adds to its Worker by name; ``self`` is that worker."""

    def restart_weight_update(self) -> None:
        """Start a weight update. One that was started and given up is closed first."""
        if self._receiver().active:
            self.finish_weight_update()  # type: ignore[attr-defined]
        self.start_weight_update()  # type: ignore[attr-defined]

    def received_digests(self) -> dict[str, str]:
        """Return the digest of each tensor of the last update as it arrived at this worker."""
        return self._receiver().digests

    def unfilled_weights(self) -> list[str]:
        """Name the weights of an engine that was built without any, which no publish has brought."""
        return unfilled(self._receiver().model)

    def _receiver(self) -> Receiver:
        return cast("Receiver", self.weight_transfer_engine)  # type: ignore[attr-defined]
