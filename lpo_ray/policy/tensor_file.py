"""Files of safetensors, read without a second copy, and a run of a tensor without the rest of it; tensors in a file.

The library's own reader copies what it has read, and reads a whole tensor for a slice of it; or it maps the file, and
pages that are mapped count as the process's own.
"""

from __future__ import annotations

import itertools
import json
import math
import mmap
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import EllipsisType

import torch
from safetensors import safe_open
from torch import Tensor

from lpo_ray.common.files import disk_full, explained

DTYPES = {
    "BOOL": torch.bool, "U8": torch.uint8, "U16": torch.uint16, "U32": torch.uint32, "U64": torch.uint64,
    "I8": torch.int8, "I16": torch.int16, "I32": torch.int32, "I64": torch.int64,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
    "F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64, "C64": torch.complex64,
}  # fmt: skip
"""dtype in a file's header -> in torch"""


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor in a file, read when it is asked for. Has the methods of safetensors' slices that transformers calls."""

    path: Path
    dtype: str
    """as the file's header has it"""
    shape: Sequence[int]
    offset: int
    """bytes before it in the file"""

    def get_shape(self) -> list[int]:
        """Return the shape."""
        return list(self.shape)

    def get_dtype(self) -> str:
        """Return the dtype as the file's header has it."""
        return self.dtype

    def __getitem__(self, everything: EllipsisType) -> Tensor:
        """Read all of it."""
        return self.run(0, math.prod(self.shape)).view(tuple(self.shape))

    def run(self, first: int, end: int) -> Tensor:
        """Read the elements ``first`` to ``end`` of the flattened tensor. Raises ValueError for a dtype that torch has
        not, or a file that ends before.
        """
        if self.dtype not in DTYPES:
            raise ValueError(f"{self.path}: dtype {self.dtype}; expected one of {', '.join(DTYPES)}")
        dtype = DTYPES[self.dtype]
        size = (end - first) * dtype.itemsize
        if not size:
            return torch.empty(0, dtype=dtype)
        # Pages of its own go back as soon as the tensor does. The allocator would keep gaps between what stays.
        content = mmap.mmap(-1, size)
        with self.path.open("rb", buffering=0) as file:
            file.seek(self.offset + first * dtype.itemsize)
            done = 0
            while done < size:  # a call of the kernel reads 2 GiB at most
                count = file.readinto(memoryview(content)[done:])
                if not count:
                    raise ValueError(f"{self.path} ends {size - done} bytes before its tensor does")
                done += count
        return torch.frombuffer(content, dtype=dtype)


@dataclass(frozen=True, slots=True)
class TensorFile:
    """Tensors of a file by name, and what its writer said of it."""

    tensors: Mapping[str, StoredTensor]
    metadata: Mapping[str, str]


class DiskTensors:
    """Tensors whose memory is a file: the kernel takes it back whenever it needs it, and a process need not hold them
    all. Removed by ``close``; nothing may use them then.
    """

    def __init__(self, path: Path, shapes: Mapping[str, Sequence[int]], dtype: torch.dtype) -> None:
        """Make the file, with all of its room on the disk: a write to memory cannot say that there is none. Raises
        DiskFull.
        """
        page = mmap.ALLOCATIONGRANULARITY
        sizes = {name: math.prod(shape) * dtype.itemsize for name, shape in shapes.items()}
        pages = [-(-size // page) * page for size in sizes.values()]
        starts = dict(zip(sizes, itertools.accumulate(pages, initial=0), strict=False))
        self._path = path
        self._maps: dict[str, mmap.mmap] = {}
        self.tensors: dict[str, Tensor] = {}
        """by name; each has a storage of its own"""
        if sum(pages) > shutil.disk_usage(path.parent).free:  # or others would meet a full disk meanwhile
            raise disk_full(path)
        with explained(path), path.open("w+b") as file:
            os.posix_fallocate(file.fileno(), 0, max(page, sum(pages)))
            for name, shape in shapes.items():
                if not sizes[name]:
                    self.tensors[name] = torch.empty(tuple(shape), dtype=dtype)
                    continue
                self._maps[name] = mmap.mmap(file.fileno(), sizes[name], offset=starts[name])
                self.tensors[name] = torch.frombuffer(self._maps[name], dtype=dtype).view(tuple(shape))

    def written(self, names: Iterable[str]) -> None:
        """Give back the memory of tensors that have been written; they are read from the file again."""
        for name in names:
            if name in self._maps:
                self._maps[name].flush()
                self._maps[name].madvise(mmap.MADV_DONTNEED)

    def close(self) -> None:
        """Remove the file."""
        self.tensors, self._maps = {}, {}
        self._path.unlink(missing_ok=True)


def open_tensors(path: Path) -> TensorFile:
    """Read the header of a file of safetensors. Raises safetensors' own SafetensorError for one that is damaged."""
    with safe_open(path, framework="pt"):  # checks that the tensors fill the file, one after another
        pass
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
    metadata = header.pop("__metadata__", {})
    return TensorFile(
        {
            name: StoredTensor(path, entry["dtype"], entry["shape"], 8 + size + entry["data_offsets"][0])
            for name, entry in header.items()
        },
        metadata,
    )
