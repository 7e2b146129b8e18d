"""Full tensors out of the ranks' shards of ZeRO-3: one collective for many, then index arithmetic.

A shard is a run of the flattened parameter. Rank r of W has the elements from r * n on, n = ceil(numel / W); the last
runs are padded. DeepSpeed's own gather waits for the whole device each time, so for everything else that runs there,
such as weights on their way to an engine that has died.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn


@torch.no_grad()
def gather(
    parameters: Mapping[str, nn.Parameter], views: Mapping[str, Tensor], dtype: torch.dtype, device: torch.device
) -> None:
    """Gather parameters on all ranks as ``dtype``, and copy those that this rank wants into its ``views``. A collective
    on ``device``, of the same ``parameters`` in the same order on all ranks.
    """
    world_size = torch.distributed.get_world_size()
    if world_size == 1:
        write_shards((parameters[name], views[name]) for name in parameters if name in views)
        return
    sizes = [_run_length(parameter) for parameter in parameters.values()]
    mine = torch.empty(sum(sizes), dtype=dtype, device=device)
    for parameter, run in zip(parameters.values(), mine.split(sizes), strict=True):
        run.copy_(shard_of(parameter))
    everyone = mine.new_empty(world_size, len(mine))
    # As bytes, which every backend carries.
    torch.distributed.all_gather_single(everyone.view(-1).view(torch.uint8), mine.view(torch.uint8))
    for name, runs in zip(parameters, everyone.split(sizes, dim=1), strict=True):
        if name in views:
            assemble(runs, views[name].view(-1))


@torch.no_grad()
def write_shards(parameters: Iterable[tuple[nn.Parameter, Tensor]]) -> None:
    """Write this rank's shard of each parameter where it belongs in the full tensor beside it, cast to the tensor's
    dtype. Not a collective.
    """
    rank = torch.distributed.get_rank()
    for parameter, whole in parameters:
        shard, start = shard_of(parameter), rank * _run_length(parameter)
        part = whole.view(-1)[start : start + len(shard)]
        part.copy_(shard[: len(part)])


def assemble(runs: Tensor, whole: Tensor) -> None:
    """Copy a flattened tensor ``whole`` [numel] out of its ``runs`` [W, n]; what is padding is left out."""
    length = runs.shape[1]
    full, rest = divmod(len(whole), length)
    whole[: full * length].view(full, length).copy_(runs[:full])
    if rest:
        whole[full * length :].copy_(runs[full, :rest])


def shard_of(parameter: nn.Parameter) -> Tensor:
    """Return this rank's run of a parameter, [n], padding included; read from disk where it is offloaded to NVMe."""
    shard = parameter.ds_tensor  # pyright: ignore[reportAttributeAccessIssue]
    if shard.status.name != "NOT_AVAILABLE":  # of DeepSpeed's PartitionedParamStatus
        return shard.detach().view(-1)
    read = torch.empty(shard.ds_numel, dtype=shard.dtype)
    parameter.nvme_swapper.swap_into_buffer(parameter, read)  # pyright: ignore[reportAttributeAccessIssue]
    return read


def _run_length(parameter: nn.Parameter) -> int:
    return parameter.ds_tensor.ds_numel  # pyright: ignore[reportAttributeAccessIssue]
