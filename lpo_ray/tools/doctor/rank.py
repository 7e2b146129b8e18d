"""One of the two ranks of ``collective.py``: ``python -m lpo_ray.tools.doctor.rank RANK HOST PORT BACKEND SECONDS``."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Mapping
from datetime import timedelta

import torch
from torch import distributed

NUMEL = 1 << 20


def meet(rank: int, host: str, port: int, backend: str, seconds: float) -> Mapping[str, object]:
    """Join the other rank and add up 1 + 2 in every element; returns the sum and the seconds of the second time."""
    device = torch.device("cuda", rank) if backend == "nccl" else torch.device("cpu")
    if backend == "nccl":
        torch.cuda.set_device(device)
    limit = timedelta(seconds=seconds)
    address = f"tcp://{host}:{port}"
    distributed.init_process_group(backend, init_method=address, rank=rank, world_size=2, timeout=limit)
    _add(rank, device)  # sets up the connections
    low, high, taken = _add(rank, device)
    distributed.destroy_process_group()
    return {"sum": low if low == high else [low, high], "seconds": taken}


def _add(rank: int, device: torch.device) -> tuple[float, float, float]:
    """Add up once: smallest and largest element of the sum, and seconds."""
    values = torch.full((NUMEL,), float(rank + 1), device=device)
    started = time.monotonic()
    distributed.all_reduce(values)
    low, high = float(values.min()), float(values.max())
    return low, high, time.monotonic() - started


if __name__ == "__main__":
    torch.set_num_threads(1)
    result = meet(int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), sys.argv[4], float(sys.argv[5]))
    sys.stdout.write(json.dumps(result) + "\n")
    sys.stdout.flush()
    os._exit(0)  # the result is out; a library's thread at exit is not what is asked here
