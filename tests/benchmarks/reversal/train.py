"""One run: an arm, a length, a seed. Its error is that of the responses it samples for training, as TPO reports it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from tests.benchmarks.reversal.arms import Arm, loss, moves
from tests.benchmarks.reversal.model import Policy, Shape
from tests.benchmarks.reversal.optimiser import Muon
from tests.benchmarks.reversal.task import Batch, sample


@dataclass(frozen=True, slots=True)
class Setting:
    """TPO's, from paper and code."""

    batches: int = 2000
    prompts: int = 100
    group_size: int = 8
    epochs: int = 4
    learning_rate: float = 1e-3
    vocabulary: int = 2


def errors(arm: Arm, length: int, seed: int, setting: Setting) -> Iterator[float]:
    """Share of wrong responses of each batch, before it is trained on. Arms share weights at the start, and prompts."""
    weights, prompting, sampling = (torch.Generator().manual_seed(1000 * seed + part) for part in range(3))
    policy = Policy(Shape(2 * length, setting.vocabulary), weights)
    optimiser = Muon(policy.parameters(), setting.learning_rate)
    for _ in range(setting.batches):
        prompts = torch.randint(setting.vocabulary, (setting.prompts, length), generator=prompting)
        batch = sample(policy, prompts, setting.group_size, sampling)
        yield 1.0 - float(batch.rewards.mean())
        update(policy, optimiser, arm, batch, setting.epochs)


def update(policy: Policy, optimiser: Muon, arm: Arm, batch: Batch, epochs: int) -> None:
    """All epochs over one batch. Groups whose gradient is known to be zero are left out; the mean is over all."""
    parameters = list(policy.parameters())
    moving = later = batch.only(moves(arm, batch.rewards, batch.behaviour))
    if arm.pulls_back:
        later = batch if arm.snapshot_kl else batch.only(batch.varied)
    for epoch in range(epochs):
        part = later if epoch else moving
        if len(part.rewards):
            value = loss(arm, part.logprobs(policy), part.behaviour, part.rewards) / len(batch.rewards)
            gradients = torch.autograd.grad(value, parameters)
        else:
            gradients = [torch.zeros_like(parameter) for parameter in parameters]
        optimiser.step(dict(zip(parameters, gradients, strict=True)))
