"""Runs of the training state in files: by arithmetic from any number of ranks to any other, and what is refused."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from actors.learner.shard_files import PARTS, file_of, open_runs, run_size, write_runs
from lpo_ray.errors import CheckpointDamaged

NUMELS = {"a.weight": 7, "b.weight": 12, "c.bias": 1}


def values(numels: Mapping[str, int]) -> dict[str, dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return {name: {part: torch.randn(n, generator=generator) for part in PARTS} for name, n in numels.items()}


def write(folder: Path, whole: Mapping[str, Mapping[str, Tensor]], world_size: int, step: int = 3) -> None:
    """As ranks do: each has a padded run of each parameter."""
    for rank in range(world_size):
        sizes: dict[str, int] = {}
        padded_runs: list[tuple[str, dict[str, Tensor]]] = []
        for name, parts in whole.items():
            numel = len(parts["weights"])
            padded = math.ceil(numel / world_size)
            sizes[name] = run_size(numel, rank, padded)
            filled = {part: torch.full((padded * world_size,), torch.nan) for part in PARTS}
            for part, tensor in parts.items():
                filled[part][:numel] = tensor
            runs = {part: tensor[rank * padded : (rank + 1) * padded] for part, tensor in filled.items()}
            padded_runs.append((name, runs))
        write_runs(folder / file_of(rank), sizes, iter(padded_runs), step)


def read(
    folder: Path, numels: Mapping[str, int], written_by: int, world_size: int
) -> Iterator[tuple[str, str, Tensor]]:
    saved = open_runs(folder, written_by, numels)
    assert saved.step == 3
    for name, numel in numels.items():
        padded = math.ceil(numel / world_size)
        for part in PARTS:
            runs = [torch.full((padded,), torch.nan) for _ in range(world_size)]
            for rank, run in enumerate(runs):
                saved.read(part, name, numel, rank * padded, run)
            yield name, part, torch.cat(runs)


@given(numels=st.lists(st.integers(1, 40), min_size=1, max_size=4), before=st.integers(1, 9), after=st.integers(1, 9))
@settings(max_examples=40)
def test_any_number_of_ranks_reads_what_any_other_wrote(numels: list[int], before: int, after: int) -> None:
    whole = values({f"p{number}.weight": numel for number, numel in enumerate(numels)})
    with tempfile.TemporaryDirectory() as text:
        write(folder := Path(text), whole, before)
        sizes = {name: len(parts["weights"]) for name, parts in whole.items()}
        for name, part, found in read(folder, sizes, before, after):
            assert torch.equal(found[: sizes[name]], whole[name][part])
            assert not found[sizes[name] :].any()


@pytest.mark.parametrize(
    ("numels", "written_by", "said"),
    [
        (NUMELS, 3, "it has the shards of 2 ranks; expected those of 3"),
        (NUMELS, 1, "it has the shards of 2 ranks; expected those of 1"),
        (NUMELS | {"b.weight": 13}, 2, "weights of b.weight cannot be read: it has 12 elements instead of 13"),
        (NUMELS | {"d.weight": 3}, 2, "weights of d.weight cannot be read"),
    ],
)
def test_files_of_another_model_or_of_other_ranks_are_refused(
    tmp_path: Path, numels: dict[str, int], written_by: int, said: str
) -> None:
    write(tmp_path, values(NUMELS), 2)
    with pytest.raises(CheckpointDamaged, match=said):
        list(read(tmp_path, numels, written_by, 1))


@pytest.mark.parametrize("size", [0, 4, 100, -4])
def test_a_file_that_is_cut_short_is_refused(tmp_path: Path, size: int) -> None:
    write(tmp_path, values(NUMELS), 2)
    content = (tmp_path / file_of(1)).read_bytes()
    (tmp_path / file_of(1)).write_bytes(content[:size])
    with pytest.raises(CheckpointDamaged, match="cannot be read"):
        list(read(tmp_path, NUMELS, 2, 2))
