"""DeepSpeed ZeRO-3 as a TrainablePolicy: the only file that knows its settings and quirks."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import deepspeed
import torch
from deepspeed.utils import safe_get_local_fp32_param, safe_get_local_grad, safe_get_local_optimizer_state
from torch import Tensor, nn
from torch.distributed import Store
from transformers import PreTrainedModel
from typing_extensions import override

from actors.learner.gather import gather, write_shards
from actors.learner.safe_shards import to_universal, without_code
from lpo_ray.errors import CheckpointDamaged
from lpo_ray.learner.norms import norms_by_kind, update_ratios
from lpo_ray.learner.settings import OptimiserSettings
from lpo_ray.learner.updates import TrainablePolicy
from lpo_ray.policy.layout import Layout
from lpo_ray.policy.loading import enable_checkpointing
from lpo_ray.policy.scoring import Scorer, ScoringModel
from lpo_ray.policy.weights import TensorMeta, make_manifest
from lpo_ray.records import StepNorms

SHARDS = "shards"
"""folder of a checkpoint's shards, which is DeepSpeed's tag for them"""
GROUP_LIMIT = timedelta(days=7)
"""limit of a collective itself: a rank that is waited for may be writing a checkpoint. One that hangs is found from
outside, by its silence, and all ranks are ended then"""
PIECE_BYTES = 1 << 24
"""bytes of parameters, counted as float32, that are gathered at once"""


def join_group(store: Store, rank: int, world_size: int, *, on_gpu: bool) -> None:
    """Join the ranks' process group, whose members meet at ``store``. All ranks call this at once. ``on_gpu``: whether
    each rank has a GPU; on a machine with GPUs it may have none.
    """
    if not on_gpu:
        # Built with ninja and a C++ compiler at first use, and an error without one; training does not need it.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    backend = "nccl" if on_gpu else "gloo"
    device = torch.device("cuda", 0) if on_gpu and world_size > 1 else None  # as DeepSpeed itself does it
    torch.distributed.init_process_group(
        backend, store=store, rank=rank, world_size=world_size, timeout=GROUP_LIMIT, device_id=device
    )
    deepspeed.init_distributed(dist_backend=backend, auto_mpi_discovery=False, verbose=False)  # finds torch's


@dataclass(frozen=True, slots=True)
class ShardedModel:
    """A model to shard, and how: what the trained policy and the reference have in common."""

    model: PreTrainedModel
    zero: Mapping[str, object]
    """settings merged over DeepSpeed's zero_optimization section"""
    attention: str
    """see learner.attention"""
    share_prompt: bool
    count: Callable[[], None]
    """called with each pass, update and piece of weights"""


class Zero3Scorer(Scorer):
    """One rank's shard of a policy that is only read: the reference. Every method is a collective: all ranks call it at
    the same time, in the same order, otherwise they wait for each other until the deadline.
    """

    def __init__(self, sharded: ShardedModel, settings: OptimiserSettings | None = None) -> None:
        """``settings``: given for a policy that is trained."""
        self.model, self.share_prompt, self.count = sharded.model, sharded.share_prompt, sharded.count
        scoring = ScoringModel(self.model, sharded.attention, share_prompt=sharded.share_prompt)
        self.packed = scoring.packed
        self.optimiser = None if settings is None else _adamw(self.model, settings)
        self.world_size = torch.distributed.get_world_size()
        config = {
            "train_micro_batch_size_per_gpu": 1,
            "managed_gradient_accumulation": False,  # the caller says when an update is complete
            "gradient_clipping": 0.0 if settings is None else settings.gradient_clip,
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,
            "bf16": {"enabled": self.model.dtype == torch.bfloat16},  # fp32 master weights are DeepSpeed's own
            # DeepSpeed's default is the model's dtype: in bf16 a sum over micro-batches and ranks has 2 to 3 digits.
            "data_types": {"grad_accum_dtype": "fp32"},
            "communication_data_type": "fp32",
            "steps_per_print": 10**9,
            "zero_optimization": {
                "stage": 3,
                # Threshold 0 really shards every parameter; the default keeps small ones whole on each rank. One rank
                # has nothing to shard: whole parameters save it a copy of the model in each forward and backward.
                "stage3_param_persistence_threshold": 0 if self.world_size > 1 else sys.maxsize,
                # The default, 500 M elements, makes one temporary copy of all gradients of a small model.
                "reduce_bucket_size": 20_000_000,
                **sharded.zero,
            },
        }
        self.engine, *_ = deepspeed.initialize(model=scoring, optimizer=self.optimiser, config=config)

    @override
    def score(self, layout: Layout, temperature: float) -> tuple[Tensor, Tensor]:
        self.count()
        return self.engine(layout, temperature)

    @override
    def score_plainly(self, layout: Layout) -> Tensor:
        self.count()
        return self.engine(layout, 1.0, plainly=True)[0]


