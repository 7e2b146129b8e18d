"""An engine that is built without weights: what it has until a publish brings them, and what it refuses to do."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from vllm.config.load import LoadConfig
from vllm.model_executor.model_loader import get_model_loader

from actors.rollout import vllm_extension
from actors.rollout.adapter import ServedAdapter
from actors.rollout.blank_loader import BLANK, BlankLoader, unfilled
from actors.rollout.worker import RolloutWorker
from lpo_ray.config.schema import Inflight
from lpo_ray.rollout.engine_settings import EngineSettings

SETTINGS = EngineSettings(
    "model", "float32", 64, 4, 1, 1, 0.5, True, False, True, 2**20, Inflight.keep_recompute, False, blank=True
)  # fmt: skip


class Model(nn.Module):
    """Weights in two dtypes, a table of indices, and a buffer that code makes."""

    def __init__(self) -> None:
        super().__init__()
        self.head, self.narrow = nn.Linear(3, 2), nn.Linear(2, 2, dtype=torch.bfloat16)
        self.table = nn.Parameter(torch.arange(3), requires_grad=False)
        self.register_buffer("scale", torch.ones(2))


def test_vllm_finds_the_loader_once_the_extension_is_imported() -> None:
    assert vllm_extension.WorkerExtension
    assert isinstance(get_model_loader(LoadConfig(load_format=BLANK)), BlankLoader)


def test_weights_are_nan_until_they_are_brought_and_buffers_stay() -> None:
    model = Model()
    BlankLoader(LoadConfig(load_format=BLANK)).load_weights(model, None)  # type: ignore[arg-type]
    assert model.scale.tolist() == [1.0, 1.0]
    assert unfilled(model) == ["head.weight", "head.bias", "narrow.weight", "narrow.bias"]
    with torch.no_grad():
        for parameter in (model.head.weight, model.head.bias, model.narrow.weight):
            parameter.zero_()
        model.narrow.bias[0] = 0
    assert unfilled(model) == ["narrow.bias"]


class Engine:
    """An engine that was brought some of its weights. ``missing``: after each update."""

    def __init__(self, missing: list[list[str]]) -> None:
        self.missing, self.adapter = missing, ServedAdapter(None)

    async def finish_update(self, version: str) -> list[dict[str, str]]:
        return [{}]

    async def unfilled(self) -> list[str]:
        return self.missing.pop(0)


def worker_with(missing: list[list[str]]) -> RolloutWorker:
    worker = RolloutWorker("w", SETTINGS, "shared_memory")
    worker._engine, worker._is_blank, worker._released = Engine(missing), True, asyncio.Event()  # type: ignore[assignment]

    async def answer(probe: object) -> tuple[list[Any], int]:
        return [np.zeros(1, np.float32)], 0

    worker._answer = answer  # type: ignore[method-assign]
    return worker


@pytest.mark.parametrize(
    "ask", [lambda w: w.serve_loaded("0"), lambda w: w.answer([]), lambda w: w.release()],
    ids=["serve what it has loaded", "answer the probe as loaded", "give out groups"],
)  # fmt: skip
async def test_nothing_is_answered_before_all_weights_were_brought(
    ask: Callable[[RolloutWorker], Awaitable[object]],
) -> None:
    worker = worker_with([["head.bias"], []])
    with pytest.raises(AssertionError):
        await ask(worker)
    assert (await worker.finish_update("1", [])).unfilled == ["head.bias"]
    with pytest.raises(AssertionError):
        await ask(worker)
    assert not (await worker.finish_update("1", [])).unfilled
    await worker.release()
    assert worker._released.is_set()
    assert not (await worker.finish_update("2", [])).unfilled  # it is not looked for again
