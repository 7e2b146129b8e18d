"""Full tensors from shards: the index arithmetic, and the one collective on real processes."""

from __future__ import annotations

from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.distributed import FileStore

from actors.learner.gather import assemble, gather, write_shards


def sharded(whole: torch.Tensor, rank: int, world_size: int) -> SimpleNamespace:
    """A parameter as ZeRO-3 leaves it on a rank."""
    length = -(-whole.numel() // world_size)
    padded = torch.full((length * world_size,), float("nan"), dtype=whole.dtype)
    padded[: whole.numel()] = whole.flatten()
    shard = padded[rank * length : (rank + 1) * length].clone()
    shard.status, shard.ds_numel = SimpleNamespace(name="AVAILABLE"), length
    return SimpleNamespace(ds_tensor=shard)


@given(st.integers(1, 9), st.integers(1, 60))
def test_runs_make_the_tensor_and_padding_is_left_out(world_size: int, numel: int) -> None:
    whole = torch.arange(numel, dtype=torch.float32)
    runs = torch.stack([sharded(whole, rank, world_size).ds_tensor for rank in range(world_size)])
    found = torch.empty(numel)
    assemble(runs, found)
    assert torch.equal(found, whole)


def test_a_shard_on_disk_is_read() -> None:
    whole = torch.randn(5)
    parameter = sharded(whole, 0, 1)
    on_disk = parameter.ds_tensor.clone()
    from deepspeed.runtime.zero.partition_parameters import PartitionedParamStatus

    parameter.ds_tensor.status = PartitionedParamStatus.NOT_AVAILABLE
    parameter.ds_tensor.data = torch.empty(1)  # what DeepSpeed leaves in its place
    parameter.nvme_swapper = SimpleNamespace(swap_into_buffer=lambda parameter, buffer: buffer.copy_(on_disk))
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        found = torch.empty(5)
        write_shards([(parameter, found)])
    finally:
        torch.distributed.destroy_process_group()
    assert torch.equal(found, whole)


def rank_main(rank: int, world_size: int, folder: Path) -> None:
    torch.set_num_threads(1)
    store = FileStore(str(folder / "store"), world_size)
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=world_size)
    calls: list[int] = []
    collective = torch.distributed.all_gather_single
    torch.distributed.all_gather_single = lambda out, mine: (calls.append(mine.numel()), collective(out, mine))
    whole = {f"t{n}": torch.randn(n, 7, generator=torch.Generator().manual_seed(n)) for n in range(1, 6)}
    parameters = {name: sharded(tensor, rank, world_size) for name, tensor in whole.items()}
    mine = [name for number, name in enumerate(whole) if number % 2 == rank % 2]
    bucket = torch.empty(sum(whole[name].numel() for name in mine), dtype=torch.bfloat16)
    parts = bucket.split([whole[name].numel() for name in mine])
    views = {name: part.view(whole[name].shape) for name, part in zip(mine, parts, strict=True)}
    gather(parameters, views, torch.bfloat16, torch.device("cpu"))
    equal = all(torch.equal(view, whole[name].bfloat16()) for name, view in views.items())
    (folder / f"rank{rank}").write_text(f"{equal} {len(calls)} {calls}")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_many_parameters_take_one_collective_in_the_dtype_that_is_wanted(tmp_path: Path) -> None:
    world_size = 3
    context = get_context("spawn")
    processes = [context.Process(target=rank_main, args=(rank, world_size, tmp_path)) for rank in range(world_size)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(100)
    length = sum(-(-7 * n // world_size) for n in range(1, 6)) * torch.bfloat16.itemsize
    assert [(tmp_path / f"rank{r}").read_text() for r in range(world_size)] == [f"True 1 [{length}]"] * world_size
