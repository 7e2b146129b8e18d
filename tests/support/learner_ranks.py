"""ZeRO-3 ranks without the rest, and steps of groups made by hand."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

import numpy as np
import torch

from actors.cluster import open_learner
from actors.learner.group import LearnerGroup
from lpo_ray.learner.packing import pack_step
from lpo_ray.objective import gibbs_target, target_temperature
from lpo_ray.records import Prompt, PromptGroup, Response, ScoredGroup, StepReport, TargetGroup, zero_anchor
from lpo_ray.run.settings import packing
from lpo_ray.run.signals import run_until_signal
from lpo_ray.run.spec import RunSpec
from tests.support.fakes import FakeEvents

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


def on(spec: RunSpec, policy: Path, work: Callable[[LearnerGroup], Awaitable[object]]) -> object:
    async def main(_: object) -> object:
        async with open_learner(spec, str(policy), FakeEvents()) as learner:
            return await work(learner)

    return run_until_signal(main)


async def steps(learner: LearnerGroup, spec: RunSpec, count: int, first: int = 0, lr: float = 1e-3) -> list[StepReport]:
    reports = []
    for step in range(first, first + count):
        batch = pack_step(make_targets(), packing(spec), step=step, seed=0, updates=2, learning_rate=lr)
        reports.append(await learner.project(batch))
    return reports
