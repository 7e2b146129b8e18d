"""ZeRO-3 ranks without the rest, and steps of groups made by hand."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import numpy as np
import torch

from actors.cluster import _open_export, open_learner
from actors.learner.group import LearnerGroup
from actors.learner.worker import LearnerWorker
from actors.transports.table import TRANSPORTS
from lpo_ray.learner.packing import pack_step
from lpo_ray.learner.settings import LearnerSettings
from lpo_ray.objective import gibbs_target, target_temperature
from lpo_ray.records import Prompt, PromptGroup, Response, ScoredGroup, StepReport, TargetGroup, zero_anchor
from lpo_ray.run.settings import learner_settings, packing
from lpo_ray.run.spec import RunSpec
from tests.support.fakes import FakeEvents
from tests.support.transported_models import on_ranks

VOCABULARY = 90


def make_targets(number_of_groups: int = 6, size: int = 4) -> list[TargetGroup]:
    """Groups of which one, two or three responses are right, tau = group_std, on-policy."""
    rng = np.random.default_rng(7)
    targets = []
    for number in range(number_of_groups):
        responses = []
        for _ in range(size):
            length = int(rng.integers(3, 20))
            tokens = rng.integers(4, VOCABULARY, length)
            responses.append(Response(tokens, np.zeros(length, np.float32), np.zeros(length, np.int64), "stop"))
        rewards = (np.arange(size) <= number % (size - 1)).astype(np.float32)
        tau = target_temperature(torch.from_numpy(rewards)[None], "group_std")
        log_target = gibbs_target(torch.from_numpy(rewards)[None], tau)[0].numpy()
        prompt = Prompt(f"train-{number:08d}", rng.integers(4, VOCABULARY, 5 + number), "{}", "countdown")
        scored = ScoredGroup(PromptGroup(prompt, 0, tuple(responses)), rewards)
        targets.append(TargetGroup(scored, log_target, zero_anchor([scored])[0], float(tau[0])))
    return targets


async def restart(learner: LearnerGroup, settings: LearnerSettings) -> None:
    """Start ranks that are up again, with another policy or other settings, in the processes that they have."""

    def forget(worker: LearnerWorker) -> None:
        barrier = worker._barrier  # the ranks have met, and do not again
        LearnerWorker.__init__(worker, worker._rank, worker._world_size, settings)
        worker._barrier = barrier

    await on_ranks(learner, forget)
    await learner.load()


class Ranks:
    """Ranks, of each number that is asked for, that stay up for the next one to ask: starting processes is what costs
    time. They begin anew each time, and are ended when what was done with them fails.
    """

    def __init__(self) -> None:
        self._runner = asyncio.Runner()
        self._up: dict[int, tuple[LearnerGroup, AsyncExitStack]] = {}

    def on(self, spec: RunSpec, policy: Path, work: Callable[[LearnerGroup], Awaitable[object]]) -> object:
        """Do ``work`` with the ranks of ``spec``, which have just loaded ``policy``."""
        return self._runner.run(self._on(spec, policy, work))

    async def _on(self, spec: RunSpec, policy: Path, work: Callable[[LearnerGroup], Awaitable[object]]) -> object:
        size = spec.config.learner.world_size
        try:
            return await work(await self._fresh(size, spec, policy))
        except BaseException:
            if size in self._up:
                await self._up.pop(size)[1].aclose()
            raise

    async def _fresh(self, size: int, spec: RunSpec, policy: Path) -> LearnerGroup:
        if size not in self._up:
            stack = AsyncExitStack()
            learner = await stack.enter_async_context(open_learner(spec, str(policy), FakeEvents()))
            self._up[size] = learner, stack
            return learner
        learner, _ = self._up[size]
        await restart(learner, learner_settings(spec, str(policy)))
        await _open_export(spec.config, learner, TRANSPORTS["object_store"])
        return learner

    def close(self) -> None:
        """End all of them."""
        for _, stack in self._up.values():
            self._runner.run(stack.aclose())
        self._runner.close()


async def steps(learner: LearnerGroup, spec: RunSpec, count: int, first: int = 0, lr: float = 1e-3) -> list[StepReport]:
    reports = []
    for step in range(first, first + count):
        batch = pack_step(make_targets(), packing(spec), step=step, seed=0, updates=2, learning_rate=lr)
        reports.append(await learner.project(batch))
    return reports
