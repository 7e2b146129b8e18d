"""DeepSpeed ZeRO-3 as a TrainablePolicy: the only file that knows its settings and quirks."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import deepspeed
import torch
from torch import Tensor
from transformers import PreTrainedModel

from lpo_ray.learning import OptimiserSettings


def join_group() -> None:
    """Join the ranks' process group from RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT. All ranks call this at once."""
    if not torch.cuda.is_available():
        # Built with ninja and a C++ compiler at first use, and an error without one; training does not need it.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    deepspeed.init_distributed(dist_backend=backend, auto_mpi_discovery=False, verbose=False)


class Zero3Policy:
    """One rank's shard of the policy. Every method is a collective: all ranks call it at the same time, in the same
    order, otherwise they wait for each other until the deadline.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        settings: OptimiserSettings,
        zero: Mapping[str, bool | int | float | str],
        *,
        gradient_checkpointing: bool,
        bfloat16: bool,
    ) -> None:
        """``zero`` is merged over the zero_optimization section."""
        if gradient_checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.train()
        optimiser = torch.optim.AdamW(
            model.parameters(), lr=0.0, betas=settings.betas, weight_decay=settings.weight_decay
        )
        config = {
            "train_micro_batch_size_per_gpu": 1,
            "managed_gradient_accumulation": False,  # the caller says when an update is complete
            "gradient_clipping": settings.gradient_clip,
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,
            "bf16": {"enabled": bfloat16},
            "steps_per_print": 10**9,
            # Threshold 0 really shards every parameter; the default keeps small ones whole on each rank.
            "zero_optimization": {
                "stage": 3,
                "stage3_param_persistence_threshold": 0,
                **zero,
            },
        }
        self.module = model
        self.engine, *_ = deepspeed.initialize(model=model, optimizer=optimiser, config=config)
        self._client_optimiser = optimiser
        self._world_size = torch.distributed.get_world_size()

    def logits(self, token_ids: Tensor, attention_mask: Tensor, keep: int) -> Tensor:
        """See TrainablePolicy."""
        device = self.engine.device
        return self.engine(
            input_ids=token_ids.to(device),
            attention_mask=attention_mask.to(device),
            logits_to_keep=keep,
            use_cache=False,
        ).logits

    def backward(self, loss: Tensor) -> None:
        """See TrainablePolicy. DeepSpeed averages gradients over ranks; the loss already has the global denominator,
        so the average is undone.
        """
        self.engine.backward(loss * self._world_size, scale_wrt_gas=False)

    def step(self, learning_rate: float) -> float:
        """See TrainablePolicy."""
        for group in self._client_optimiser.param_groups:
            group["lr"] = learning_rate
        self.engine.step()
        norm = self.engine.get_global_grad_norm()
        if norm is None:
            raise RuntimeError("DeepSpeed reports no gradient norm; was backward called before step?")
        return float(norm)

    def gather(self) -> dict[str, Tensor]:
        """The full weights by name, on rank 0 (others get an empty dict), through buckets of whole parameters."""
        named = list(self.module.named_parameters())
        keep = torch.distributed.get_rank() == 0
        weights: dict[str, Tensor] = {}
        for bucket in _buckets(named, max_numel=1 << 26):
            with deepspeed.zero.GatheredParameters([parameter for _, parameter in bucket], modifier_rank=None):
                if keep:
                    weights |= {name: parameter.detach().cpu().clone() for name, parameter in bucket}
        return weights

    def shard_digests(self) -> dict[str, float]:
        """Norm of this rank's shard of each parameter, to show that ranks hold different ones."""
        return {
            name: float(parameter.ds_tensor.detach().double().norm())  # pyright: ignore[reportAttributeAccessIssue]
            for name, parameter in self.module.named_parameters()
        }

    def save(self, folder: Path) -> None:
        """ZeRO shards of weights and optimiser, by DeepSpeed."""
        self.engine.save_checkpoint(str(folder), tag="shards")

    def restore(self, folder: Path) -> None:
        """Continue from ``save``; bit-equal on the same world size."""
        loaded, _ = self.engine.load_checkpoint(str(folder), tag="shards")
        if loaded is None:
            raise FileNotFoundError(f"DeepSpeed found no checkpoint in {folder / 'shards'}")


def _buckets(named: list[tuple[str, torch.nn.Parameter]], max_numel: int) -> list[list[tuple[str, torch.nn.Parameter]]]:
    """Consecutive parameters up to ``max_numel`` elements. Sizes are ``ds_numel``: a shard looks empty."""
    buckets: list[list[tuple[str, torch.nn.Parameter]]] = []
    used = 0
    for name, parameter in named:
        size = int(parameter.ds_numel)  # pyright: ignore[reportAttributeAccessIssue]
        if not buckets or used + size > max_numel:
            buckets.append([])
            used = 0
        buckets[-1].append((name, parameter))
        used += size
    return buckets