class Zero3Policy(Zero3Scorer, TrainablePolicy):
    """One rank's shard of the policy that is trained."""

    def __init__(self, sharded: ShardedModel, settings: OptimiserSettings, *, gradient_checkpointing: bool) -> None:
        if gradient_checkpointing:
            enable_checkpointing(sharded.model)
        super().__init__(sharded, settings)
        self._settings = settings
        self._offloads = "offload_optimizer" in sharded.zero

    @override
    def backward(self, loss: Tensor) -> None:
        # DeepSpeed averages gradients over ranks. The loss already has the global denominator, so that is undone.
        self.engine.backward(loss * self.world_size, scale_wrt_gas=False)
        self.count()

    @override
    def step(self, learning_rate: float) -> StepNorms:
        # DeepSpeed drops a gradient whose global norm is NaN or Inf, on all ranks alike.
        assert self.optimiser is not None
        for group in self.optimiser.param_groups:
            group["lr"] = learning_rate
        gradients = {} if self._offloads else self._gradient_norms()
        self.engine.step()
        self.count()
        norm, applied = self.engine.get_global_grad_norm(), self.engine.was_step_applied()
        if norm is None:
            raise RuntimeError("DeepSpeed reports no gradient norm; was backward called before step?")
        if not applied:
            return StepNorms(float(norm), applied, gradients, {})
        if self._offloads:  # offloaded gradients are handed over inside the step, and stay where they are: clipped
            clipped = max(1.0, float(norm) / self._settings.gradient_clip)
            gradients = {kind: value * clipped for kind, value in self._gradient_norms().items()}
        return StepNorms(float(norm), applied, gradients, self._update_ratios())

    @override
    def sum_over_ranks(self, values: Tensor) -> Tensor:
        total = values.to(self.engine.device)
        torch.distributed.all_reduce(total)
        return total.cpu()

    def gather(self) -> dict[str, Tensor]:
        """Gather the full weights by name on rank 0; others get an empty dict. Beside them a rank holds one parameter,
        or ``PIECE_BYTES`` of them.
        """
        weights: dict[str, Tensor] = {}
        if torch.distributed.get_rank() == 0:
            weights = {name: torch.empty(shape, dtype=self.model.dtype) for name, shape in self.shapes().items()}
        metas = [TensorMeta(name, shape) for name, shape in self.shapes().items()]
        for piece in make_manifest(metas, "float32", bucket_bytes=PIECE_BYTES, num_senders=1).buckets:
            self.gather_into([tensor.name for tensor in piece.tensors], weights, self.model.dtype)
        return weights

    def gather_into(self, names: Sequence[str], views: Mapping[str, Tensor], dtype: torch.dtype) -> None:
        """Gather the named parameters on all ranks as ``dtype``, and copy those that this rank wants into its
        ``views``. One collective for all of them; nothing waits for the device.
        """
        self.count()
        parameters = dict(self._named())
        gather({name: parameters[name] for name in names}, views, dtype, self.engine.device)

    def write_shards(self, views: Mapping[str, Tensor]) -> None:
        """Write this rank's shard of each named parameter where it belongs in the full tensor, in the tensor's dtype.
        Not a collective.
        """
        parameters = dict(self._named())
        write_shards((parameters[name], view) for name, view in views.items())

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """List the full shape of every parameter, in order: a shard looks empty."""
        return {name: tuple(parameter.ds_shape) for name, parameter in self._named()}  # pyright: ignore[reportAttributeAccessIssue]

    def save(self, folder: Path) -> None:
        """Have DeepSpeed write its shards of weights and optimiser into ``folder/shards``."""
        self.engine.save_checkpoint(str(folder), tag=SHARDS)

    def restore(self, folder: Path, written_by: int) -> None:
        """Continue from ``save`` by ``written_by`` ranks. On the same number that is bit-equal; another number goes
        through DeepSpeed's universal format, written beside the shards for the time of the restore.
        """
        if written_by == self.world_size:
            self._load(folder, SHARDS)
            return
        universal = universal_of(folder)
        if torch.distributed.get_rank() == 0:
            to_universal(folder / SHARDS, universal / SHARDS)
        torch.distributed.barrier()
        config = self.engine._config
        assert config is not None
        config.load_universal_checkpoint = True  # read at each load, but settable from outside at initialize only
        try:
            self._load(universal, SHARDS)
        finally:
            config.load_universal_checkpoint = False
            torch.distributed.barrier()
            if torch.distributed.get_rank() == 0:
                shutil.rmtree(universal, ignore_errors=True)

    def _load(self, folder: Path, tag: str) -> None:
        with without_code(folder):
            loaded, _ = self.engine.load_checkpoint(str(folder), tag=tag)
        if loaded is None:
            raise CheckpointDamaged(str(folder), f"DeepSpeed found no {tag} in it")

    def _named(self) -> Iterator[tuple[str, nn.Parameter]]:
        return self.model.named_parameters()

    def _gradient_norms(self) -> dict[str, float]:
        shards = ((name, safe_get_local_grad(parameter)) for name, parameter in self._named())
        return norms_by_kind(shards, self.sum_over_ranks)

    def _update_ratios(self) -> dict[str, float]:
        assert self.optimiser is not None

        def shards() -> Iterator[tuple[str, Tensor, tuple[Tensor, Tensor]]]:
            for name, parameter in self._named():
                first, second = (safe_get_local_optimizer_state(parameter, key) for key in ("exp_avg", "exp_avg_sq"))
                yield name, safe_get_local_fp32_param(parameter), (first, second)

        return update_ratios(shards(), self.optimiser, self.sum_over_ranks)


def universal_of(folder: Path) -> Path:
    """Where a checkpoint is written in DeepSpeed's universal format, for the time of a restore."""
    return folder.with_name(f".partial-universal-{folder.name}")


def _adamw(model: PreTrainedModel, settings: OptimiserSettings) -> torch.optim.AdamW:
    return torch.optim.AdamW(
        (p for p in model.parameters() if p.requires_grad),
        lr=0.0,
        betas=settings.betas,
        weight_decay=settings.weight_decay,
        fused=True,  # one pass over weights and moments instead of a dozen
    )
