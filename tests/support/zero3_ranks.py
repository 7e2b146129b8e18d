"""ZeRO-3 ranks as processes without Ray: forked from one that has imported DeepSpeed, so they cost little."""

from __future__ import annotations

import multiprocessing
import os
import traceback
from collections.abc import Callable, Sequence
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch.distributed import TCPStore

from lpo_ray.common.step_schedule import StepSchedule
from lpo_ray.learner.packing import Packing
from lpo_ray.learner.settings import LearnerSettings, Objective, OptimiserSettings
from lpo_ray.records import ScoringItem, Segment

T = TypeVar("T")
SECONDS = 240.0
"""for all ranks to do their work"""
OBJECTIVE = Objective("forward_kl", "none", 0.2, 0.2, "mean", 1.0, behaviour_from_engine=True, reference_kl=0.0)


def on_ranks(world_size: int, work: Callable[..., T], *arguments: object, joined: bool = True) -> list[T]:
    """Call ``work(rank, *arguments)`` in as many processes. Returns by rank. ``joined``: they have a process group;
    else ``work`` gets the port of a store that all reach after its rank.
    """
    os.environ["DS_ACCELERATOR"] = "cpu"
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["actors.learner.zero3", "tests.support.zero3_ranks"])
    limit = timedelta(seconds=SECONDS)
    store = TCPStore("127.0.0.1", 0, world_size, is_master=True, wait_for_workers=False, timeout=limit)
    ends, processes = [], []
    for rank in range(world_size):
        ours, theirs = context.Pipe()
        where = (rank, world_size, store.port, joined)
        process = context.Process(target=_rank, args=(theirs, where, work, arguments), daemon=True)
        process.start()
        theirs.close()
        ends.append(ours)
        processes.append(process)
    try:
        return _results(ends)
    finally:
        for process in processes:
            process.kill()
            process.join()


def _results(ends: Sequence[Connection]) -> list[Any]:
    results: dict[int, Any] = {}
    while len(results) < len(ends):
        ready = wait([end for rank, end in enumerate(ends) if rank not in results], timeout=SECONDS)
        assert ready, f"only ranks {sorted(results)} of {len(ends)} have answered"
        for end in ready:
            assert isinstance(end, Connection)
            error, results[ends.index(end)] = end.recv()
            if error:
                raise AssertionError(f"rank {ends.index(end)}: {error}")
    return [results[rank] for rank in range(len(ends))]


def _rank(
    end: Connection, where: tuple[int, int, int, bool], work: Callable[..., object], arguments: Sequence[object]
) -> None:
    from actors.learner.zero3 import join_group

    rank, world_size, port, joined = where
    names = {"RANK": rank, "LOCAL_RANK": 0, "WORLD_SIZE": world_size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in names.items()})
    torch.set_num_threads(1)
    try:
        if joined:
            join_group(TCPStore("127.0.0.1", port, world_size, is_master=False), rank, world_size, on_gpu=False)
        end.send(("", work(rank, *arguments) if joined else work(rank, port, *arguments)))
    except BaseException:  # noqa: BLE001 - told to the test
        end.send((traceback.format_exc(), None))
    end.poll(SECONDS)  # until it is killed: others may still need its store


def rank_settings(path: Path, dtype: str, **options: Any) -> LearnerSettings:
    """Settings of a rank that loads the model in ``path``."""
    made: dict[str, Any] = {
        "model_path": str(path), "dtype": dtype, "objective": StepSchedule(((0, OBJECTIVE),)),
        "optimiser": OptimiserSettings((0.9, 0.999), 0.1, 1.0), "packing": Packing(1, 10**6, share_prompt=False),
        "attention": "packed", "gradient_checkpointing": False, "reference_path": str(path), "threads": 1,
        "deepspeed": {},
    }  # fmt: skip
    return LearnerSettings(**{**made, **options})


def bundle(number: int, vocabulary: int = 50) -> list[ScoringItem]:
    """A prompt with three responses of random tokens."""
    rng = np.random.default_rng(number)
    return [(rng.integers(0, vocabulary, 5), [(Segment.answer(rng.integers(0, vocabulary, n)),) for n in (4, 7, 3)])]
