"""DeepSpeed ZeRO-3 as a TrainablePolicy: the only file that knows its settings and quirks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import deepspeed
import torch
from deepspeed.accelerator import get_accelerator
from deepspeed.utils import safe_get_local_grad
from torch import Tensor, nn
from torch.distributed import Store
from transformers import PreTrainedModel
from typing_extensions import override

from actors.learner.deepspeed_options import engine_config
from actors.learner.gather import gather, write_shards
from actors.learner.optimizer_state import Zero3Optimizer, fill, finish, gradients, states, step_of
from actors.learner.shard_files import MOMENTS, WEIGHTS, file_of, open_runs, run_size, write_runs
from lpo_ray.learner.norms import norms_by_kind, update_ratios
from lpo_ray.learner.settings import LearnerSettings, OptimiserSettings, offloads
from lpo_ray.learner.updates import TrainablePolicy
from lpo_ray.policy.layout import Layout
from lpo_ray.policy.loading import enable_checkpointing, load_policy
from lpo_ray.policy.lora import AdapterSettings, adapter_parameters
from lpo_ray.policy.lora_layers import inject
from lpo_ray.policy.scoring import Scorer, ScoringModel
from lpo_ray.policy.tensor_file import DiskTensors
from lpo_ray.policy.weights import TensorMeta, make_manifest
from lpo_ray.records import StepNorms

SHARDS = "shards"
"""folder of a checkpoint's shards"""
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
    """whole, or in shards as ``load_sharded`` makes it"""
    deepspeed: Mapping[str, Any]
    """options merged over DeepSpeed's configuration"""
    attention: str
    """see learner.attention"""
    share_prompt: bool
    count: Callable[[], None]
    """called with each pass, update and piece of weights"""
    on_gpu: bool = False


def load_sharded(
    path: str, settings: LearnerSettings, count: Callable[[], None], adapter: AdapterSettings | None = None
) -> ShardedModel:
    """Load a model so that each rank holds its shards, and beside them one piece of the files. All ranks call this at
    once: what rank 0 reads is what all have. With an ``adapter`` only that is trained. Raises ConfigError as
    ``load_policy`` and ``inject`` do.
    """
    world_size = torch.distributed.get_world_size()
    config = engine_config(settings.deepspeed, settings.dtype, world_size=world_size, on_gpu=settings.on_gpu)
    sharder = _Sharder(config, getattr(torch, settings.dtype), count)
    model = load_policy(path, settings.dtype, trust_remote_code=settings.trust_remote_code, take=sharder.take)
    if adapter is not None:
        sharder.take(list(inject(model, adapter).values()))
    for buffer in model.buffers():
        buffer.data = buffer.data.to(sharder.device)
    share = settings.packing.share_prompt
    return ShardedModel(model, settings.deepspeed, settings.attention, share, count, settings.on_gpu)


