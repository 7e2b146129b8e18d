"""A rank's share of the training state on disk, and reading it with another number of ranks.

A shard of ZeRO-3 is a run of the flattened parameter, and the runs of all ranks in their order are the parameter. So a
rank of any number of ranks finds its own run in the files by arithmetic, and reads that alone. One file a rank, in the
safetensors format: ``PART/NAME`` is the run of one parameter's fp32 weights or of one of its moments. The update's
number is beside them; learning rates are not state, each batch brings its own.
"""

from __future__ import annotations

import bisect
import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from safetensors import SafetensorError
from torch import Tensor

from actors.learner.safe_shards import without_code
from lpo_ray.errors import CheckpointDamaged
from lpo_ray.policy.tensor_file import open_tensors

WEIGHTS, MOMENTS = "weights", ("exp_avg", "exp_avg_sq")
PARTS = (WEIGHTS, *MOMENTS)
"""fp32 weights, and torch's names of AdamW's moments"""
STEP = "step"
UNREADABLE = (OSError, ValueError, KeyError, IndexError, TypeError, RuntimeError, EOFError, SafetensorError)
"""what safetensors and torch raise for files that are damaged, or of another model"""
OLD = re.compile(r"zero_pp_rank_(\d+)_mp_rank_00_optim_states\.pt$")
"""files of DeepSpeed's own, which earlier versions wrote"""


def file_of(rank: int) -> str:
    """Name of a rank's file."""
    return f"rank_{rank:05d}.safetensors"


def run_size(numel: int, rank: int, padded: int) -> int:
    """Count the elements of a rank's run of a parameter that are not padding. Every run has ``padded`` with it."""
    return max(0, min(padded, numel - rank * padded))


def write_runs(
    file: Path, sizes: Mapping[str, int], runs: Iterator[tuple[str, Mapping[str, Tensor]]], step: int
) -> None:
    """Write a rank's runs as they come, one in memory at a time.

    ``sizes``: elements of each parameter's run, in the order of ``runs``; what ``runs`` has beyond is padding.
    """
    header: dict[str, object] = {"__metadata__": {STEP: str(step)}}
    offset = 0
    for name, size in sizes.items():
        for part in PARTS:
            header[f"{part}/{name}"] = {"dtype": "F32", "shape": [size], "data_offsets": [offset, offset + 4 * size]}
            offset += 4 * size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with file.open("wb") as out:
        out.write(len(text).to_bytes(8, "little") + text)
        for (name, size), (other, tensors) in zip(sizes.items(), runs, strict=True):
            assert name == other
            for part in PARTS:
                run = tensors[part].detach().flatten()[:size]
                run.to("cpu", torch.float32).contiguous().numpy().tofile(out)


class _File(Protocol):
    """Runs that one rank wrote."""

    step: int

    def size(self, name: str) -> int:
        """Count the elements of a parameter's run."""
        ...

    def read(self, part: str, name: str, first: int, end: int) -> Tensor:
        """Read a piece of a parameter's run."""
        ...


class _OwnFile:
    """File of ``write_runs``."""

    def __init__(self, path: Path) -> None:
        self._opened = open_tensors(path)
        self.step = int(self._opened.metadata[STEP])

    def size(self, name: str) -> int:
        return self._opened.tensors[f"{WEIGHTS}/{name}"].shape[0]

    def read(self, part: str, name: str, first: int, end: int) -> Tensor:
        return self._opened.tensors[f"{part}/{name}"].run(first, end)


class _OldFile:
    """File of DeepSpeed's own: the runs of all parameters in their order, padded alike, one after another."""

    def __init__(self, path: Path, numels: Mapping[str, int], rank: int, world_size: int) -> None:
        state = torch.load(path, map_location="cpu", mmap=True, weights_only=True)["optimizer_state_dict"]
        moments = state["optimizer_state_dict"]["state"]
        weights = state["fp32_flat_groups"]
        self.step = int(moments[0][STEP])
        self._flat: dict[str, list[Tensor]] = {WEIGHTS: weights}
        for part in MOMENTS:
            self._flat[part] = [moments[group][part] for group in range(len(weights))]
        self._starts = [0, *itertools.accumulate(len(flat) for flat in weights)]
        self._sizes, self._places, place = {}, {}, 0
        for name, numel in numels.items():
            padded = -(-numel // world_size)
            self._sizes[name], self._places[name] = run_size(numel, rank, padded), place
            place += padded
        if place != self._starts[-1]:
            raise ValueError(f"it has {self._starts[-1]} weights instead of {place}")

    def size(self, name: str) -> int:
        return self._sizes[name]

    def read(self, part: str, name: str, first: int, end: int) -> Tensor:
        place = self._places[name]
        group = bisect.bisect_right(self._starts, place) - 1  # a run is whole in one group
        return self._flat[part][group][place - self._starts[group] + first : place - self._starts[group] + end]


@dataclass(frozen=True, slots=True)
class SavedRuns:
    """Training state that a number of ranks wrote, to be read by any number."""

    files: Sequence[_File]
    folder: Path

    @property
    def step(self) -> int:
        """Number of updates that the optimiser has made."""
        return self.files[0].step

    def read(self, part: str, name: str, numel: int, start: int, out: Tensor) -> None:
        """Read the elements from ``start`` on of a flattened parameter of ``numel`` into ``out``; zeros beyond its end.
        Raises CheckpointDamaged.
        """
        end = min(numel, start + out.numel())
        try:
            ends = list(itertools.accumulate(file.size(name) for file in self.files))
            if ends[-1] != numel:
                raise ValueError(f"it has {ends[-1]} elements instead of {numel}")
            place = start
            while place < end:
                number = bisect.bisect_right(ends, place)
                before = ends[number] - self.files[number].size(name)
                until = min(end, ends[number])
                found = self.files[number].read(part, name, place - before, until - before)
                out[place - start : until - start].copy_(found)
                place = until
        except UNREADABLE as error:
            raise CheckpointDamaged(str(self.folder), f"{part} of {name} cannot be read: {error}") from error
        out[max(0, end - start) :].zero_()


def open_runs(folder: Path, written_by: int, numels: Mapping[str, int]) -> SavedRuns:
    """Open what ``written_by`` ranks wrote into ``folder``, and run nothing that is in it. ``numels``: elements of each
    parameter, in the model's order. Raises CheckpointDamaged.
    """
    own = [folder / file_of(rank) for rank in range(written_by)]
    old = {int(match[1]): path for path in folder.glob("*.pt") if (match := OLD.search(path.name))}
    paths = own if not old else [old.get(rank, folder / "nothing") for rank in range(written_by)]
    found = len(old) or len(list(folder.glob(file_of(0).replace("00000", "*"))))
    if found != written_by or not all(path.is_file() for path in paths):
        raise CheckpointDamaged(str(folder), f"it has the shards of {found} ranks; expected those of {written_by}")
    try:
        with without_code(folder):
            files = [
                _OldFile(path, numels, rank, written_by) if old else _OwnFile(path) for rank, path in enumerate(paths)
            ]
    except UNREADABLE as error:
        raise CheckpointDamaged(str(folder), f"a rank's shards cannot be read: {error}") from error
    return SavedRuns(files, folder)
