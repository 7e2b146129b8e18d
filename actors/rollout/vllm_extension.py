"""Methods added to vLLM's worker (``worker_extension_cls``). Importing it registers our weight-transfer engines.

vLLM imports it inside the engine core, before the model is loaded; so it stands apart from the engines.
"""

from __future__ import annotations

from typing import cast

import torch
from vllm.lora.layers.logits_processor import LogitsProcessorWithLoRA
from vllm.lora.lora_model import LoRAModel
from vllm.lora.peft_helper import PEFTHelper

import actors.transports.receivers  # noqa: F401 - vLLM finds them by their names
from actors.rollout.blank_loader import unfilled
from actors.rollout.cpu_lora import repair
from actors.transports.receiver import Receiver
from lpo_ray.policy.adapter_files import read_tensors

# A process must ask the kernel for AMX before its first tile instruction, or it dies with SIGILL; vLLM takes AMX for
# granted where the CPU announces it. Where the kernel refuses, vLLM must not choose it.
if torch.cpu._is_amx_tile_supported() and not torch.cpu._init_amx():
    torch.cpu._is_amx_tile_supported = lambda: False


class HeadWithoutAdapter:
    """Stands for vLLM's kernels at the output head, which no adapter here has. They take hidden states for one a
    request: those of a probe's prompt, beside other requests, would end the engine.
    """

    def add_lora_logits(self, logits: torch.Tensor, *_: object) -> torch.Tensor:
        """Return the logits as they are."""
        return logits


repair()


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
        self, config: dict[str, object], tensors: dict[str, torch.Tensor], number: int, dropped: list[int]
    ) -> None:
        """Put an adapter in the place of those that are dropped, between two steps of the engine. vLLM itself takes
        adapters from folders only.
        """
        manager = self.model_runner.lora_manager  # type: ignore[attr-defined]
        places = manager._adapter_manager
        helper = PEFTHelper.from_dict(config)
        helper.validate_legal(manager.lora_config)
        mapper = getattr(places.model, "hf_to_vllm_mapper", None)
        made = LoRAModel.from_lora_tensors(
            number, tensors, helper, device="cpu", dtype=manager.lora_config.lora_dtype,
            model_vocab_size=manager.vocab_size,
            weights_mapper=None if mapper is None else mapper.get_rename_mapper(),
        )  # fmt: skip
        for old in dropped:
            places.remove_adapter(old)
        there = list(places.list_adapters())
        if len(there) >= places.capacity:  # vLLM would drop one unasked, used or not
            raise RuntimeError(
                f"an engine has the adapters {there} and no place for {number}; expected {places.capacity - 1} at "
                "most: one under which requests may run would be dropped"
            )
        for module in places.model.modules():
            if isinstance(module, LogitsProcessorWithLoRA):
                module.punica_wrapper = HeadWithoutAdapter()  # pyright: ignore[reportAttributeAccessIssue] - of the same calls
        places.add_adapter(made)
        places.activate_adapter(number)

    def _receiver(self) -> Receiver:
        return cast("Receiver", self.weight_transfer_engine)  # type: ignore[attr-defined]