class _Sharder:
    """Makes DeepSpeed's shards of parameters, in place."""

    def __init__(self, config: Mapping[str, Any], dtype: torch.dtype, count: Callable[[], None]) -> None:
        self._config, self._dtype, self._count = dict(config), dtype, count
        self._first: Any = None
        self.device = torch.device(get_accelerator().current_device_name())  # pyright: ignore[reportOptionalMemberAccess]

    def take(self, parameters: Sequence[nn.Parameter]) -> None:
        """Cast the parameters as DeepSpeed casts a whole model, take rank 0's values, and keep this rank's runs."""
        self._count()
        for parameter in parameters:
            parameter.data = parameter.data.to(self._dtype)
        if not parameters:
            return
        if self._first is not None:
            self._first.convert_to_zero_parameters(param_list=parameters)
            return
        self._first, *_ = parameters
        deepspeed.zero.Init(nn.ParameterList(parameters), config_dict_or_path=self._config, dtype=self._dtype)


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
        self.rank, self.world_size = torch.distributed.get_rank(), torch.distributed.get_world_size()
        config = engine_config(
            sharded.deepspeed,
            str(self.model.dtype).removeprefix("torch."),
            world_size=self.world_size,
            on_gpu=sharded.on_gpu,
            gradient_clip=0.0 if settings is None else settings.gradient_clip,
        )
        self.engine, *_ = deepspeed.initialize(model=scoring, optimizer=self.optimiser, config=config)

    @property
    def device(self) -> torch.device:
        """Device on which this rank computes."""
        assert self.engine.device is not None
        return self.engine.device

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
        self._offloads = offloads(sharded.deepspeed, "offload_optimizer")

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

    def gather(self, weights: DiskTensors | None) -> None:
        """Gather what is trained on rank 0, whole, into ``weights``; the others have none. Every rank holds one
        parameter at a time, or ``PIECE_BYTES`` of them.
        """
        views = {} if weights is None else weights.tensors
        metas = [TensorMeta(name, shape) for name, shape in self.shapes().items()]
        for piece in make_manifest(metas, "float32", bucket_bytes=PIECE_BYTES, num_senders=1).buckets:
            names = [tensor.name for tensor in piece.tensors]
            self.gather_into(names, views, self.model.dtype)
            if weights is not None:
                weights.written(names)

    def gather_into(self, names: Sequence[str], views: Mapping[str, Tensor], dtype: torch.dtype) -> None:
        """Gather the named parameters on all ranks as ``dtype``, and copy those that this rank wants into its
        ``views``. One collective for all of them; nothing waits for the device.
        """
        self.count()
        parameters = dict(self._named())
        gather({name: parameters[name] for name in names}, views, dtype, self.device)

    def write_shards(self, views: Mapping[str, Tensor]) -> None:
        """Write this rank's shard of each named parameter where it belongs in the full tensor, in the tensor's dtype.
        Not a collective.
        """
        parameters = dict(self._named())
        write_shards((parameters[name], view) for name, view in views.items())

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """List the full shape of every parameter that is trained, in order: a shard looks empty."""
        return {name: tuple(parameter.ds_shape) for name, parameter in self._named()}  # pyright: ignore[reportAttributeAccessIssue]

    def save(self, folder: Path) -> None:
        """Write this rank's run of every trained parameter and its moments into ``folder/shards``. Not a collective."""
        (folder / SHARDS).mkdir(parents=True, exist_ok=True)
        rank, names = self.rank, self._names()
        sizes = {}
        for group in self._zero.fp16_groups:
            for parameter in group:
                shard = parameter.ds_tensor  # pyright: ignore[reportAttributeAccessIssue]
                sizes[names[id(parameter)]] = run_size(parameter.ds_numel, rank, shard.numel())  # pyright: ignore[reportAttributeAccessIssue]
        runs = ((names[id(parameter)], parts) for parameter, parts in states(self._zero))
        write_runs(folder / SHARDS / file_of(rank), sizes, runs, step_of(self._zero))

    def restore(self, folder: Path, written_by: int, meet: Callable[[str], None]) -> None:
        """Continue from ``save`` by ``written_by`` ranks, bit for bit. Each rank reads its own runs only, as fast as it
        can. ``meet``: waits until all ranks are there, outside of a collective.
        """
        rank, names = self.rank, self._names()
        numels = {name: parameter.ds_numel for name, parameter in self._named()}  # pyright: ignore[reportAttributeAccessIssue]
        saved = open_runs(folder / SHARDS, written_by, numels)

        def read(parameter: nn.Parameter, part: str, run: Tensor) -> None:
            name = names[id(parameter)]
            saved.read(part, name, numels[name], rank * run.numel(), run)
            self.count()

        fill(self._zero, saved.step, read)
        meet("restore")
        finish(self._zero)

    @property
    def _zero(self) -> Zero3Optimizer:
        return cast("Zero3Optimizer", self.engine.optimizer)

    def _named(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield the parameters that are trained: an adapter's by the names of the wire, or all."""
        yield from adapter_parameters(self.model).items() or self.model.named_parameters()

    def _names(self) -> dict[int, str]:
        return {id(parameter): name for name, parameter in self._named()}

    def _own(self, parameter: nn.Parameter, run: Tensor) -> Tensor:
        """Leave the padding out of this rank's run of a parameter: DeepSpeed never writes it, it may be anything."""
        size = run_size(parameter.ds_numel, self.rank, run.numel())  # pyright: ignore[reportAttributeAccessIssue]
        return run.flatten()[:size]

    def _gradient_norms(self) -> dict[str, float]:
        """Norms of this update's gradient, computed where it lies. None where it is on disk."""
        if self._zero.swap_optimizer:
            return {}
        if self._offloads:
            names = self._names()
            shards = ((names[id(parameter)], self._own(parameter, run)) for parameter, run in gradients(self._zero))
        else:
            shards = ((name, self._own(parameter, safe_get_local_grad(parameter))) for name, parameter in self._named())
        return norms_by_kind(shards, self.sum_over_ranks)

    def _update_ratios(self) -> dict[str, float]:
        """Ratios of update to weight, computed where the optimiser's state lies. None where it is on disk."""
        if self._zero.swap_optimizer:
            return {}
        assert self.optimiser is not None
        names = self._names()
        shards = (
            (names[id(parameter)], weight, (first, second))
            for parameter, parts in states(self._zero)
            for weight, first, second in [[self._own(parameter, parts[part]) for part in (WEIGHTS, *MOMENTS)]]
        )
        return update_ratios(shards, self.optimiser, self.sum_over_ranks)


def _adamw(model: PreTrainedModel, settings: OptimiserSettings) -> torch.optim.AdamW:
    return torch.optim.AdamW(
        (p for p in model.parameters() if p.requires_grad),
        lr=0.0,
        betas=settings.betas,
        weight_decay=settings.weight_decay,
        fused=True,  # one pass over weights and moments instead of a dozen
    )
